"""`strongroom job`, and what `run` and `spark-submit` share with it: plan, approve, run, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from strongroom._unix import write_whole
from strongroom.cli import output
from strongroom.cli.common import PATH, SWAP, check_simulated, epilog, has_swap, json_option, settings, workspace
from strongroom.cli.measured import measured_options, measured_values
from strongroom.client.job_files import parse_venv, read_job_file
from strongroom.client.jobs import JobRunner
from strongroom.client.petnames import Petnames
from strongroom.client.volumes import NOT_YET, Datasets, VolumeRequest, parse_volume, with_known_paths
from strongroom.client.workspace import Workspace
from strongroom.errors import InputError, from_code
from strongroom.jobs.plan import Bundle, LaunchPlan, Outcome, describe
from strongroom.jobs.registry import ENCLAVES
from strongroom.jobs.spec import JobSpec, Limits, Sandbox

if TYPE_CHECKING:
    from strongroom.client.owner import OwnerClient
    from strongroom.storage.info import DatasetInfo
    from strongroom.storage.places import Place

__all__ = ["command", "execute", "job_options", "plan_file", "submit"]

_F = TypeVar("_F", bound=Callable[..., Any])
_RUN_OPTIONS = (
    click.option("--approve", is_flag=True, help="As owner, allow this job on your keys before it runs."),
    click.option("--unsafe-accept-simulated", is_flag=True, help="With --approve: accept the SIMULATED root."),
    click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the outcome as JSON; the program's output goes to standard error.",
    ),
)
_OPTIONS = (
    click.option(
        "--volume",
        "volumes",
        multiple=True,
        metavar="NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]",
        help="A sealed data set as /work/NAME; KEY and rw make a new one. KEY@OWNER for another owner's.",
    ),
    click.option(
        "--env", "environment", multiple=True, metavar="NAME=VALUE", help="An environment variable of the program."
    ),
    click.option(
        "--file",
        "files",
        multiple=True,
        type=PATH,
        help="A further measured file beside the program.",
    ),
    click.option(
        "--venv",
        metavar="FOLDER",
        help="The program's packages: of `strongroom env build`, a virtual environment, a prefix or a folder.",
    ),
    click.option("--network", is_flag=True, help="Let the program see the host's network."),
    click.option(
        "--scratch-mb", type=int, default=4096, show_default=True, help="Enclave memory for /work and for /tmp."
    ),
    click.option(
        "--max-runtime", type=int, default=86_400, show_default=True, help="Seconds after which the program is stopped."
    ),
    click.option("--publish-on-failure", is_flag=True, help="Commit outputs even if the program fails."),
    click.option(
        "--checkpoint-every",
        type=int,
        default=0,
        metavar="SECONDS",
        help="Commit what a Python program has written so far, again and again; a new run goes on from there.",
    ),
    *_RUN_OPTIONS,
)


def job_options(function: _F) -> _F:
    """Add the options that every way of running a job has but a job file, which says most of it itself."""
    return _with(_OPTIONS, function)


def _run_options(function: _F) -> _F:
    return _with(_RUN_OPTIONS, function)


def _with(options: Sequence[Callable[[_F], _F]], function: _F) -> _F:
    for option in reversed(options):
        function = option(function)
    return function


def submit(spec: JobSpec, options: dict[str, Any]) -> int:
    """Run a job with the shared options applied; return the exit status."""
    environment = {}
    for item in options["environment"]:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--env {item!r}: expected NAME=VALUE")
        environment[name] = value
    changed = replace(
        spec,
        environment={**spec.environment, **environment},
        files=(*spec.files, *options["files"]),
        venv=parse_venv(options["venv"]),
        sandbox=Sandbox(network=options["network"], scratch_mb=options["scratch_mb"]),
        limits=Limits(max_runtime_s=options["max_runtime"]),
        publish_on_failure=options["publish_on_failure"],
        checkpoint_s=options["checkpoint_every"],
    )
    return execute(changed, [parse_volume(v) for v in options["volumes"]], options)


def execute(spec: JobSpec, volumes: Sequence[VolumeRequest], options: dict[str, Any]) -> int:
    """Plan, build, approve if asked, run, and report; return the exit status."""
    here = workspace()
    runner, plan = _plan(here, spec, volumes, dry=options["dry_run"])
    if options["dry_run"]:
        output.data(describe(plan), True, [])
        return 0
    bundle = runner.build(plan)
    if options["approve"]:
        _approve(here, plan, bundle, options["unsafe_accept_simulated"])
    if bundle.simulated and (plan.document["volumes"] or plan.spec.keys) and has_swap():
        output.say(f"warning: {SWAP}")
    outcome = runner.run(plan, bundle, output_to_stderr=options["as_json"])
    return report(outcome, plan, bundle, options["as_json"])


def _plan(
    here: Workspace, spec: JobSpec, volumes: Sequence[VolumeRequest], *, dry: bool
) -> tuple[JobRunner, LaunchPlan]:
    # Paths of sealed data in the arguments are made to work inside.
    runner = JobRunner(here, settings(), lambda line: output.say(f"{line} ..."))
    arguments, known = with_known_paths(spec.arguments, volumes)
    return runner, runner.plan(replace(spec, arguments=arguments), known, _datasets(here, dry=dry))


def _datasets(here: Workspace, *, dry: bool) -> Datasets:
    def create(key: str, at: Place) -> DatasetInfo:
        from strongroom.client.new_datasets import new_dataset
        from strongroom.client.owner import OwnerClient
        from strongroom.storage.info import DatasetInfo, write_info

        if dry:
            return DatasetInfo(dataset=NOT_YET, key=key, owner=here.owner)
        with new_dataset(OwnerClient(here), key, at) as info:
            write_info(at, info)
        return info

    return create


def _approve(here: Workspace, plan: LaunchPlan, bundle: Bundle, unsafe_accept_simulated: bool) -> None:
    from strongroom.client.owner import OwnerClient
    from strongroom.client.policies import allow_job

    check_simulated(bundle.simulated, unsafe_accept_simulated)
    if not plan.document["volumes"] and not plan.spec.keys:
        return
    allow_job(
        OwnerClient(here),
        plan.document,
        bundle.values,
        job=plan.job,
        unsafe_accept_simulated=bundle.simulated,
        keep=True,
    )


def report(outcome: Outcome, plan: LaunchPlan, bundle: Bundle, as_json: bool) -> int:
    """Say how a run ended; return the exit status: the program's own, or 1."""
    mark = " (SIMULATED enclave)" if bundle.simulated else ""
    if as_json:
        value = {
            "outcome": outcome.status,
            "exit_code": outcome.exit_code,
            "job": plan.job,
            "measurement": str(outcome.details.get("measurement", "")),
            "simulated": bundle.simulated,
            "error": dict(outcome.error),
            "details": dict(outcome.details),
        }
        output.data(value, True, [])
    elif outcome.error:
        error = cast(dict[str, Any], outcome.error)
        details = cast(dict[str, object], error.get("details") or {})
        hint = str(error.get("hint", ""))
        if details.get("request") is not None:
            hint = "the owner: " + _look(details["request"])
        if details.get("refused"):
            details, asked = _each_owner(cast(list[dict[str, Any]], details["refused"]), Petnames.load(workspace()))
            hint = asked or hint
        output.fail(from_code(str(error["code"]), str(error["message"]), hint=hint, details=details))
    if not as_json:
        committed = cast(dict[str, Any], outcome.details.get("committed") or {})
        done = "".join(f", {name} committed (epoch {head['epoch']})" for name, head in committed.items())
        held = cast(list[str], outcome.details.get("held") or [])
        done += "".join(f", {name} waits for its owner (`strongroom output list`)" for name in held)
        for name, left in cast(dict[str, dict[str, str]], outcome.details.get("left_out") or {}).items():
            for path, reason in left.items():
                output.say(f"strongroom: {name} cannot hold {path}, {reason}: left out, or as it was before")
        code = f", exit code {outcome.exit_code}" if outcome.exit_code is not None else ""
        output.say(f"strongroom: {outcome.status}{code}{done}{mark}")
        if 0 < (outcome.exit_code or 0) < 128 and not outcome.error and (hint := _why(plan)):
            output.hint(hint)
        if outcome.exit_code == 0 and outcome.details.get("gone") is True:
            staged = plan.document.get("staged") is True
            output.say(f"strongroom: what the program wrote to /work {_OUTSIDE if staged else _NOT_SPARK} is gone")
            output.hint(_KEEP if staged else _KEEP_SPARK)
    if outcome.status == "completed" and outcome.exit_code is not None:
        return outcome.exit_code
    return 1


_OUTSIDE, _NOT_SPARK = "outside its volumes", "without Spark"
_KEEP = "--volume NAME=PATH:KEY:rw keeps what is written to PATH, where an argument names it, or /work/NAME"
_KEEP_SPARK = "/work/NAME keeps what Spark or strongroom.models writes; under `strongroom run` also what open() does"


def _why(plan: LaunchPlan) -> str:
    # The program has an errno of its kernel's, and nothing says why.
    unseen = next((a for a in plan.spec.arguments if not a.startswith("/work") and os.path.exists(a)), None)
    if unseen is not None:
        kind = "folder" if os.path.isdir(unseen) else "file"
        return f"{unseen} is a {kind} of this machine, which the program does not see: seal it, or name a sealed one"
    return _writable(plan.document) if plan.document.get("staged") is True else ""


def _writable(document: Mapping[str, object]) -> str:
    volumes = cast(list[dict[str, object]], document["volumes"])
    kept = "".join(f"/work/{v['name']} (kept if the program ends well), " for v in volumes if v["mode"] == "rw")
    return f"if it could not write: a program may write to {kept}/work and /tmp (gone at the end)"


def _look(number: object) -> str:
    return f"`strongroom policy request {number}`, then `strongroom policy approve {number}`"


def _each_owner(refused: list[dict[str, Any]], names: Petnames) -> tuple[dict[str, object], str]:
    # A refusal of several keys, by the names that people here know.
    reasons = [f"key {r['key']!r} of {names.name(r['owner'])}: {reason}" for r in refused for reason in r["reasons"]]
    waiting = [f"{names.name(r['owner'])}: {_look(r['request'])}" for r in refused if r.get("request") is not None]
    return {"reasons": reasons}, ("each owner in their own workspace; " if waiting else "") + "; ".join(waiting)


@click.group("job")
def command() -> None:
    """Jobs from a job file (TOML)."""


def plan_file(
    path: Path, client: OwnerClient | None = None, *, dry: bool = False, enclave: str | None = None
) -> tuple[JobRunner, LaunchPlan]:
    """Return runner and plan of the job in a file, for another kind of enclave if one is named."""
    spec, volumes = read_job_file(path)
    spec = replace(spec, enclave=enclave or spec.enclave)
    return _plan(client.workspace if client else workspace(), spec, volumes, dry=dry)


_JOB_FILE = click.argument("job_file", type=PATH)


@command.command(
    "build", epilog=epilog("strongroom job build job.toml", "strongroom job build job.toml --enclave gramine")
)
@_JOB_FILE
@click.option("--enclave", type=click.Choice(ENCLAVES), default=None, help="Instead of the job file's kind.")
@json_option
def build(job_file: Path, enclave: str | None, as_json: bool) -> None:
    """Build the bundle of JOB_FILE and print its reference values, or what remains to be done to have them."""
    runner, plan = plan_file(job_file, enclave=enclave)
    bundle = runner.build(plan)
    value = {
        "job": bundle.job,
        **({"measurement": ""} if bundle.remaining else bundle.values),
        "simulated": bundle.simulated,
        "bundle": str(bundle.folder),
    }
    text = output.facts(value)
    output.data({**value, "remaining": list(bundle.remaining)} if bundle.remaining else value, as_json, text)
    for number, step in enumerate(bundle.remaining, 1):
        output.say(f"{number}. {step}")


@command.command("sign", epilog=epilog("strongroom job sign job.toml", "strongroom job sign job.toml --out ref.json"))
@_JOB_FILE
@click.option("--out", type=PATH, help="Default: JOB_FILE's name with .reference.json.")
@measured_options
@json_option
def sign(job_file: Path, out: Path | None, named: dict[str, str], as_json: bool) -> None:
    """Build JOB_FILE and sign its reference values (in-toto, DSSE), for owners who import them into policies.

    A build does not know what TDX and Occlum measure: their values are signed as you name them.
    """
    from strongroom.attest.reference import ReferenceValues, sign_reference
    from strongroom.crypto.x509 import private_key_from_pem, spki_id

    runner, plan = plan_file(job_file)
    bundle = runner.build(plan)
    named = measured_values(bundle, plan.spec.enclave, named)
    key = private_key_from_pem((workspace().folder / "owner.key").read_bytes())
    values = ReferenceValues(
        name=plan.spec.name,
        job=plan.job,
        document=plan.document,
        values=named,
        simulated=bundle.simulated,
    )
    target = out or job_file.with_suffix(".reference.json")
    write_whole(target, sign_reference(values, key))
    mark = " (SIMULATED)" if bundle.simulated else ""
    found = {"job": plan.job, **named, "signer": spki_id(key.public_key())}
    text = output.facts({**found, **{name: value + mark for name, value in named.items()}, "file": str(target)})
    text += [f"an owner: `strongroom policy import KEY {target.name} --signer {workspace().folder / 'owner.pem'}`"]
    output.data({**found, "simulated": bundle.simulated, "file": str(target)}, as_json, text)


@command.command(
    "diff",
    epilog=epilog(
        "strongroom job diff .strongroom/bundles/0ad1b2c3d4e5f607 .strongroom/bundles/f9e8d7c6b5a40312",
        "strongroom job diff .strongroom/bundles/gramine-0ad1b2c3d4e5f607     the last two builds of one bundle",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False))
@click.argument("other", type=click.Path(path_type=Path, file_okay=False), required=False)
@json_option
def diff(bundle: Path, other: Path | None, as_json: bool) -> None:
    """Say why two builds differ: the measurement, the job, settings of the enclave, and each measured file."""
    from strongroom.jobs.differences import known_to_both, read_build
    from strongroom.kms.policies import difference

    old, new = known_to_both(read_build(bundle, before=other is None), read_build(other or bundle))
    found, measured = difference(old, new), "measurement" in old
    same = "no difference: the same measurement"
    if not measured:
        same = "no difference in what was built; what was measured is not known of both, and may differ"
    output.data({"differences": found, "measured": measured}, as_json, found or [same])


@command.command("show", epilog=epilog("strongroom job show job.toml"))
@_JOB_FILE
def show(job_file: Path) -> None:
    """Print the plan of JOB_FILE: the job document and what it does not cover."""
    _, plan = plan_file(job_file, dry=True)
    output.data(describe(plan), True, [])


@command.command("run", epilog=epilog("strongroom job run job.toml", "strongroom job run job.toml --json"))
@_JOB_FILE
@_run_options
def run(job_file: Path, **options: Any) -> int:
    """Run the job in JOB_FILE; exit with the program's own status, or 1 if it did not run."""
    return execute(*read_job_file(job_file), options)
