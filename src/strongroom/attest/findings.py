"""Findings: what a policy compared, and what every branch of every policy compares, said or not.

What holds whether or not a policy says so is in `Scope`: a TEE whose code is judged, a maker's root, no debug enclave,
an up-to-date platform without advisories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from strongroom.attest.claims import Claims

__all__ = ["AppraisalContext", "Finding", "Policy", "Scope", "listed", "one_of", "platform_findings", "shown_flag"]

_HOW = {
    "snp": "snp_measurement names the launch digest",
    "tdx": "tdx_measurements names mrtd and rtmr0 to rtmr3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalContext:
    """What a policy judges.

    Attributes:
        claims: Verified.
        job: The job document whose digest the claims bind (`claims.check_init_data`), None if there is none.
        digest: Of the job that the claims bind, where the document is not at hand; else empty.
    """

    claims: Claims
    job: Mapping[str, object] | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison and its outcome; as text it is a reason."""

    check: str
    expected: str
    got: str
    passed: bool = False

    def __str__(self) -> str:
        return f"{self.check}: expected {self.expected}, got {self.got}"

    def to_json(self) -> dict[str, object]:
        """Return the finding as JSON-ready values."""
        return {"check": self.check, "passed": self.passed, "expected": self.expected, "got": self.got}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the enclosing `AllOf`s waive or restate.

    Attributes:
        simulated: `UnsafeAcceptSimulated` is among them.
        tcb_status: A `TcbStatus` is among them and judges status and advisories.
        roots: Fingerprints of roots that a `Root` among them names.
        tees: Whose code is judged: beside SGX's, SNP's by an `SnpMeasurement`, TDX's by a complete `TdxMeasurements`.
    """

    simulated: bool = False
    tcb_status: bool = False
    roots: tuple[str, ...] = ()
    tees: tuple[str, ...] = ("sgx",)

    def findings(self, claims: Claims) -> list[Finding]:
        """Return what every branch of every policy compares."""
        admits, hints = self.simulated, [f"{tee} where {how}" for tee, how in _HOW.items() if tee not in self.tees]
        tees = listed(self.tees) + (f" ({', '.join(hints)})" if hints else "")
        root, fingerprint = claims.root, claims.root_fingerprint
        good = admits if claims.simulated else root == "hardware" or (root == "own" and fingerprint in self.roots)
        root += {"simulated": f" ({fingerprint[:16]})", "own": f" ({fingerprint})"}.get(root, "")
        kind = f"a {'debug' if claims.debug else 'production'} enclave"
        found = [
            Finding("tee", tees, claims.tee, claims.tee in self.tees),
            Finding("root", "hardware" + " or simulated" * admits + " or named" * bool(self.roots), root, good),
            Finding("debug", "a production enclave", kind, not claims.debug),
        ]
        if claims.tee == "snp":
            # Below level 0 runs whatever level 0 lets run, which the launch digest does not name.
            found.append(Finding("vmpl", "0", str(claims.vmpl), claims.vmpl == 0))
        return found if self.tcb_status else found + platform_findings(claims, ("UpToDate",))


class Policy(Protocol):
    """Says whether claims are acceptable: every finding passed."""

    kind: ClassVar[str]

    def judge(self, context: AppraisalContext, scope: Scope) -> list[Finding]:
        """Return every comparison that decides, passed or not."""
        ...


def listed(values: Sequence[object]) -> str:
    """Return `values` in words."""
    return " or ".join(str(v) for v in values) or "nothing"


def one_of(check: str, values: Sequence[str], got: str) -> Finding:
    """Return whether `got` is one of `values`."""
    return Finding(check, listed(values), got or "nothing", got in values)


def shown_flag(value: bool | None) -> str:
    """Return a flag in words."""
    return "unknown" if value is None else "yes" if value else "no"


def platform_findings(claims: Claims, allowed: Sequence[str], named: Sequence[str] = ()) -> list[Finding]:
    """Return whether the status is among `allowed`, and every advisory among those `named`."""
    apply = ", ".join(claims.advisory_ids)
    status = claims.tcb_status + (f" ({apply})" if apply else "")
    unnamed = [a for a in claims.advisory_ids if a not in named]
    return [
        Finding("tcb_status", listed(allowed), status, claims.tcb_status in allowed),
        Finding("advisories", "none" + (f" but {', '.join(named)}" if named else ""), apply or "none", not unnamed),
    ]
