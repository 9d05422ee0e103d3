"""`strongroom attest verify`: is this evidence true, and acceptable under a policy? One page that explains itself.

Nothing is fetched: endorsements come from a bundle, or from the workspace's trust service. A hardware root is believed
only if it is a maker's own, whatever a file calls it; a simulated one is called SIMULATED in every line that names it.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import click

from strongroom.attest import ratls
from strongroom.attest.appraisal import check_pins_code, findings
from strongroom.attest.claims import Claims, check_init_data
from strongroom.attest.endorsement_files import SOON_DAYS, ends
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import AppraisalContext, Finding, Policy, shown_flag
from strongroom.attest.makers import MAKERS
from strongroom.attest.policies import PLATFORM_FLAGS
from strongroom.attest.stock_evidence import without_padding
from strongroom.attest.verifiers import verify_any
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option
from strongroom.cli.endorsements import snp_settings
from strongroom.cli.evidence import Choices, bundle_option, read_evidence, read_policy, trusted_choices
from strongroom.errors import AttestationError, InputError

__all__ = [
    "Verdict",
    "bound",
    "failed",
    "judged",
    "limits",
    "verify",
]

_REASON = re.compile(r"(?P<check>[^:]+): (?P<about>.*?)expected (?P<expected>.*?), got (?P<got>.*)", re.DOTALL)
_WANTED = {
    "evidence": "one whole quote or report",
    "endorsement": "endorsements that hold for it now",
    "verification": "signatures up to a trusted root",
}
_PLATFORM = "have the platform updated, or let the policy allow this status and these advisories by name (tcb_status)"
_VERSIONS = "have the platform updated, say which versions will do (--minimum-tcb), or let the policy allow this status"
_HINTS = {
    **dict.fromkeys(
        PLATFORM_FLAGS, "let the policy allow this configuration by name (platform_flags), or run elsewhere"
    ),
    "root": "no maker's: for trials alone; a policy says unsafe_accept_simulated, or names a root of your own (root)",
    "root_fingerprint": "the policy names the roots that it accepts (root)",
    "policy": "name the code: measurement, signer with minimum_svn and product, snp_measurement, or tdx_measurements",
    **dict.fromkeys(("tcb_status", "advisories", "grace"), _PLATFORM),
    "minimum_evaluation": "fetch newer endorsements (`strongroom attest endorsements fetch`)",
    "job_digest": "name the job with --job, and compare it with the one that the policy allows",
}
_REACHED = ("tcb_status", "advisory_ids", "tcb_levels")
_OTHER = "compare what was expected with the reference values of your build (`strongroom job build`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of one verification and appraisal.

    Attributes:
        claims: What was proven, None if verification failed.
        as_of: The owner named the time; it is not the time now.
        checks: Every comparison in order, up to the first that says the evidence is not true.
        hint: What to do about a refusal.
        reached: Without claims: `tcb_status`, `advisory_ids` and `tcb_levels`, as far as signatures prove them.
    """

    evidence: Evidence
    now: datetime
    as_of: bool = False
    claims: Claims | None
    checks: tuple[Finding, ...]
    hint: str = ""
    reached: Mapping[str, object] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether the evidence is true and acceptable."""
        return self.claims is not None and all(check.passed for check in self.checks)

    @property
    def root(self) -> str:
        """Which root stands behind the claims, in words."""
        if self.claims is None:
            return "none"
        fingerprint = self.claims.root_fingerprint
        if self.claims.simulated:
            return f"SIMULATED, no hardware protects this ({fingerprint[:16]})"
        if self.claims.root == "own":
            return f"own, no maker's: {fingerprint}"
        return f"hardware, {MAKERS.get(fingerprint, 'no known maker')}'s root ({fingerprint[:16]})"

    def to_json(self) -> dict[str, object]:
        """Return the verdict as JSON-ready values."""
        return {
            "accepted": self.accepted,
            "root": self.claims.root if self.claims else None,
            "tee": self.evidence.tee,
            "evidence_sha256": hashlib.sha256(self.evidence.quote).hexdigest(),
            "time": f"{self.now:%Y-%m-%dT%H:%M:%SZ}",
            "as_of": self.as_of,
            "tcb_status": self.claims.tcb_status if self.claims else self.reached.get("tcb_status"),
            "advisory_ids": list(self.claims.advisory_ids) if self.claims else self.reached.get("advisory_ids"),
            "tcb_levels": self.reached.get("tcb_levels"),
            "checks": [check.to_json() for check in self.checks],
            "hint": self.hint,
            "claims": self.claims.to_json() if self.claims else None,
        }

    def page(self) -> list[str]:
        """Return the verdict as lines of text."""
        failed = sum(not check.passed for check in self.checks)
        outcome = f"REFUSED: {failed} of {len(self.checks)} checks failed"
        if self.claims is None:
            outcome = "REFUSED: nothing is proven, so the policy was not asked"
        elif self.accepted:
            outcome = "ACCEPTED: true, and what the policy names"
            outcome += ". SIMULATED: no hardware protects this" if self.claims.simulated else ""
        if self.as_of:
            outcome += f". AS OF {self.now:%Y-%m-%dT%H:%M:%SZ}: this says nothing of now"
        text = [outcome, ""]
        text += output.facts({name: value for name, value in self._facts().items() if value})
        text += ["", "checks:"]
        for check in self.checks:
            if check.passed:
                text.append(f"  pass  {check.check}: {check.got}")
            else:
                text += [f"  FAIL  {check.check}", f"          expected {check.expected}", f"          got {check.got}"]
        text += limits(self.claims)
        return text + (["", f"hint: {self.hint}"] if self.hint else [])

    def _facts(self) -> dict[str, str]:
        quote = self.evidence.quote
        text = {
            "root": self.root,
            "evidence": f"{self.evidence.tee}, {len(quote)} bytes, SHA-256 {hashlib.sha256(quote).hexdigest()}",
            "time": f"{self.now:%Y-%m-%dT%H:%M:%SZ}" + (", as --at says" if self.as_of else ""),
        }
        if (claims := self.claims) is None:
            levels = cast(Mapping[str, Mapping[str, str]], self.reached.get("tcb_levels") or {})
            said = ", ".join(f"{part} {one['status']} as of {one['date'][:10]}" for part, one in levels.items())
            status = str(self.reached.get("tcb_status") or "not known: no signature or no level says it")
            advisories = ", ".join(cast(list[str], self.reached.get("advisory_ids") or []))
            return text | {"platform": status, "advisories": advisories, "levels": said}
        machine = " or ".join(name.hex() for name in (claims.ppid, claims.piid, claims.chip_id) if name)
        return text | {
            "platform": claims.tcb_status + (f" as of {claims.tcb_date}" if claims.tcb_date else ""),
            "versions": claims.tcb,
            "advisories": ", ".join(claims.advisory_ids) or "none",
            "edition": "" if claims.tcb_eval_number is None else f"{claims.tcb_eval_number} of the TCB info",
            "machine": machine,
            "flags": ", ".join(
                f"{name} {shown_flag(getattr(claims, name))}" for name in PLATFORM_FLAGS if claims.fmspc
            ),
            {"snp": "snp_measurement", "tdx": "mrtd"}.get(claims.tee, "measurement"): claims.measurement.hex(),
            **{f"rtmr{number}": value.hex() for number, value in enumerate(claims.rtmrs)},
            "signer": claims.signer.hex() if any(claims.signer) else "",
            "config id": claims.config_id.hex() if any(claims.config_id) else "",
        }


def judged(
    evidence: Evidence,
    policy: Policy,
    choices: Choices,
    *,
    now: datetime,
    as_of: bool = False,
    init_data: str | None = None,
    job: dict[str, object] | None = None,
    certificate: bytes = b"",
) -> Verdict:
    """Return the verdict on `evidence` under `policy`; with `init_data` and `job` also on the job that it binds.

    With `certificate`, in which the evidence was, also on whether it is for that certificate's key.
    """
    try:
        claims = verify_any(evidence, choices, now=now)
        claims = replace(claims, limits=claims.limits + evidence.unread)
    except AttestationError as exc:
        hint = exc.hint or "do not trust what sent this evidence"
        told = {name: exc.details[name] for name in _REACHED if name in exc.details}
        check = failed(exc)
        return Verdict(evidence=evidence, now=now, as_of=as_of, claims=None, checks=(check,), hint=hint, reached=told)
    held = f"for this platform, {'then' if as_of else 'now'}"
    checks = [
        Finding("signatures", "a chain to a trusted root", "hold, up to the root above", passed=True),
        Finding("endorsements", held, held, passed=True),
        _names_code(policy),
    ]
    said = ""
    if certificate:
        checks.append(bound(certificate, claims, now))
        said = ratls.job_of(ratls.read_certificate(certificate)[0]) if checks[-1].passed else ""
    if init_data is not None:
        try:
            check_init_data(claims, init_data, said or None)
            checks.append(Finding("init_data", "the job's", "the job's", passed=True))
        except AttestationError as exc:
            job = None
            checks.append(failed(exc))
    checks += findings(policy, AppraisalContext(claims=claims, job=job, digest=said if init_data is None else ""))
    wrong = [check.check.rpartition(": ")[2] for check in checks if not check.passed]
    hints = _HINTS | ({"tcb_status": _VERSIONS} if claims.tee == "snp" else {})
    hint = "; ".join(dict.fromkeys(hints.get(name, _OTHER) for name in wrong))
    return Verdict(evidence=evidence, now=now, as_of=as_of, claims=claims, checks=tuple(checks), hint=hint)


def limits(claims: Claims | None) -> list[str]:
    """Return what the measurement in `claims` does not cover, as lines of text."""
    found = claims.limits if claims else ()
    wrapped = [textwrap.wrap(one, 110, initial_indent="  - ", subsequent_indent="    ") for one in found]
    return ["", "limits of what is measured:", *(line for lines in wrapped for line in lines)] if found else []


def failed(exc: AttestationError) -> Finding:
    """Return what an error says as the check that failed."""
    found = _REASON.fullmatch(str(exc))
    if found is not None:
        return Finding(found["check"], found["about"] + found["expected"], found["got"])
    check, colon, got = str(exc).partition(": ")
    return Finding(check if colon else exc.code, _WANTED.get(exc.code, "true evidence"), got or str(exc))


def bound(certificate: bytes, claims: Claims, now: datetime) -> Finding:
    """Return whether evidence that proves `claims` is for the key of the certificate, and for its job if it names one.

    Who issued the certificate is not asked: only that may stand in it which the evidence proves.
    """
    wanted = "evidence that names its key, and its job if it names one"
    try:
        ratls.verify_certificate(certificate, lambda _: claims, now=now, issued=True)
    except AttestationError as exc:
        return failed(exc)
    job = ratls.job_of(ratls.read_certificate(certificate)[0])
    names = f"its key and its job, {job}" if job else "its key"
    got = f"the evidence names {names}; fresh only if its reader asked for the nonce"
    return Finding("certificate", wanted, got, passed=True)


def _names_code(policy: Policy) -> Finding:
    wanted, code = "one that names the code in every branch", True
    try:
        check_pins_code(policy)
    except InputError:
        code = False
    return Finding("policy", wanted, wanted if code else "one that would accept any code", code)


@click.command(
    "verify",
    epilog=epilog(
        "strongroom attest verify quote.bin --policy policy.json",
        "strongroom attest verify quote.bin --policy policy.json --job job.toml --json",
        "strongroom attest verify quote.bin --policy policy.json --endorsements bundle.json --at 2026-03-01T12:00Z",
        "strongroom attest verify report.bin --policy policy.json --minimum-tcb 19-01-1=4.0.23.213 --vlek Provider",
    ),
)
@click.argument("evidence", type=PATH)
@click.option("--policy", "policy_file", required=True, type=PATH, help="What is acceptable (JSON).")
@bundle_option
@click.option("--job", "job_file", type=PATH, help="The job file that the evidence should bind.")
@click.option("--at", metavar="TIME", help="Verify as of this time (ISO 8601, UTC unless it says), not now.")
@snp_settings
@json_option
def verify(
    evidence: Path,
    policy_file: Path,
    bundle: Path | None,
    job_file: Path | None,
    at: str | None,
    settings: dict[str, str],
    as_json: bool,
) -> int:
    """Verify EVIDENCE (as `show` reads it) and appraise it: one page with every check, what it expected and got."""
    from strongroom.cli.job import plan_file

    policy = read_policy(policy_file)
    found, certificate = read_evidence(evidence)
    plan = plan_file(job_file)[1] if job_file else None
    choices, now = trusted_choices(bundle, settings), datetime.now(UTC) if at is None else _time(at)
    verdict = judged(
        without_padding(found),
        policy,
        choices,
        now=now,
        as_of=at is not None,
        init_data=plan.init_data if plan else None,
        job=dict(plan.document) if plan else None,
        certificate=certificate,
    )
    output.data(verdict.to_json(), as_json, verdict.page())
    for days, text in ends([(verifier.anchor, one) for verifier, one in choices], now) if at is None else ():
        if 0 <= days < SOON_DAYS:
            output.say(f"WARNING: {text}")
    return 0 if verdict.accepted else 1


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise InputError(f"--at: expected a time such as 2026-03-01T12:00Z, got {text!r:.40}") from exc
