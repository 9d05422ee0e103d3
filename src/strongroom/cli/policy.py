"""`strongroom policy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from strongroom._unix import read_text
from strongroom.attest.policies import FreeArgument, Rego, TcbStatus
from strongroom.cli import output
from strongroom.cli.common import (
    PATH,
    check_simulated,
    epilog,
    json_option,
    key_argument,
    owner,
    root_option,
    unsafe_option,
)
from strongroom.cli.measured import measured_options, measured_values
from strongroom.cli.requests import approve, dismiss, request, requests, signed_values, tcb_options
from strongroom.client.policies import allow_job, clear_policy
from strongroom.errors import InputError

__all__ = ["command"]


@click.group("policy")
def command() -> None:
    """Release policies: which job may use which key, for what."""


for one in (requests, request, approve, dismiss):
    command.add_command(one)


@command.command(
    "set",
    epilog=epilog(
        "strongroom policy set sales --allow job.toml --unsafe-accept-simulated",
        "strongroom policy set sales --allow job.toml --use read",
        "strongroom policy set sales --allow job.toml --free '2=2026-[0-9]{2}'",
        "strongroom policy set sales --allow job.toml --rego policy.rego",
        "strongroom policy set sales --allow job.toml --measurement 8f3c...     Occlum: its tools say it, no build",
    ),
)
@key_argument("key")
@click.option("--allow", "job_file", required=True, type=PATH, help="The job file to allow.")
@click.option(
    "--use", "uses", multiple=True, type=click.Choice(["read", "write"]), help="Default: all the job declares."
)
@click.option(
    "--free",
    "free",
    multiple=True,
    metavar="N=PATTERN",
    help="Argument N (from 0) may be any text that fully matches PATTERN.",
)
@click.option("--rego", "rego_file", type=PATH, help="A Rego module that has to accept the job as well.")
@measured_options
@root_option
@tcb_options
@unsafe_option
@json_option
def set_(
    key: str,
    job_file: Path,
    uses: tuple[str, ...],
    free: tuple[str, ...],
    rego_file: Path | None,
    named: dict[str, str],
    root: str,
    tcb: TcbStatus,
    unsafe_accept_simulated: bool,
    as_json: bool,
) -> None:
    """Allow the job in a job file to use KEY."""
    from strongroom.cli.job import plan_file

    rego = _rego(rego_file) if rego_file else ""
    client = owner()
    runner, plan = plan_file(job_file, client)
    bundle = runner.build(plan)
    named = measured_values(bundle, plan.spec.enclave, named)
    check_simulated(bundle.simulated, unsafe_accept_simulated)
    added = allow_job(
        client,
        plan.document,
        named,
        job=plan.job,
        unsafe_accept_simulated=bundle.simulated and unsafe_accept_simulated,
        free=[_free(f) for f in free],
        rego=rego,
        root=root,
        tcb=tcb,
        keys=[key],
        uses=uses,
    )
    value = {"key": key, "job": plan.job, **named, "added": added}
    text = [f"{name} {digest}" for name, digest in named.items()]
    output.data(value, as_json, [f"allowed {line}" for line in added] + [f"job {plan.job}", *text])


@command.command(
    "import",
    epilog=epilog(
        "strongroom policy import sales job.reference.json --signer builder.pem",
        "strongroom policy import sales job.reference.json --signer builder.pem --unsafe-accept-simulated",
        "strongroom policy import sales job.reference.json --signer builder.pem --tcb-status SWHardeningNeeded",
    ),
)
@key_argument("key")
@click.argument("file", type=PATH)
@click.option(
    "--signer",
    "signers",
    multiple=True,
    required=True,
    type=PATH,
    help="Certificate of whoever built it, whom you trust to build what was reviewed.",
)
@root_option
@tcb_options
@unsafe_option
@json_option
def import_(
    key: str,
    file: Path,
    signers: tuple[Path, ...],
    root: str,
    tcb: TcbStatus,
    unsafe_accept_simulated: bool,
    as_json: bool,
) -> None:
    """Allow the job of signed reference values (`strongroom job sign`) to use KEY; decisions name them."""
    found = signed_values(file, signers)
    check_simulated(found.simulated, unsafe_accept_simulated)
    added = allow_job(
        owner(),
        found.document,
        found.values,
        job=found.job,
        unsafe_accept_simulated=found.simulated and unsafe_accept_simulated,
        reference=found,
        root=root,
        tcb=tcb,
        keys=[key],
    )
    value = {"key": key, "job": found.job, "reference": found.id, "signer": found.signer, "values": dict(found.values)}
    text = [f"allowed {line}" for line in added]
    text += output.facts({"job": found.job, "reference": found.id, "signer": found.signer, **found.values})
    output.data({**value, "added": added}, as_json, text)


@command.command("show", epilog=epilog("strongroom policy show sales"))
@key_argument("key")
@json_option
def show(key: str, as_json: bool) -> None:
    """Show a key's release policy."""
    found = owner().call("GET", f"/v1/keys/{key}/policy")
    policy = dict(cast(dict[str, Any], found["policy"]))
    text = [f"key {key}, policy revision {found['revision']}"]
    rule = policy.pop("outputs", None)
    if rule:
        text += [f"outputs: {_rule(rule)}"]
    for use, value in policy.items():
        text += [f"{use}:"] + (_shown(value, "  ") if value else ["  nobody"])
    output.data(found, as_json, text)


def _shown(policy: dict[str, Any], indent: str) -> list[str]:
    kind = policy["kind"]
    if kind in ("all_of", "any_of"):
        word = "all of" if kind == "all_of" else "any of"
        return [f"{indent}{word}"] + [line for inner in policy["policies"] for line in _shown(inner, indent + "  ")]
    if kind == "rego":
        lines = policy["module"].expandtabs().splitlines()
        return [f"{indent}rego {Rego(policy['module']).digest}", *(f"{indent}  {line}" for line in lines)]
    rest = {k: v for k, v in policy.items() if k != "kind"}
    warn = "  (SIMULATED: no hardware protects it)" if kind == "unsafe_accept_simulated" else ""
    return [indent + kind + "".join(f" {k}={v}" for k, v in rest.items()) + warn]


@command.command(
    "outputs",
    epilog=epilog("strongroom policy outputs health --max-mb 1 --approval", "strongroom policy outputs health --any"),
)
@key_argument("key")
@click.option("--max-mb", type=float, help="Of each volume that a job writes, and of what it prints.")
@click.option(
    "--approval/--no-approval",
    default=None,
    help="What a job writes waits for `strongroom output approve`. What it prints does not: see --max-mb.",
)
@click.option("--any", "anything", is_flag=True, help="Allow outputs of any size, without approval.")
@json_option
def outputs(key: str, max_mb: float | None, approval: bool | None, anything: bool, as_json: bool) -> None:
    """Say what jobs that use a key may leave, on top of which jobs may use it."""
    if anything == (max_mb is not None or approval is not None):
        raise InputError("say what outputs may be", hint="--max-mb N, --approval, both, or --any alone")
    if max_mb is not None and not 0 <= max_mb < 1e9:
        raise InputError(f"--max-mb is a number from 0 to 10^9, got {max_mb}")
    client = owner()
    found = client.call("GET", f"/v1/keys/{key}/policy")
    rule: dict[str, Any] = {"max_bytes": None, "approval": False}
    policy = cast(dict[str, Any], found["policy"])
    if not anything:  # what is not said stays as it is
        rule |= policy.get("outputs") or {}
        rule |= {} if max_mb is None else {"max_bytes": int(max_mb * 1e6)}
        rule |= {} if approval is None else {"approval": approval}
    policy = {**policy, "outputs": rule}
    client.call("PUT", f"/v1/keys/{key}/policy", {"policy": policy, "revision": found["revision"]})
    output.data({"key": key, "outputs": rule}, as_json, [f"jobs with key {key}: {_rule(rule)}"])


def _rule(rule: Mapping[str, Any]) -> str:
    limit = rule["max_bytes"]
    size = "outputs of any size" if limit is None else f"at most {limit} bytes in each output, and printed"
    return size + (", which wait for approval" if rule["approval"] else "")


@command.command("clear", epilog=epilog("strongroom policy clear sales"))
@key_argument("key")
def clear(key: str) -> None:
    """Take every allowance of a key back."""
    clear_policy(owner(), key)
    output.say(f"nobody may use key {key!r} now; running jobs stop at their lease's end")


def _rego(path: Path) -> str:
    from strongroom.attest.rego import evaluate

    module = read_text(path, "name a Rego module")
    found = evaluate(module, {})  # what it says of nothing does not matter, whether it can be asked does
    if found.startswith(("an error", "no answer", "regopy")):
        raise InputError(f"{path}: {found}", hint="package policy, and a rule `allow`")
    return module


def _free(text: str) -> FreeArgument:
    index, equals, pattern = text.partition("=")
    if not equals or not index.isdecimal():
        raise InputError(f"--free {text!r}: expected N=PATTERN", hint="--free '2=[0-9]{4}'")
    try:
        re.compile(pattern)
    except re.error as exc:
        raise InputError(f"--free {text!r}: not a pattern: {exc}", hint="--free '2=[0-9]{4}'") from exc
    return FreeArgument(int(index), pattern)
