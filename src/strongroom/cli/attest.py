"""`strongroom attest`."""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from datetime import UTC, datetime
from pathlib import Path

import click

from strongroom.attest import ratls
from strongroom.attest.appraisal import AppraisalContext, appraise, policy_from_json
from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_files import read_bundle
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.evidence import Evidence
from strongroom.attest.quote import describe, parse_quote, trimmed
from strongroom.attest.verifiers import AnchoredVerifier, verify_any
from strongroom.attest.verifiers.choose import verifier_for
from strongroom.cli import output
from strongroom.cli.common import epilog, json_option, workspace
from strongroom.cli.endorsements import command as endorsements
from strongroom.errors import AppraisalError, AttestationError, InputError

__all__ = ["command"]


@click.group("attest")
def command() -> None:
    """Evidence: explain it field by field, verify and appraise it."""


command.add_command(endorsements)


@command.command("quote", epilog=epilog("strongroom attest quote job.toml quote.bin"))
@click.argument("job_file", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def quote(job_file: Path, target: Path) -> None:
    """Write the quote that JOB_FILE's enclave would show, for a look at it. SIMULATED; no key is released for it."""
    from strongroom.attest.binding import init_data_digest
    from strongroom.attest.simulated.pki import SimulatedPKI
    from strongroom.attest.simulated.platform import PRODUCT, SECURITY_VERSION, SIGNER, load_seed
    from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
    from strongroom.cli.job import plan_file

    runner, plan = plan_file(job_file)
    bundle = runner.build(plan)
    pki = SimulatedPKI.create(load_seed(workspace().seed), now=datetime.now(UTC))
    raw = SimulatedQuotingEnclave(pki).quote_sgx(
        measurement=bytes.fromhex(bundle.measurement),
        signer=SIGNER,
        report_data=bytes(64),
        config_id=init_data_digest(plan.init_data).ljust(64, b"\0"),
        isv_prod_id=PRODUCT,
        isv_svn=SECURITY_VERSION,
    )
    target.write_bytes(raw)
    output.say(f"wrote {len(raw)} bytes: `strongroom attest show {target}`")


@command.command("show", epilog=epilog("strongroom attest show quote.bin", "strongroom attest show quote.bin --json"))
@click.argument("evidence", type=click.Path(path_type=Path))
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), help="Also appraise under this policy (JSON)."
)
@json_option
def show(evidence: Path, policy_file: Path | None, as_json: bool) -> int:
    """Explain EVIDENCE (a quote: binary, base64, RCAR JSON or in an RA-TLS certificate), and every check's outcome."""
    raw, certificate = _read(evidence)
    quote = parse_quote(trimmed(raw))
    rows = describe(quote)
    checks = _checks(raw, quote.tee, policy_file, certificate)
    value = {
        "tee": quote.tee,
        "fields": [
            {"name": r.name, "offset": r.offset, "size": r.size, "value": r.value, "meaning": r.meaning} for r in rows
        ],
        "checks": [{"check": name, "passed": passed, "detail": detail} for name, passed, detail in checks],
    }
    text = output.table(
        ("offset", "size", "field", "value", "meaning"),
        [(r.offset, r.size, r.name, r.value if len(r.value) <= 66 else r.value[:63] + "...", r.meaning) for r in rows],
    )
    text += ["", "checks:"] + [f"  {'pass' if passed else 'FAIL'}  {name}: {detail}" for name, passed, detail in checks]
    output.data(value, as_json, text)
    return 0 if all(passed for _, passed, _ in checks) else 1


def _checks(raw: bytes, tee: str, policy_file: Path | None, certificate: bytes) -> list[tuple[str, bool, str]]:
    checks = []
    exact = trimmed(raw) == raw
    checks.append(
        ("length", exact, "no bytes after the quote" if exact else "bytes after the quote: a service refuses it")
    )
    try:
        claims = verify_any(Evidence(tee=tee, quote=trimmed(raw)), _choices(), now=datetime.now(UTC))
    except AttestationError as exc:
        return [*checks, (exc.code, False, str(exc))]
    root = "SIMULATED root of this workspace" if claims.simulated else "hardware maker's root"
    checks.append(("signatures and chain", True, f"hold, under the {root} {claims.root_fingerprint[:16]}"))
    checks.append(("endorsements", True, f"cover this platform now, TCB status {claims.tcb_status}"))
    checks.append(
        ("debug", not claims.debug, "the enclave's memory is closed" if not claims.debug else "debug enclave")
    )
    if certificate:
        checks.append(_bound(certificate, claims))
    if policy_file is not None:
        checks += _appraised(claims, policy_file)
    return checks


def _bound(certificate: bytes, claims: Claims) -> tuple[str, bool, str]:
    try:
        ratls.verify_certificate(certificate, lambda _evidence: claims, now=datetime.now(UTC))
    except AttestationError as exc:
        return "certificate", False, str(exc)
    return "certificate", True, "the evidence names its key; fresh only if its reader asked for the nonce"


def _appraised(claims: Claims, policy_file: Path) -> list[tuple[str, bool, str]]:
    try:
        policy = policy_from_json(json.loads(policy_file.read_bytes()))
    except (OSError, ValueError) as exc:
        raise InputError(f"{policy_file} is not a readable policy: {exc}") from exc
    try:
        appraise(policy, AppraisalContext(claims=claims, job=None))
    except AppraisalError as exc:
        return [("policy", False, reason) for reason in exc.reasons]
    return [("policy", True, "acceptable")]


def _choices() -> list[tuple[AnchoredVerifier, AnyEndorsements]]:
    paths = sorted((workspace().service_folder / "endorsements").glob("*.json"))
    return [(verifier_for(anchor, one, {}), one) for anchor, found in map(read_bundle, paths) for one in found]


def _read(path: Path) -> tuple[bytes, bytes]:
    """Return the quote, and the certificate that it was in or b""."""
    if not path.exists():
        raise InputError(f"{path} does not exist", hint="`strongroom attest quote job.toml quote.bin` makes one")
    raw = path.read_bytes()
    if raw[:1] == b"{":
        return Evidence.from_json(json.loads(raw), "sgx").quote, b""
    try:
        if raw.startswith(b"-----BEGIN CERTIFICATE"):
            raw = ssl.PEM_cert_to_DER_cert(raw.decode("ascii"))
        if raw[:2] == b"\x30\x82":
            return ratls.read_certificate(raw)[1].quote, raw
        return base64.b64decode(raw.strip(), validate=True), b""
    except (binascii.Error, ValueError):
        return raw, b""
