"""The checks that a policy is made of. Each is a value that says why claims are not acceptable.

A check judges claims and nothing else: no clock, no network, no global. What holds whether or not a policy says so is
in `Scope`: SGX, hardware, no debug enclave, an up-to-date platform. Composition and the raising entry are in
`appraisal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from strongroom._encoding import sha256_id
from strongroom.attest.binding import job_init_data
from strongroom.attest.claims import Claims
from strongroom.attest.patterns import MAX_PATTERN_CHARS, compile_pattern
from strongroom.errors import InputError

__all__ = [
    "TCB_STATUSES",
    "AllOf",
    "AnyOf",
    "AppraisalContext",
    "FreeArgument",
    "JobDigest",
    "Measurement",
    "MinimumSvn",
    "NotDebug",
    "Policy",
    "Scope",
    "Signer",
    "TcbStatus",
    "UnsafeAcceptSimulated",
    "job_digest",
]

TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""What a policy may allow. Revoked is not among them: no policy can allow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalContext:
    """What a policy judges.

    Attributes:
        claims: Verified.
        job: The job document whose digest the claims bind (`claims.check_init_data`), None if there is none.
    """

    claims: Claims
    job: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the enclosing `AllOf`s waive or restate.

    Attributes:
        simulated: `UnsafeAcceptSimulated` is among them.
        tcb_status: A `TcbStatus` is among them and judges the status.
    """

    simulated: bool = False
    tcb_status: bool = False

    def reasons(self, claims: Claims) -> list[str]:
        """Return why the claims fail what every branch of every policy requires."""
        found = []
        if claims.tee != "sgx":
            # MRTD covers the firmware alone; which kernel and program run is in the RTMRs, which no check reads yet.
            found.append(f"tee: expected sgx, got {claims.tee}, whose code no check covers yet")
        if claims.simulated and not self.simulated:
            found.append(f"root: expected hardware, got simulated ({claims.root_fingerprint[:16]})")
        if claims.debug:
            found.append("debug: expected a production enclave, got a debug enclave")
        if not self.tcb_status:
            found += _status(claims, ("UpToDate",))
        return found


class Policy(Protocol):
    """Says whether claims are acceptable."""

    kind: ClassVar[str]

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims; none means acceptable."""
        ...


def _listed(values: Sequence[object]) -> str:
    return " or ".join(str(v) for v in values) or "nothing"


@dataclass(frozen=True, slots=True)
class Measurement:
    """MRENCLAVE is one of `values`, hex."""

    values: tuple[str, ...]
    kind: ClassVar[str] = "measurement"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        got = context.claims.measurement.hex()
        own = [] if got in self.values else [f"measurement: expected {_listed(self.values)}, got {got}"]
        return scope.reasons(context.claims) + own


@dataclass(frozen=True, slots=True)
class Signer:
    """MRSIGNER is one of `values`, hex. Old versions have the same signer: add `MinimumSvn` with a product."""

    values: tuple[str, ...]
    kind: ClassVar[str] = "signer"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        got = context.claims.signer.hex()
        own = [] if got in self.values else [f"signer: expected {_listed(self.values)}, got {got}"]
        return scope.reasons(context.claims) + own


@dataclass(frozen=True, slots=True)
class MinimumSvn:
    """The enclave's security version is at least `minimum`, and its product number `product` if given. SGX only."""

    minimum: int
    product: int | None = None
    kind: ClassVar[str] = "minimum_svn"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        claims = context.claims
        found = scope.reasons(claims)
        if claims.isv_svn < self.minimum:
            found.append(f"minimum_svn: expected at least {self.minimum}, got {claims.isv_svn}")
        if self.product is not None and claims.isv_prod_id != self.product:
            found.append(f"product: expected {self.product}, got {claims.isv_prod_id}")
        return found


@dataclass(frozen=True, slots=True)
class TcbStatus:
    """The platform's TCB status is one of `allowed`. Without this check it must be UpToDate."""

    allowed: tuple[str, ...] = ("UpToDate",)
    kind: ClassVar[str] = "tcb_status"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        allowed = tuple(status for status in self.allowed if status in TCB_STATUSES)
        return replace(scope, tcb_status=True).reasons(context.claims) + _status(context.claims, allowed)


@dataclass(frozen=True, slots=True)
class NotDebug:
    """The enclave is a production enclave. Holds in every policy; this says so aloud."""

    kind: ClassVar[str] = "not_debug"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        return scope.reasons(context.claims)


@dataclass(frozen=True, slots=True)
class UnsafeAcceptSimulated:
    """Admits the simulated root to the checks beside it in one `AllOf`. Protects against mistakes, not the host."""

    kind: ClassVar[str] = "unsafe_accept_simulated"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return why this cannot stand alone: a waiver is not a check."""
        return [*scope.reasons(context.claims), "unsafe_accept_simulated: expected a check beside it, got none"]


@dataclass(frozen=True, slots=True)
class FreeArgument:
    """`arguments[index]` of the job may be any text that `pattern` (`attest.patterns`) matches from end to end."""

    index: int
    pattern: str

    def __post_init__(self) -> None:
        if self.index < 0 or len(self.pattern) > MAX_PATTERN_CHARS:
            raise InputError(f"a free argument has an index from 0 and a pattern of at most {MAX_PATTERN_CHARS}")
        try:
            compile_pattern(self.pattern)
        except InputError as exc:
            raise InputError(f"free argument {self.index}: {exc}", hint=exc.hint) from exc


@dataclass(frozen=True, slots=True)
class JobDigest:
    """The job's digest is one of `values` ("sha256:<hex>"), after its `free` arguments became their patterns."""

    values: tuple[str, ...]
    free: tuple[FreeArgument, ...] = ()
    kind: ClassVar[str] = "job_digest"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        found = scope.reasons(context.claims)
        if context.job is None:
            return [*found, f"job_digest: expected {_listed(self.values)}, got no job document"]
        try:
            got = job_digest(context.job, self.free)
        except InputError as exc:
            return [*found, f"job_digest: {exc}"]
        return found if got in self.values else [*found, f"job_digest: expected {_listed(self.values)}, got {got}"]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every policy holds. `UnsafeAcceptSimulated` and `TcbStatus` directly inside apply to all of them."""

    policies: tuple[Policy, ...]
    kind: ClassVar[str] = "all_of"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason against the claims."""
        checks = [p for p in self.policies if not isinstance(p, UnsafeAcceptSimulated)]
        inner = Scope(
            simulated=scope.simulated or len(checks) < len(self.policies),
            tcb_status=scope.tcb_status or any(isinstance(p, TcbStatus) for p in checks),
        )
        if not checks:
            return ["all_of: expected at least one check, got none"]
        found = [reason for policy in checks for reason in policy.judge(context, inner)]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one policy holds."""

    policies: tuple[Policy, ...]
    kind: ClassVar[str] = "any_of"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[str]:
        """Return every reason of every branch, each with its branch's number."""
        if not self.policies:
            return ["any_of: expected at least one policy, got none"]
        found = []
        for number, policy in enumerate(self.policies):
            reasons = policy.judge(context, scope)
            if not reasons:
                return []
            found += [f"any_of[{number}]: {reason}" for reason in reasons]
        return found


def job_digest(job: Mapping[str, object], free: Sequence[FreeArgument] = ()) -> str:
    """Return the digest of `job`, SHA-256 of its init data, with each free argument replaced by its pattern.

    Raises:
        InputError: A free argument is missing, not text, or not what its pattern allows.
    """
    if not free:
        return sha256_id(job_init_data(job).encode("utf-8"))
    arguments = job.get("arguments")
    if not isinstance(arguments, list):
        raise InputError("expected a list of arguments, got none")
    replaced: list[object] = list(arguments)
    for argument in free:
        got = arguments[argument.index] if argument.index < len(arguments) else None
        if not isinstance(got, str) or not compile_pattern(argument.pattern).matches(got):
            shown = f"{got!r:.80}" if got is not None else "none"
            raise InputError(f"argument {argument.index}: expected {argument.pattern!r}, got {shown}")
        replaced[argument.index] = {"free": argument.pattern}
    return sha256_id(job_init_data({**job, "arguments": replaced}).encode("utf-8"))


def _status(claims: Claims, allowed: Sequence[str]) -> list[str]:
    if claims.tcb_status in allowed:
        return []
    advisories = f" ({', '.join(claims.advisory_ids)})" if claims.advisory_ids else ""
    return [f"tcb_status: expected {_listed(allowed)}, got {claims.tcb_status}{advisories}"]
