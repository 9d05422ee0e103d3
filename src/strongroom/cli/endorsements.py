"""`strongroom attest endorsements`: what the makers publish, fetched and carried. Verifying fetches nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from strongroom._encoding import parse_json
from strongroom._unix import read_text
from strongroom.attest.endorsement_files import SOON_DAYS, end_of, ends, read_folder
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, workspace
from strongroom.errors import EndorsementError, InputError

if TYPE_CHECKING:
    from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements
    from strongroom.attest.endorsements import TrustAnchor
    from strongroom.attest.evidence import Evidence

__all__ = ["anchor_option", "command", "read_anchor", "snp_settings", "state"]

anchor_option = click.option(
    "--anchor", "anchor_file", type=PATH, help="Certificate of a root beside Intel's and AMD's."
)


def snp_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what an owner may ask of every platform under AMD's root, as its argument `settings`."""

    @click.option(
        "--minimum-tcb",
        "floors",
        multiple=True,
        metavar="PROCESSOR=VERSIONS",
        help="AMD: lowest bootloader.tee.snp.microcode, with fmc. first for Turin, of a processor: "
        "family-model-stepping.",
    )
    @click.option(
        "--minimum-abi", default="", help="AMD: lowest firmware interface that a guest's policy must ask for."
    )
    @click.option("--no-smt", is_flag=True, help="AMD: refuse guests that may share a core's threads with others.")
    @click.option("--cxl", is_flag=True, help="AMD: accept guests whose memory may lie behind CXL.")
    @click.option("--vlek", metavar="PROVIDER", default="", help="AMD: accept that cloud provider's keys (VLEK) too.")
    @functools.wraps(function)
    def command(
        *given: Any, floors: tuple[str, ...], minimum_abi: str, no_smt: bool, cxl: bool, vlek: str, **rest: Any
    ) -> Any:
        settings = {"minimum_tcb": ",".join(floors), "minimum_abi": minimum_abi, "smt": "refused" if no_smt else ""}
        settings |= {"cxl": "allowed" if cxl else "", "vlek": vlek}
        return function(*given, settings={name: value for name, value in settings.items() if value}, **rest)

    return command


@click.group("endorsements")
def command() -> None:
    """What the makers of the hardware publish: certificates, TCB info, revocation lists."""


@command.command(
    "fetch",
    epilog=epilog(
        "strongroom attest endorsements fetch quote.bin",
        "strongroom attest endorsements fetch report.bin --product Milan --out bundle.json",
        "strongroom attest endorsements fetch quote.bin --from https://pccs.example:8081 --ca-file pccs.pem",
    ),
)
@click.argument("evidence", type=PATH)
@click.option("--from", "source", metavar="URL", help="A PCCS, or a cache of AMD's KDS; without it the maker itself.")
@click.option("--ca-file", type=PATH, help="What that service's TLS certificate is under.")
@click.option("--product", type=click.Choice(["Milan", "Genoa", "Turin"]), help="SNP, for reports of version 2.")
@click.option(
    "--update",
    type=click.Choice(["standard", "early"]),
    default="standard",
    show_default=True,
    help="Intel: the TCB info that is in force, or the one that soon will be.",
)
@click.option("--edition", type=int, help="Intel's tcbEvaluationDataNumber, instead of --update.")
@click.option("--renew", is_flag=True, help="Even if those at hand hold for more than a week.")
@click.option("--out", type=PATH, help="Write a bundle to carry to another machine instead.")
@anchor_option
def fetch(
    evidence: Path,
    source: str | None,
    ca_file: Path | None,
    product: str | None,
    update: str,
    edition: int | None,
    renew: bool,
    out: Path | None,
    anchor_file: Path | None,
) -> None:
    """Fetch what verifying EVIDENCE (as `attest show` reads it) takes, and verify it once with that."""
    from strongroom.attest.endorsement_files import anchor_of, file_name, write_bundle
    from strongroom.attest.quote import trimmed
    from strongroom.attest.verifiers.choose import asking_nothing
    from strongroom.cli.evidence import read_evidence

    (proof, _), now, folder = read_evidence(evidence), datetime.now(UTC), _folder(out)
    if proof.tee == "snp":
        plan = _plan_snp(proof.quote, product)
    else:
        proof = replace(proof, quote=trimmed(proof.quote))
        plan = _plan_intel(proof.quote, update, edition)
    known = _known(folder, plan.file) if folder else None
    wanted = renew or out or edition is not None or update == "early"
    if known is not None and not wanted and _holds(known, anchor_file, proof, now):
        output.say(f"those at hand verify {evidence} and hold for more than {SOON_DAYS} days: nothing fetched")
        return
    found = plan.fetch(source, read_text(ca_file, "a certificate in PEM") if ca_file else "", known)
    anchor = anchor_of(found, read_anchor(anchor_file))
    claims = asking_nothing(anchor, found, proof).verify(proof, found, now=now)
    found = _no_older(anchor, found, folder)
    target = out or cast(Path, folder) / file_name(found)
    write_bundle(target, anchor, [found])
    output.say(f"wrote {target}: {evidence} verifies with it, {plan.said or f'TCB status {claims.tcb_status}'}")
    _say_end(found, now)
    if not out:
        output.hint(f"`strongroom service trust {target}{plan.floor}, if the service does not believe this root yet")


@dataclass(frozen=True)
class _Plan:
    """What to fetch for one machine, and what to say of it."""

    file: str
    fetch: Callable[[str | None, str, AnyEndorsements | None], AnyEndorsements]
    said: str = ""
    floor: str = "`"


def _plan_snp(raw: bytes, product: str | None) -> _Plan:
    from strongroom.attest.endorsement_fetch import AMD_KDS, MakerService, fetch_snp
    from strongroom.attest.snp import parse_report

    report = parse_report(raw)
    line, tcb, vlek = product or report.line, report.tcb("reported_tcb"), report.signer == "vlek"
    if line is None:
        raise InputError("a report of version 2 does not name its product line", hint="--product Milan, or Genoa")
    return _Plan(
        f"snp-sev-{'vlek-' * vlek}{line.lower()}.json",
        lambda source, ca_pem, known: fetch_snp(
            MakerService(source or AMD_KDS, ca_pem=ca_pem), report, line, cast("SNPEndorsements | None", known)
        ),
        f"it calls itself {report.processor} with TCB {tcb}, which is no floor",
        f" --minimum-tcb {report.processor}=VERSIONS` with those of AMD's latest security bulletin",
    )


def _plan_intel(raw: bytes, update: str, edition: int | None) -> _Plan:
    import dcap_qvl

    from strongroom.attest.endorsement_fetch import INTEL_PCS, MakerService, fetch_intel
    from strongroom.attest.quote import parse_quote

    quote = parse_quote(raw)
    try:
        found = dcap_qvl.Quote.parse(quote.raw)
        fmspc, ca = found.fmspc().lower(), found.ca()
    except ValueError as exc:
        raise InputError(f"the quote names no platform family: {exc}") from exc
    return _Plan(
        f"{quote.tee}-{fmspc}{'-platform' * (ca == 'platform')}.json",
        lambda source, ca_pem, _known: fetch_intel(
            MakerService(source or INTEL_PCS, ca_pem=ca_pem),
            tee=cast(Literal["sgx", "tdx"], quote.tee),
            fmspc=fmspc,
            ca=cast(Literal["processor", "platform"], ca),
            update=cast(Literal["standard", "early"], update),
            edition=edition,
        ),
    )


@command.command("import", epilog=epilog("strongroom attest endorsements import bundle.json"))
@click.argument("bundle", type=PATH)
@anchor_option
def import_(bundle: Path, anchor_file: Path | None) -> None:
    """Take the endorsements in BUNDLE, fetched elsewhere, into this workspace's trust service."""
    from strongroom.attest.endorsement_files import anchor_of, file_name, read_bundle, write_bundle
    from strongroom.attest.endorsements import check_window

    now, folder = datetime.now(UTC), cast(Path, _folder())
    _, found = read_bundle(bundle)
    if not found:
        raise InputError(f"{bundle} has no endorsements")
    for one in found:
        anchor = anchor_of(one, read_anchor(anchor_file))
        check_window(one.parts(), now)
        endorsements = _no_older(anchor, one, folder)
        write_bundle(folder / file_name(endorsements), anchor, [endorsements])
        output.say(f"took in {file_name(endorsements)}; root {anchor.fingerprint}")
        _say_end(endorsements, now)


@command.command(
    "show", epilog=epilog("strongroom attest endorsements show", "strongroom attest endorsements show bundle.json")
)
@click.argument("bundle", required=False, type=PATH)
@json_option
def show(bundle: Path | None, as_json: bool) -> int:
    """Show what BUNDLE holds, or this workspace's trust service, and until when; exit 1 if any of it does not count."""
    from strongroom.attest.endorsement_files import read_bundle
    from strongroom.errors import AttestationError

    now, values = datetime.now(UTC), list[dict[str, Any]]()
    for path in [bundle] if bundle else sorted(cast(Path, _folder()).glob("*.json")):
        try:
            anchor, found = read_bundle(path)
            if not found:
                values.append({"file": path.name, "wrong": "it has no endorsements"})
            for one in found:
                values.append({"file": path.name, **_held(anchor, one)})  # those before a broken one stay
        except AttestationError as exc:  # one stands in no other's way
            if bundle:
                raise
            values.append({"file": path.name, "wrong": str(exc)})
    rows, good = list[tuple[str, ...]](), True
    for value in values:
        of, wrong = (value["file"], value.get("for", ""), value.get("maker", "")), value.get("wrong", "")
        rows += [(*of, "", "", f"DOES NOT COUNT: {wrong}")] if wrong else []
        good = good and not wrong
        for name, part in value.get("parts", {}).items():
            start, end = (datetime.fromisoformat(part[when]) for when in ("from", "until"))
            rows.append((*of, name, f"{end:%Y-%m-%d}", _state(start, end, now)))
            good = good and start <= now <= end
    text = output.table(("file", "for", "root", "part", "until", ""), rows)
    text += [f"{v['file']}: {name} {value}" for v in values for name, value in v.items() if name in ("edition", "keys")]
    output.data(values, as_json, text)
    return 0 if good else 1


def _held(anchor: TrustAnchor, endorsements: AnyEndorsements) -> dict[str, object]:
    from strongroom.attest.endorsement_files import title
    from strongroom.attest.makers import MAKERS
    from strongroom.attest.verifiers.newest import proven

    held: dict[str, object] = {
        "for": title(endorsements),
        "root": anchor.fingerprint,
        "maker": "SIMULATED" if anchor.kind == "simulated" else MAKERS.get(anchor.fingerprint, "another root"),
        "parts": {name: {"from": s.isoformat(), "until": e.isoformat()} for name, s, e in endorsements.parts()},
        **_details(endorsements),
    }
    try:
        proven(anchor, endorsements)
    except EndorsementError as exc:  # the file alone says whose they are
        held["wrong"] = str(exc)
    return held


def _folder(out: Path | None = None) -> Path | None:
    # None where there is no service of one's own, and what is made goes to `out`: any machine can fetch for another.
    try:
        here = workspace()
        if here.embedded:
            return here.service_folder / "endorsements"
    except InputError:
        if out is None:
            raise
    if out is None:
        raise InputError("this workspace has no trust service of its own", hint=f"its administrator, at {here.service}")
    return None


def _known(folder: Path, name: str) -> AnyEndorsements | None:
    from strongroom.attest.endorsement_files import read_bundle

    try:
        return next(iter(read_bundle(folder / name)[1]), None)
    except EndorsementError:  # it is replaced
        return None


def _no_older(anchor: TrustAnchor, endorsements: AnyEndorsements, folder: Path | None) -> AnyEndorsements:
    # Proven to be the maker's, and no older than what is at hand; the service remembers more, and refuses on its own.
    from strongroom.attest.verifiers.newest import Mark, newest

    seen: dict[str, Mark] = {}
    newest(read_folder(folder)[0] if folder else [], seen)
    [found] = newest([(anchor, endorsements)], seen)
    if isinstance(found, EndorsementError):
        raise found
    return found


def _holds(known: AnyEndorsements, anchor_file: Path | None, evidence: Evidence, now: datetime) -> bool:
    from strongroom.attest.endorsement_files import anchor_of
    from strongroom.attest.verifiers.choose import asking_nothing
    from strongroom.errors import AttestationError

    if min(end for _, _, end in known.parts()) < now + timedelta(days=SOON_DAYS):
        return False
    try:
        anchor = anchor_of(known, read_anchor(anchor_file))
        asking_nothing(anchor, known, evidence).verify(evidence, known, now=now)
    except AttestationError:
        return False
    return True


def read_anchor(path: Path | None) -> TrustAnchor | None:
    """Return the hardware root whose certificate is in `path`, for commands with `anchor_option`."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from strongroom.attest.endorsements import TrustAnchor
    from strongroom.crypto.x509 import certificate_from_pem

    if path is None:
        return None
    certificate = certificate_from_pem(read_text(path, "a certificate in PEM"))
    return TrustAnchor(kind="hardware", certificate_der=certificate.public_bytes(Encoding.DER))


def _state(start: datetime, end: datetime, now: datetime) -> str:
    days = (end - now).days
    if now > end:
        return f"EXPIRED {-days} days ago: fetch new ones"
    if now < start:
        return "NOT YET: is the clock right?"
    return f"expires in {days} days: fetch new ones" if days < SOON_DAYS else f"{days} days"


def _say_end(endorsements: AnyEndorsements, now: datetime) -> None:
    text, days = end_of(endorsements, now)
    output.say(f"{'WARNING: ' if days < SOON_DAYS else ''}{text}")


def state(folder: Path, now: datetime) -> tuple[str, str] | None:
    """Return whether the makers' endorsements in `folder` end soon and which, None if there are none."""
    given = read_folder(folder)[0]
    found = ends(given, now)
    soon = [text for days, text in found if days < SOON_DAYS]
    if not found and any(anchor.kind == "hardware" for anchor, _ in given):
        soon = ["none of the makers' endorsements here can be proven"]
    if soon:
        return "WARNING", "; ".join(soon) + "; `strongroom attest endorsements fetch QUOTE` gets new ones"
    return ("ok", found[0][1]) if found else None


def _details(endorsements: AnyEndorsements) -> dict[str, object]:
    from strongroom.attest.endorsement_snp import SNPEndorsements
    from strongroom.attest.verifiers.chip_keys import describe_key

    if isinstance(endorsements, SNPEndorsements):
        return {"keys": [describe_key(key) for key in endorsements.keys]}
    documents = [parse_json(text, "endorsements") for text in (endorsements.tcb_info, endorsements.qe_identity)]
    return {"edition": [one.get("tcbEvaluationDataNumber") for one in documents if isinstance(one, dict)]}
