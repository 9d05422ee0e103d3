"""The half of `strongroom policy` about refused jobs that wait for their owner: requests, request, approve, dismiss."""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from strongroom._unix import read_text
from strongroom.attest.policies import TCB_STATUSES, TDX_REGISTERS, TcbStatus
from strongroom.cli import output
from strongroom.cli.common import PATH, check_simulated, epilog, json_option, owner, root_option, unsafe_option
from strongroom.cli.measured import measured_options
from strongroom.client.petnames import Petnames
from strongroom.client.policies import allow_job, measured
from strongroom.errors import InputError

if TYPE_CHECKING:
    from strongroom.attest.reference import ReferenceValues
    from strongroom.client.owner import OwnerClient

__all__ = ["approve", "dismiss", "request", "requests", "signed_values", "tcb_options"]

_BUILD = "`strongroom job build` of the same job computes it; repeat with"
_NAME = {
    "sgx": f"{_BUILD} --measurement HEX",
    "snp": f"{_BUILD} --snp-measurement HEX",
    "tdx": "launch the same job on a machine that you trust; repeat with --tdx REGISTER=HEX for "
    + ", ".join(TDX_REGISTERS),
}


def tcb_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what its owner accepts of platforms that are not up to date, as its argument `tcb`."""

    @click.option(
        "--tcb-status",
        "statuses",
        multiple=True,
        type=click.Choice(TCB_STATUSES[1:]),
        help="Accept platforms of this status too, by its maker's word; without it: UpToDate alone.",
    )
    @click.option("--advisory", "advisories", multiple=True, metavar="ID", help="Which advisories may apply to them.")
    @functools.wraps(function)
    def command(*given: Any, statuses: tuple[str, ...], advisories: tuple[str, ...], **rest: Any) -> Any:
        return function(*given, tcb=TcbStatus((TCB_STATUSES[0], *statuses), advisories), **rest)

    return command


@click.command("requests", epilog=epilog("strongroom policy requests"))
@click.option("--all", "everything", is_flag=True, help="Also approved and dismissed ones.")
@json_option
def requests(everything: bool, as_json: bool) -> None:
    """List refused jobs that wait for you."""
    found = owner().call("GET", "/v1/requests")
    listed = [r for r in cast(list[dict[str, Any]], found["requests"]) if everything or r["state"] == "pending"]
    rows = [(r["id"], r["key"], r["job"][7:23], r["state"], r["seen"], r["last_seen"][:19]) for r in listed]
    output.data({"requests": listed}, as_json, output.table(("id", "key", "job", "state", "seen", "last seen"), rows))


@click.command("request", epilog=epilog("strongroom policy request 3"))
@click.argument("number", type=int)
@json_option
def request(number: int, as_json: bool) -> None:
    """Show one refused job: why, and what differs from the last allowed one."""
    client = owner()
    found = _refused(client, number)
    output.data(found, as_json, _explain(found, Petnames.load(client.workspace)))


def _refused(client: OwnerClient, number: int) -> dict[str, object]:
    found = client.call("GET", f"/v1/requests/{number}")
    if "reasons" not in found:  # what is allowed is kept under a number too, for later differences
        raise InputError(f"{number} is no refused job: you allowed it yourself", hint="`strongroom policy requests`")
    return found


def _explain(found: dict[str, object], names: Petnames) -> list[str]:
    claims = cast(dict[str, Any], found["claims"])
    text = output.facts(
        {
            "key": found["key"],
            "uses": ", ".join(cast(list[str], found["uses"])),
            "job": found["job"],
            **measured({**claims, "measurement": found["measurement"]}),
            "root": _root(claims),
            "state": found["state"],
        }
    )
    text += ["", "refused because:"] + [f"  - {r}" for r in cast(list[str], found["reasons"])]
    changes = cast(list[str], found["difference"])
    text += ["", "changed since the last allowed job:"] + [f"  * {c}" for c in changes or ["(no job was allowed yet)"]]
    return [*text, "", *_job(cast(dict[str, Any], found["job_document"]), names)]


def _root(claims: dict[str, Any]) -> str:
    if claims["root"] == "own":
        return f"own, no maker's: {claims['root_fingerprint']}"
    return f"{claims['root']}{' (SIMULATED)' if claims['simulated'] else ''}"


def _job(document: dict[str, Any], names: Petnames) -> list[str]:
    text = ["the whole job:"]
    for line in output.facts({f"  {k}": json.dumps(v) for k, v in sorted(document.items()) if k != "volumes"}):
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


@click.command(
    "approve",
    epilog=epilog(
        "strongroom policy request 3",
        "strongroom policy approve 3 --unsafe-accept-simulated",
        "strongroom policy approve 3 --measurement 8f3c...",
        "strongroom policy approve 3 --measurement 8f3c... --tcb-status SWHardeningNeeded --advisory INTEL-SA-00615",
        "strongroom policy approve 3 --reference job.reference.json --signer builder.pem",
    ),
)
@click.argument("number", type=int)
@click.option("--reference", type=PATH, help="Signed reference values of the job, in place of the values.")
@click.option("--signer", "signers", multiple=True, type=PATH, help="Certificate of who signed --reference.")
@measured_options
@root_option
@tcb_options
@unsafe_option
@json_option
def approve(
    number: int,
    named: dict[str, str],
    reference: Path | None,
    signers: tuple[Path, ...],
    root: str,
    tcb: TcbStatus,
    unsafe_accept_simulated: bool,
    as_json: bool,
) -> None:
    """Allow the job of a pending request: exactly this job in exactly this enclave.

    Evidence of hardware says what its host launched. That it is your job you say: name what the job measures.
    """
    client = owner()
    found = _refused(client, number)
    claims = cast(dict[str, Any], found["claims"])
    check_simulated(bool(claims["simulated"]), unsafe_accept_simulated)
    if (reference and named) or (signers and not reference):
        raise InputError(
            "expected either the values that you computed or --reference with its --signer",
            hint="signed values take the place of --measurement, --snp-measurement and --tdx",
        )
    _check_root(root.lower(), claims)
    signed = signed_values(reference, signers) if reference else None
    _check_named(signed.values if signed else named, claims)
    if signed and signed.job != found["job"]:
        raise InputError(f"reference: expected values of {found['job']}, got values of {signed.job}")
    added = allow_job(
        client,
        cast(dict[str, object], found["job_document"]),
        measured(claims),
        job=str(found["job"]),
        unsafe_accept_simulated=bool(claims["simulated"]) and unsafe_accept_simulated,
        reference=signed,
        root=root,
        tcb=tcb,
        keys=[str(found["key"])],
        request=number,
        claims=claims,
    )
    text = [*_explain(found, Petnames.load(client.workspace)), ""]
    output.data({"request": number, "added": added}, as_json, text + [f"allowed {line}" for line in added])


def _check_root(root: str, claims: Mapping[str, object]) -> None:
    got = str(claims["root_fingerprint"])
    if root not in ("", got) or (not root and claims["root"] == "own"):
        raise InputError(
            f"root: expected {root or 'one of a hardware maker'}, got {got}",
            hint="no maker's root: repeat with --root if you know whose it is, and want to believe it"
            if claims["root"] == "own"
            else "the evidence is under another root than --root names",
        )


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


@click.command("dismiss", epilog=epilog("strongroom policy dismiss 3"))
@click.argument("number", type=int)
def dismiss(number: int) -> None:
    """Dismiss a pending request."""
    owner().call("POST", f"/v1/requests/{number}", {"state": "dismissed"})
    output.say(f"dismissed request {number}")


def signed_values(file: Path, signers: Sequence[Path]) -> ReferenceValues:
    """Return the reference values in `file`, signed by one of `signers`, files of certificates."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from strongroom.attest.reference import open_reference
    from strongroom.crypto.x509 import certificate_from_pem

    known = [certificate_from_pem(read_text(signer, "a certificate in PEM")).public_key() for signer in signers]
    return open_reference(file.read_bytes(), [k for k in known if isinstance(k, ec.EllipticCurvePublicKey)])
