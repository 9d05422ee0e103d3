"""`strongroom attest`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from strongroom._unix import write_whole
from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import shown_flag
from strongroom.attest.quote import FieldRow, Quote, describe, parse_quote, trimmed
from strongroom.attest.snp import SNPReport, parse_report
from strongroom.attest.stock_evidence import without_padding
from strongroom.attest.verifiers import verify_any
from strongroom.attest.verifiers.chains import platform
from strongroom.attest.verifiers.choose import asking_nothing
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, workspace
from strongroom.cli.endorsements import command as endorsements
from strongroom.cli.evidence import bundle_option, read_evidence, trusted_choices
from strongroom.cli.verdicts import bound, limits, verify
from strongroom.errors import AttestationError, InputError

__all__ = ["command"]


@click.group("attest")
def command() -> None:
    """Evidence: explain it field by field, verify and appraise it."""


command.add_command(endorsements)
command.add_command(verify)


@command.command("quote", epilog=epilog("strongroom attest quote job.toml quote.bin"))
@click.argument("job_file", type=PATH)
@click.argument("target", type=PATH)
def quote(job_file: Path, target: Path) -> None:
    """Write the quote that JOB_FILE's enclave would show, for a look at it. SIMULATED; no key is released for it."""
    from strongroom.attest.binding import config_id, init_data_digest
    from strongroom.attest.simulated.pki import SimulatedPKI
    from strongroom.attest.simulated.platform import load_seed
    from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
    from strongroom.cli.job import plan_file
    from strongroom.jobs.registry import SIMULATED

    runner, plan = plan_file(job_file)
    if plan.spec.enclave not in SIMULATED:
        raise InputError(
            f"{job_file}: expected a job for the enclave kind {' or '.join(SIMULATED)}, got {plan.spec.enclave}",
            hint="its hardware alone quotes it: a run leaves the first evidence in the bundle's launch/quote.bin",
        )
    bundle = runner.build(plan)
    pki = SimulatedPKI.create(load_seed(workspace().seed), now=datetime.now(UTC))
    raw = SimulatedQuotingEnclave(pki).quote_sgx(
        measurement=bytes.fromhex(bundle.measurement),
        report_data=bytes(64),
        config_id=config_id(init_data_digest(plan.init_data)),
    )
    write_whole(target, raw)
    output.say(f"wrote {len(raw)} bytes, SIMULATED: `strongroom attest show {target}`")


@command.command(
    "show", epilog=epilog("strongroom attest show quote.bin", "strongroom attest show quote.bin --endorsements b.json")
)
@click.argument("evidence", type=PATH)
@bundle_option
@json_option
def show(evidence: Path, bundle: Path | None, as_json: bool) -> int:
    """Explain EVIDENCE, a quote or report, field by field.

    It may be binary, base64, JSON as confidential containers' clients send it, or an RA-TLS certificate. Exit 0 if its
    signatures hold under a trusted root. Whether it will do is asked by `verify`: no policy and no floor is known here.
    """
    found, certificate = read_evidence(evidence)
    report = parse_report(found.quote) if found.tee == "snp" else None
    rows = describe(report) if report else _quote_rows(parse_quote(trimmed(found.quote)))
    checks, claims = _checks(found, report, certificate, bundle)
    value = {
        "tee": found.tee,
        "fields": [
            {"name": r.name, "offset": r.offset, "size": r.size, "value": r.value, "meaning": r.meaning} for r in rows
        ],
        "checks": [{"check": name, "passed": passed, "detail": detail} for name, passed, detail in checks],
        "limits": list(claims.limits) if claims else [],
    }
    text = output.table(
        ("offset", "size", "field", "value", "meaning"),
        [(r.offset, r.size, r.name, _short(r.value), r.meaning) for r in rows],
    )
    words = {True: "pass", False: "FAIL", None: "----"}
    text += ["", "checks:"] + [f"  {words[passed]}  {name}: {detail}" for name, passed, detail in checks]
    output.data(value, as_json, text + limits(claims))
    return 0 if claims and all(passed is not False for _, passed, _ in checks) else 1


def _quote_rows(quote: Quote) -> list[FieldRow]:
    rows, at = describe(quote), quote.spans["auth.cert_data"]
    try:
        pck = platform(quote["auth.cert_data"])
    except ValueError:
        return rows
    said = {
        "fmspc": (pck.fmspc.hex(), "Platform family"),
        "ppid": (pck.ppid.hex(), "Names the platform (`machine` in a policy)"),
        "piid": (pck.piid.hex(), "Names this registration of a platform with several packages (`machine`)"),
        "dynamic_platform": (shown_flag(pck.dynamic_platform), "Processors may join it later (`platform_flags`)"),
        "cached_keys": (shown_flag(pck.cached_keys), "Intel's registration service holds its keys (`platform_flags`)"),
        "smt": (shown_flag(pck.smt), "Hyperthreading was on when it registered (`platform_flags`)"),
    }
    return rows + [
        FieldRow(
            name=f"pck.{name}", offset=at[0], size=at[1], value=value, meaning=f"In the PCK certificate: {meaning}"
        )
        for name, (value, meaning) in said.items()
        if value
    ]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 66 else line[:63] + "..."


_NONE = "`strongroom attest endorsements fetch FILE --out BUNDLE`, then `show FILE --endorsements BUNDLE`"


def _checks(
    given: Evidence, report: SNPReport | None, certificate: bytes, bundle: Path | None
) -> tuple[list[tuple[str, bool | None, str]], Claims | None]:
    """Return what was checked, with None for what was not asked, and what is proven."""
    one = given if report else replace(given, quote=trimmed(given.quote))
    exact = one == without_padding(given)
    length = "no bytes after the quote" if one == given else "zeros after the quote, which a service cuts off"
    length = length if exact else "bytes after the quote: a service refuses it"
    checks: list[tuple[str, bool | None, str]] = [("length", exact, length)]
    checks += [("beside it", None, said) for said in given.unread]
    try:
        choices = trusted_choices(bundle, {})
    except InputError as exc:
        if bundle is not None:
            raise
        return [*checks, ("signatures and chain", None, f"not checked: {exc}; {_NONE}")], None
    try:
        choices = [(asking_nothing(verifier.anchor, e, one), e) for verifier, e in choices]
        claims = verify_any(one, choices, now=datetime.now(UTC))
    except AttestationError as exc:
        return [*checks, (exc.code, False, str(exc))], None
    root = {"simulated": "SIMULATED root", "own": "root of nobody who makes hardware,"}.get(claims.root, "maker's root")
    checks.append(("signatures and chain", True, f"hold, under the {root} {claims.root_fingerprint[:16]}"))
    status = f", TCB status {claims.tcb_status}"
    if report:  # without a floor everything is out of date
        status = "; ConfigurationNeeded: memory aliases not looked for (BadRAM)" * report.aliases_unchecked
    checks.append(("endorsements", True, f"cover this platform now{status}"))
    if report:
        judges = "`strongroom attest verify` judges versions, provider and configuration"
        checks.append(("floor", None, f"not asked of TCB {claims.tcb.partition(',')[0]}: {judges}"))
    closed = "the enclave's memory is closed" if not claims.debug else "debug enclave"
    checks.append(("debug", not claims.debug, closed))
    if certificate:
        found = bound(certificate, claims, datetime.now(UTC))
        checks.append(("certificate", found.passed, found.got if found.passed else str(found)))
    return checks, claims
