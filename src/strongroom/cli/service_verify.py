"""`strongroom service build` and `verify`: the trust service for a TEE, and whether it is that code, in one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strongroom._unix import write_whole
from strongroom.attest.findings import Policy
from strongroom.attest.policies import (
    AllOf,
    Measurement,
    NotDebug,
    SnpMeasurement,
    TcbStatus,
    UnsafeAcceptSimulated,
)
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, workspace
from strongroom.cli.endorsements import snp_settings
from strongroom.cli.evidence import Choices, bundle_option, read_policy, trusted_choices
from strongroom.cli.verdicts import Verdict, failed, judged
from strongroom.errors import AttestationError, InputError

if TYPE_CHECKING:
    from strongroom.client.evidence import Shown

__all__ = ["build", "judge_service", "measure", "verify"]

_HINTS = {
    "root": "this is for trials alone: repeat with --unsafe-accept-simulated",
    "policy": "name the code: --measurement, or a policy that does in every branch",
    "administrator": "it was set up elsewhere, or for somebody else, who can do more there than you",
    "identity": "the workspace was made for another trust service, or it is locked: a first look needs it unlocked",
    "root_key": "whoever owns the machine has its identity too: `strongroom service rotate-root --kind shares`, of a "
    "service that was set up on a machine of your own",
}
_FETCH = (
    "if endorsements for its machine are missing: `--out quote.bin`, `strongroom attest endorsements fetch quote.bin "
    "--out bundle.json`, `--endorsements bundle.json`"
)
_VM_MEMORY_MB = 2048
_OTHER = "compare it with your own build of the service, and give this one nothing meanwhile"


@click.command("measure", epilog=epilog("strongroom service measure"))
@json_option
def measure(as_json: bool) -> None:
    """Print what a SIMULATED platform measures of this installation, for `service verify --measurement`."""
    from strongroom.attest.simulated.process import own_measurement

    value = own_measurement().hex()
    output.data({"measurement": value, "simulated": True}, as_json, [value])
    output.say(
        "SIMULATED: Strongroom's own files and Python's version; a hardware enclave measures all that runs in it"
    )


@click.command(
    "verify",
    epilog=epilog(
        "strongroom service verify --measurement 89d2957f... --pin",
        "strongroom service verify --measurement 89d2957f... --out quote.bin",
        "strongroom service verify --policy service.json --endorsements sgx-00906ed50000.json",
        "strongroom service verify --measurement 89d2957f... --identity identity.pem --pin",
        "strongroom service verify --measurement $(strongroom service measure) --unsafe-accept-simulated",
    ),
)
@click.option(
    "--measurement", metavar="HEX", help="Of the service that you built: MRENCLAVE (SGX) or launch digest (SEV-SNP)."
)
@click.option("--policy", "policy_file", type=PATH, help="What is acceptable instead (JSON).")
@bundle_option
@snp_settings
@click.option("--unsafe-accept-simulated", is_flag=True, help="Accept the SIMULATED root: no hardware protects it.")
@click.option(
    "--identity",
    type=PATH,
    help="At first: identity.pem of the service that was made for you (`owner request --first`).",
)
@click.option(
    "--out",
    type=PATH,
    help="Write its evidence here, accepted or not: `attest endorsements fetch` takes it.",
)
@click.option("--pin", is_flag=True, help="If accepted: expect it at every connection of this workspace from now on.")
@json_option
def verify(
    measurement: str | None,
    policy_file: Path | None,
    bundle: Path | None,
    settings: dict[str, str],
    unsafe_accept_simulated: bool,
    identity: Path | None,
    out: Path | None,
    pin: bool,
    as_json: bool,
) -> int:
    """Ask the trust service for evidence of its TEE, and judge it: one page with every check.

    With --identity, in a workspace that knows no service yet, it has to have been made in its TEE for this owner.
    """
    from strongroom.client.evidence import Pin, ask
    from strongroom.client.owner import OwnerClient
    from strongroom.client.setup import accept_look, first_look

    here = workspace()
    if bool(identity) == bool(here.identity):
        raise InputError(
            "--identity: expected in a workspace that knows no service yet, and there alone",
            hint="`strongroom owner request --first` makes one",
        )
    policy = _policy(measurement, policy_file, unsafe_accept_simulated)
    none_here = bundle is None and here.service != "" and not here.service.startswith("/")  # it is on another machine
    choices = [] if none_here else trusted_choices(bundle, settings, of_service=False)
    with first_look(here, identity) if identity else nullcontext(here) as looked:
        shown = ask(OwnerClient(looked).send)
        if out is not None:
            write_whole(out, shown.evidence.quote)
            output.say(f"wrote {out}: what the service showed, {shown.evidence.tee}; nothing of it is believed yet")
        admin = here.owner if identity else ""
        verdict = judge_service(shown, looked.identity, policy, choices, now=datetime.now(UTC), admin=admin)
        if pin and verdict.accepted and verdict.claims is not None:
            where = bundle.resolve() if bundle else here.service_folder / "endorsements"
            root, kind = verdict.claims.root_fingerprint, "simulated" if verdict.claims.simulated else "hardware"
            Pin(policy=policy, root=root, kind=kind, endorsements=str(where), settings=settings).save(looked.folder)
        if identity and verdict.accepted:
            accept_look(here, looked)
    output.data({**verdict.to_json(), "locked": shown.locked}, as_json, verdict.page())
    if identity and verdict.accepted:
        output.hint(
            "`strongroom service rotate-root --kind tee`: until then nobody has shares, and the TEE alone its keys"
        )
    if pin:
        output.say("pinned: every command asks for it first" if verdict.accepted else "not pinned")
    return 0 if verdict.accepted else 1


def judge_service(
    shown: Shown, identity: str, policy: Policy, choices: Choices, *, now: datetime, admin: str = ""
) -> Verdict:
    """Return the verdict on what a service showed: on its evidence under `policy`, and what the evidence is for."""
    verdict = judged(shown.evidence, policy, choices, now=now)
    if verdict.claims is None:
        return replace(verdict, hint=f"{verdict.hint}; {_FETCH}")
    try:
        own = shown.findings(verdict.claims, identity, now=now, admin=admin)
    except AttestationError as exc:
        own = [failed(exc)]
    checks = (*verdict.checks, *own)
    hints = dict.fromkeys(_HINTS.get(check.check, _OTHER) for check in checks if not check.passed)
    return replace(verdict, checks=checks, hint="; ".join(hints))


def _policy(measurement: str | None, file: Path | None, simulated: bool) -> Policy:
    if (measurement is None) == (file is None):
        raise InputError("say what the service has to be", hint="--measurement HEX or --policy FILE")
    waiver = [UnsafeAcceptSimulated()] if simulated else []
    if file is not None:
        return AllOf((read_policy(file), *waiver)) if waiver else read_policy(file)
    value = (str(measurement).lower(),)
    code = SnpMeasurement(value) if len(value[0]) == 96 else Measurement(value)
    return AllOf((code, TcbStatus(), NotDebug(), *waiver))


@click.command(
    "build",
    epilog=epilog(
        "strongroom service build service-bundle",
        "strongroom service build service-vm --enclave cvm --kernel /boot/vmlinuz-6.16.0 --firmware OVMF.amdsev.fd",
    ),
)
@click.argument("folder", type=PATH)
@click.option(
    "--enclave", type=click.Choice(["gramine", "cvm"]), default="gramine", help="SGX, or a VM in SEV-SNP or TDX."
)
@click.option("--kernel", type=PATH, help="cvm: the VM's kernel, Linux 6.7 or later.")
@click.option("--modules", type=PATH, help="cvm: the folder of its modules, if 9p, virtio and the TEE's are not in it.")
@click.option("--firmware", type=PATH, help="cvm: OVMF for SEV-SNP; its launch digest covers it.")
@json_option
def build(
    folder: Path, enclave: str, kernel: Path | None, modules: Path | None, firmware: Path | None, as_json: bool
) -> None:
    """Build the trust service into FOLDER, for a TEE; print its measurement, or what remains to have it.

    The same packages give the same measurement on any machine, whoever it will serve. Whoever runs it puts the request
    of its first owner (`owner request --first`) there as launch/admin.pem; its state is in service/.
    """
    from strongroom.config import Settings
    from strongroom.jobs.enclaves import cvm, gramine
    from strongroom.jobs.runtimes import Runtimes
    from strongroom.jobs.spec import Cvm

    named = {"kernel": kernel, "modules": modules, "firmware": firmware}
    given: dict[str, Any] = {name: str(path.resolve()) for name, path in named.items() if path is not None}
    if given and enclave != "cvm":
        raise InputError(f"--{next(iter(given))}: expected with --enclave cvm, got {enclave}")
    runtimes = Runtimes(Settings.from_environment().cache / "runtimes", output.say)
    if enclave == "cvm":
        bundle = cvm.build_service(runtimes, folder, Cvm(**given, memory_mb=_VM_MEMORY_MB))
    else:
        bundle = gramine.build_service(runtimes, folder)
    value = {"bundle": str(bundle.folder), "measurement": "" if bundle.remaining else bundle.measurement}
    output.data({**value, "remaining": list(bundle.remaining)}, as_json, output.facts(value))
    for number, step in enumerate(bundle.remaining, 1):
        output.say(f"{number}. {step}")
