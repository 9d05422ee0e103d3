"""`strongroom policy`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from strongroom.attest.appraisal import FreeArgument, Rego
from strongroom.attest.policies import TDX_REGISTERS
from strongroom.cli import output
from strongroom.cli.common import epilog, json_option, owner
from strongroom.client.petnames import Petnames
from strongroom.client.policies import allow_job, clear_policy, measured
from strongroom.errors import InputError

if TYPE_CHECKING:
    from strongroom.attest.reference import ReferenceValues

__all__ = ["command", "unsafe_option"]

_BUILD = "`strongroom job build` of the same job computes it; repeat with"
_NAME = {
    "sgx": f"{_BUILD} --measurement HEX",
    "snp": f"{_BUILD} --snp-measurement HEX",
    "tdx": "launch the same job on a machine that you trust; repeat with --tdx REGISTER=HEX for "
    + ", ".join(TDX_REGISTERS),
}

unsafe_option = click.option(
    "--unsafe-accept-simulated",
    is_flag=True,
    help="Accept the SIMULATED root: no hardware protects the enclave.",
)


@click.group("policy")
def command() -> None:
    """Release policies: which job may use which key, for what."""


@command.command(
    "set",
    epilog=epilog(
        "strongroom policy set sales --allow job.toml --unsafe-accept-simulated",
        "strongroom policy set sales --allow job.toml --use read",
        "strongroom policy set sales --allow job.toml --free '2=2026-[0-9]{2}'",
        "strongroom policy set sales --allow job.toml --rego policy.rego",
    ),
)
@click.argument("key")
@click.option("--allow", "job_file", required=True, type=click.Path(path_type=Path), help="The job file to allow.")
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
@click.option(
    "--rego", "rego_file", type=click.Path(path_type=Path), help="A Rego module that has to accept the job as well."
)
@unsafe_option
@json_option
def set_(
    key: str,
    job_file: Path,
    uses: tuple[str, ...],
    free: tuple[str, ...],
    rego_file: Path | None,
    unsafe_accept_simulated: bool,
    as_json: bool,
) -> None:
    """Allow the job in a job file to use KEY."""
    from strongroom.cli.job import plan_file

    rego = _rego(rego_file) if rego_file else ""
    client = owner()
    runner, plan = plan_file(job_file, client)
    bundle = runner.build(plan)
    named = bundle.values
    _check_simulated(bundle.simulated, unsafe_accept_simulated)
    added = allow_job(
        client,
        plan.document,
        named,
        job=plan.job,
        unsafe_accept_simulated=bundle.simulated and unsafe_accept_simulated,
        free=[_free(f) for f in free],
        rego=rego,
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
    ),
)
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--signer",
    "signers",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Certificate of whoever built it, whom you trust to build what was reviewed.",
)
@unsafe_option
@json_option
def import_(key: str, file: Path, signers: tuple[Path, ...], unsafe_accept_simulated: bool, as_json: bool) -> None:
    """Allow the job of signed reference values (`strongroom job sign`) to use KEY; decisions name them."""
    found = _signed(file, signers)
    _check_simulated(found.simulated, unsafe_accept_simulated)
    added = allow_job(
        owner(),
        found.document,
        found.values,
        job=found.job,
        unsafe_accept_simulated=found.simulated and unsafe_accept_simulated,
        reference=found,
        keys=[key],
    )
    value = {"key": key, "job": found.job, "reference": found.id, "signer": found.signer, "values": dict(found.values)}
    text = [f"allowed {line}" for line in added]
    text += output.facts({"job": found.job, "reference": found.id, "signer": found.signer, **found.values})
    output.data({**value, "added": added}, as_json, text)


def _signed(file: Path, signers: Sequence[Path]) -> ReferenceValues:
    from cryptography.hazmat.primitives.asymmetric import ec

    from strongroom.attest.reference import open_reference
    from strongroom.crypto.x509 import certificate_from_pem

    try:
        known = [certificate_from_pem(signer.read_text("ascii", "replace")).public_key() for signer in signers]
        raw = file.read_bytes()
    except OSError as exc:
        raise InputError(f"{exc.filename} is not readable: {exc.strerror}") from exc
    return open_reference(raw, [k for k in known if isinstance(k, ec.EllipticCurvePublicKey)])


@command.command("show", epilog=epilog("strongroom policy show sales"))
@click.argument("key")
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
        return [f"{indent}rego {Rego(policy['module']).digest}", *(f"{indent}  {_plain(line)}" for line in lines)]
    rest = {k: v for k, v in policy.items() if k != "kind"}
    warn = "  (SIMULATED: no hardware protects it)" if kind == "unsafe_accept_simulated" else ""
    return [indent + kind + "".join(f" {k}={v}" for k, v in rest.items()) + warn]


@command.command(
    "outputs",
    epilog=epilog("strongroom policy outputs health --max-mb 1 --approval", "strongroom policy outputs health --any"),
)
@click.argument("key")
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
@click.argument("key")
def clear(key: str) -> None:
    """Take every allowance of a key back."""
    clear_policy(owner(), key)
    output.say(f"nobody may use key {key!r} now; running jobs stop at their lease's end")


@command.command("requests", epilog=epilog("strongroom policy requests"))
@click.option("--all", "everything", is_flag=True, help="Also approved and dismissed ones.")
@json_option
def requests(everything: bool, as_json: bool) -> None:
    """List refused jobs that wait for you."""
    found = owner().call("GET", "/v1/requests")
    listed = [r for r in cast(list[dict[str, Any]], found["requests"]) if everything or r["state"] == "pending"]
    rows = [(r["id"], r["key"], r["job"][7:23], r["state"], r["seen"], r["last_seen"][:19]) for r in listed]
    output.data({"requests": listed}, as_json, output.table(("id", "key", "job", "state", "seen", "last seen"), rows))


@command.command("request", epilog=epilog("strongroom policy request 3"))
@click.argument("number", type=int)
@json_option
def request(number: int, as_json: bool) -> None:
    """Show one refused job: why, and what differs from the last allowed one."""
    client = owner()
    found = client.call("GET", f"/v1/requests/{number}")
    output.data(found, as_json, _explain(found, Petnames.load(client.workspace)))


def _explain(found: dict[str, object], names: Petnames) -> list[str]:
    claims = cast(dict[str, Any], found["claims"])
    text = output.facts(
        {
            "key": found["key"],
            "uses": ", ".join(cast(list[str], found["uses"])),
            "job": found["job"],
            **measured({**claims, "measurement": found["measurement"]}),
            "root": f"{claims['root']}{' (SIMULATED)' if claims['simulated'] else ''}",
            "state": found["state"],
        }
    )
    text += ["", "refused because:"] + [f"  - {_plain(r)}" for r in cast(list[str], found["reasons"])]
    changes = cast(list[str], found["difference"])
    text += ["", "changed since the last allowed job:"] + [
        f"  * {_plain(c)}" for c in changes or ["(no job was allowed yet)"]
    ]
    return [*text, "", *_job(cast(dict[str, Any], found["job_document"]), names)]


def _plain(text: str) -> str:
    # What a refused job says of itself is its host's: no control character of it reaches the terminal.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _job(document: dict[str, Any], names: Petnames) -> list[str]:
    text = ["the whole job:"]
    for line in output.facts({f"  {_plain(k)}": json.dumps(v) for k, v in sorted(document.items()) if k != "volumes"}):
        text += textwrap.wrap(line, 118, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    if document.get("unsafe_program_has_keys"):
        text += ["  WARNING: under this LibOS the program can take the named keys themselves, not only what they open"]
    if document.get("unsafe_host_has_keys"):
        text += ["  WARNING: under Occlum whoever runs the machine can take the named keys"]
    volumes = cast(list[dict[str, str]], document["volumes"])
    rows = [
        ("  " + json.dumps(v["name"]), "reads and writes" if v["mode"] == "rw" else "reads", json.dumps(v["key"]),
         names.name(v["owner"]), json.dumps({k: v[k] for k in ("dataset", "epoch") if k in v}))
        for v in volumes
    ]  # fmt: skip
    text += ["", *output.table(("  volume", "use", "key", "owner", "data set"), rows)]
    results = [f"{json.dumps(v['key'])} of {names.name(v['owner'])}" for v in volumes if v["mode"] == "rw"]
    return [*text, "", "its result goes to " + ("key " + " and key ".join(results) if results else "nowhere")]


@command.command(
    "approve",
    epilog=epilog(
        "strongroom policy request 3",
        "strongroom policy approve 3 --unsafe-accept-simulated",
        "strongroom policy approve 3 --measurement 8f3c...",
        "strongroom policy approve 3 --reference job.reference.json --signer builder.pem",
    ),
)
@click.argument("number", type=int)
@click.option("--measurement", metavar="HEX", help="SGX: the MRENCLAVE that you built or computed.")
@click.option(
    "--snp-measurement",
    metavar="HEX",
    help="SEV-SNP: the launch digest that you computed, with kernel, first file system and command line in it.",
)
@click.option(
    "--tdx",
    "registers",
    multiple=True,
    metavar="REGISTER=HEX",
    help="TDX: mrtd and rtmr0 to rtmr3, each once, from a launch on a machine that you trust.",
)
@click.option(
    "--reference", type=click.Path(path_type=Path), help="Signed reference values of the job, in place of the values."
)
@click.option(
    "--signer", "signers", multiple=True, type=click.Path(path_type=Path), help="Certificate of who signed --reference."
)
@unsafe_option
@json_option
def approve(
    number: int,
    measurement: str | None,
    snp_measurement: str | None,
    registers: tuple[str, ...],
    reference: Path | None,
    signers: tuple[Path, ...],
    unsafe_accept_simulated: bool,
    as_json: bool,
) -> None:
    """Allow the job of a pending request: exactly this job in exactly this enclave.

    Evidence of hardware says what its host launched. That it is your job you say: name what the job measures.
    """
    client = owner()
    found = client.call("GET", f"/v1/requests/{number}")
    claims = cast(dict[str, Any], found["claims"])
    _check_simulated(bool(claims["simulated"]), unsafe_accept_simulated)
    if (reference and (measurement or snp_measurement or registers)) or (signers and not reference):
        raise InputError(
            "expected either the values that you computed or --reference with its --signer",
            hint="signed values take the place of --measurement, --snp-measurement and --tdx",
        )
    signed = _signed(reference, signers) if reference else None
    named = dict(signed.values) if signed else {"measurement": measurement, "snp_measurement": snp_measurement}
    named |= _registers(registers)
    _check_named({name: value.lower() for name, value in named.items() if value}, claims)
    if signed and signed.job != found["job"]:
        raise InputError(f"reference: expected values of {found['job']}, got values of {signed.job}")
    added = allow_job(
        client,
        cast(dict[str, object], found["job_document"]),
        measured(claims),
        job=str(found["job"]),
        unsafe_accept_simulated=bool(claims["simulated"]) and unsafe_accept_simulated,
        reference=signed,
        keys=[str(found["key"])],
        request=number,
        claims=claims,
    )
    text = [*_explain(found, Petnames.load(client.workspace)), ""]
    output.data({"request": number, "added": added}, as_json, text + [f"allowed {line}" for line in added])


def _registers(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name.lower() not in TDX_REGISTERS or not value or name.lower() in found:
            raise InputError(f"--tdx {text!r}: expected {', '.join(TDX_REGISTERS)}, each once, as REGISTER=HEX")
        found[name.lower()] = value
    return found


def _check_named(named: Mapping[str, str], claims: Mapping[str, Any]) -> None:
    # Taken from the evidence, the values would let whoever launched it choose the code.
    if claims.get("tee") not in _NAME or not claims.get("measurement"):
        raise InputError(
            f"the request's evidence: expected a measurement of {', '.join(_NAME)}, got {claims.get('tee')!r}"
        )
    shown = measured(claims)
    if named == shown or (claims["simulated"] and claims.get("tee") != "snp" and not named):
        return
    limits = "; ".join(claims.get("limits") or ())
    wrong = [name for name in {**shown, **named} if named.get(name) != shown.get(name)]
    raise InputError(
        "; ".join(
            f"{name}: expected the value that you computed, got {named.get(name) or 'none'}; the evidence says "
            f"{shown.get(name) or 'nothing of it'}"
            for name in wrong
        )
        + (f"; it covers: {limits}" if limits else ""),
        hint=_NAME[str(claims.get("tee"))] + ", or with --reference FILE --signer CERTIFICATE (`strongroom job sign`)",
    )


@command.command("dismiss", epilog=epilog("strongroom policy dismiss 3"))
@click.argument("number", type=int)
def dismiss(number: int) -> None:
    """Dismiss a pending request."""
    owner().call("POST", f"/v1/requests/{number}", {"state": "dismissed"})
    output.say(f"dismissed request {number}")


def _check_simulated(simulated: bool, accepted: bool) -> None:
    if simulated and not accepted:
        raise InputError(
            "this enclave is SIMULATED: no hardware protects it, and whoever runs it can read what is in it",
            hint="repeat with --unsafe-accept-simulated if that is what you want",
        )


def _rego(path: Path) -> str:
    from strongroom.attest.rego import evaluate

    try:
        module = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} is not readable: {exc}", hint="name a Rego module") from exc
    found = evaluate(module, {})  # what it says of nothing does not matter, whether it can be asked does
    if found.startswith(("an error", "no answer", "regopy")):
        raise InputError(f"{path}: {found}", hint="package policy, and a rule `allow`")
    return module


def _free(text: str) -> FreeArgument:
    index, equals, pattern = text.partition("=")
    if not equals or not index.isdigit():
        raise InputError(f"--free {text!r}: expected N=PATTERN", hint="--free '2=[0-9]{4}'")
    try:
        re.compile(pattern)
    except re.error as exc:
        raise InputError(f"--free {text!r}: not a pattern: {exc}") from exc
    return FreeArgument(int(index), pattern)
