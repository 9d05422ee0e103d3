"""The checks that a policy is made of. Each is a value that compares claims and says what it expected and got.

A check judges claims and nothing else: no clock, no network, no global. What holds whether or not a policy says so is
in `findings.Scope`; the raising entry and JSON are in `appraisal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from strongroom._encoding import sha256_id
from strongroom.attest.binding import job_init_data
from strongroom.attest.findings import (
    AppraisalContext,
    Finding,
    Policy,
    Scope,
    listed,
    one_of,
    platform_findings,
    shown_flag,
)
from strongroom.attest.patterns import MAX_PATTERN_CHARS, compile_pattern
from strongroom.errors import InputError

__all__ = [
    "LATE_STATUSES",
    "PLATFORM_FLAGS",
    "TCB_STATUSES",
    "TDX_REGISTERS",
    "AllOf",
    "AnyOf",
    "FreeArgument",
    "JobDigest",
    "Machine",
    "Measurement",
    "MinimumEvaluation",
    "MinimumSvn",
    "NotDebug",
    "PlatformFlags",
    "Reference",
    "Rego",
    "Root",
    "Signer",
    "SnpMeasurement",
    "TcbStatus",
    "TdxMeasurements",
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

LATE_STATUSES = TCB_STATUSES[4:]
"""Out of date, or out of date when a domain was launched."""

PLATFORM_FLAGS = ("dynamic_platform", "cached_keys", "smt")
"""What the PCK certificate of an Intel platform says of its configuration; each may be unknown."""

TDX_REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")


class _Check:
    """A policy that holds no others: it compares what every branch does, and something of its own."""

    __slots__ = ()
    kind: ClassVar[str]

    def judge(self, context: AppraisalContext, scope: Scope) -> list[Finding]:
        """Return every comparison that decides, passed or not."""
        return [*_admitting(scope, (self,)).findings(context.claims), *self._own(context)]

    def _own(self, context: AppraisalContext) -> list[Finding]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Measurement(_Check):
    """MRENCLAVE of SGX is one of `values`, hex. What SNP and TDX measure has checks of its own."""

    values: tuple[str, ...]
    kind: ClassVar[str] = "measurement"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        return [one_of("measurement", self.values, context.claims.measurement.hex())]


@dataclass(frozen=True, slots=True)
class SnpMeasurement(_Check):
    """The launch digest of SNP is one of `values`, hex, which the owner computed with kernel and what it starts with.

    No report says what its digest covers. If the firmware has no hashes of kernel, first file system and command line
    (QEMU: kernel-hashes=on), it covers the firmware alone, and the host chooses what runs. So a digest that somebody's
    evidence showed names no code; one that a build computed from all of them does, and only this check admits SNP.
    """

    values: tuple[str, ...]
    kind: ClassVar[str] = "snp_measurement"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        claims = context.claims
        return [one_of("snp_measurement", self.values, claims.measurement.hex() if claims.tee == "snp" else "")]


@dataclass(frozen=True, slots=True)
class TdxMeasurements(_Check):
    """What TDX measures is one of the values named for it, hex; a register without values is not judged.

    MRTD covers the firmware, RTMR0 its configuration with ACPI tables (programs that the kernel runs), RTMR1 the
    kernel, RTMR2 command line and first file system, RTMR3 what is measured later. Only all five say which code runs,
    so only then does this admit TDX.
    """

    mrtd: tuple[str, ...] = ()
    rtmr0: tuple[str, ...] = ()
    rtmr1: tuple[str, ...] = ()
    rtmr2: tuple[str, ...] = ()
    rtmr3: tuple[str, ...] = ()
    kind: ClassVar[str] = "tdx_measurements"

    @property
    def named(self) -> dict[str, tuple[str, ...]]:
        """The registers that are judged, with their values."""
        return {name: values for name in TDX_REGISTERS if (values := getattr(self, name))}

    @property
    def complete(self) -> bool:
        """Whether every register is judged."""
        return len(self.named) == len(TDX_REGISTERS)

    def _own(self, context: AppraisalContext) -> list[Finding]:
        claims = context.claims
        if claims.tee != "tdx":
            return [Finding("tdx_measurements", "tdx", claims.tee)]
        got = dict(zip(TDX_REGISTERS, (claims.measurement, *claims.rtmrs), strict=True))
        return [one_of(name, values, got[name].hex()) for name, values in self.named.items()]


@dataclass(frozen=True, slots=True)
class Signer(_Check):
    """MRSIGNER is one of `values`, hex. Old versions have the same signer: add `MinimumSvn` with a product."""

    values: tuple[str, ...]
    kind: ClassVar[str] = "signer"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        return [one_of("signer", self.values, context.claims.signer.hex())]


@dataclass(frozen=True, slots=True)
class MinimumSvn(_Check):
    """The enclave's security version is at least `minimum`, and its product number `product` if given. SGX only."""

    minimum: int
    product: int | None = None
    kind: ClassVar[str] = "minimum_svn"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        claims = context.claims
        sgx = claims.tee == "sgx"
        got = str(claims.isv_svn) if sgx else f"none of {claims.tee}"
        found = [Finding(self.kind, f"at least {self.minimum}", got, sgx and claims.isv_svn >= self.minimum)]
        if self.product is not None:
            found.append(one_of("product", (str(self.product),), str(claims.isv_prod_id) if sgx else ""))
        return found


@dataclass(frozen=True, slots=True)
class TcbStatus(_Check):
    """The platform's TCB status is one of `allowed`, and of its advisories only those named in `advisories` apply.

    With `grace_days`, a platform that is out of date, or was when it launched a domain, is allowed only so long after
    the date of its TCB level. Without this check the status is UpToDate, and no advisory applies.
    """

    allowed: tuple[str, ...] = ("UpToDate",)
    advisories: tuple[str, ...] = ()
    grace_days: int | None = None
    kind: ClassVar[str] = "tcb_status"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        claims = context.claims
        found = platform_findings(claims, [s for s in self.allowed if s in TCB_STATUSES], self.advisories)
        if self.grace_days is not None and claims.tcb_status in LATE_STATUSES:
            age = claims.tcb_age_days
            got = "an unknown date" if age is None else f"{age} days after {claims.tcb_date}"
            within = age is not None and age <= self.grace_days
            found.append(Finding("grace", f"at most {self.grace_days} days after the TCB's date", got, within))
        return found


@dataclass(frozen=True, slots=True)
class MinimumEvaluation(_Check):
    """The TCB info and QE identity that judged the platform are of edition `minimum` or later."""

    minimum: int
    kind: ClassVar[str] = "minimum_evaluation"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        got = context.claims.tcb_eval_number
        return [Finding(self.kind, f"at least {self.minimum}", str(got), got is not None and got >= self.minimum)]


@dataclass(frozen=True, slots=True)
class Machine(_Check):
    """The machine is one of `values`: hex of its PPID or instance id (Intel), or of its CHIP_ID (AMD)."""

    values: tuple[str, ...]
    kind: ClassVar[str] = "machine"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        claims = context.claims
        # A machine that hides its name shows zeros: that is no machine's name.
        got = [name.hex() for name in (claims.ppid, claims.piid, claims.chip_id) if any(name)]
        return [Finding(self.kind, listed(self.values), listed(got), not set(got).isdisjoint(self.values))]


@dataclass(frozen=True, slots=True)
class PlatformFlags(_Check):
    """No flag of an Intel platform is set but those in `allowed`; one that its certificate does not tell counts as set.

    Without this check none is judged, as in Intel's own appraisal, which refuses only what a policy forbids: servers
    with TDX have all three. A dynamic platform may get processors later, whose keys Intel's registration service gives
    out; cached keys are platform keys that this service holds; SMT lets a neighbour measure time on the same core.
    """

    allowed: tuple[str, ...] = ()
    kind: ClassVar[str] = "platform_flags"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        flags = {name: getattr(context.claims, name) for name in PLATFORM_FLAGS if name not in self.allowed}
        return [Finding(name, "no", shown_flag(got), got is False) for name, got in flags.items()]


@dataclass(frozen=True, slots=True)
class NotDebug(_Check):
    """The enclave is a production enclave. Holds in every policy; this says so aloud."""

    kind: ClassVar[str] = "not_debug"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        return []


@dataclass(frozen=True, slots=True)
class UnsafeAcceptSimulated(_Check):
    """Admits the simulated root to the checks beside it in one `AllOf`. Protects against mistakes, not the host."""

    kind: ClassVar[str] = "unsafe_accept_simulated"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        return [Finding(self.kind, "a check beside it", "none")]  # a waiver is not a check, and cannot stand alone


@dataclass(frozen=True, slots=True)
class Root(_Check):
    """The root is one of `values`, by SHA-256 of its certificate in hex. Only this admits one that is no maker's.

    Whoever administers a trust service can have it believe any root; an owner who does not name it is not affected. A
    simulated root still needs `UnsafeAcceptSimulated`.
    """

    values: tuple[str, ...]
    kind: ClassVar[str] = "root"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        return [one_of("root_fingerprint", self.values, context.claims.root_fingerprint)]


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
class JobDigest(_Check):
    """The job's digest is one of `values` ("sha256:<hex>"), after its `free` arguments became their patterns."""

    values: tuple[str, ...]
    free: tuple[FreeArgument, ...] = ()
    kind: ClassVar[str] = "job_digest"

    def _own(self, context: AppraisalContext) -> list[Finding]:
        known = context.digest if not self.free else ""  # whose arguments are free, only the document says
        try:
            got = known or "no job document" if context.job is None else job_digest(context.job, self.free)
        except InputError as exc:
            got = f"none: {exc}"
        return [one_of("job_digest", self.values, got)]


@dataclass(frozen=True, slots=True)
class Rego(_Check):
    """The Rego `module` says that `data.policy.allow` is true. It can refuse what others accept, and waive nothing.

    `input` is an attestation result's payload as far as it says what was verified (`submods`), and the job document
    (`job`). It has no report data, so that the same guest's next question is the same question.
    """

    module: str
    kind: ClassVar[str] = "rego"

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the module; decisions name it."""
        return sha256_id(self.module.encode("utf-8"))

    def _own(self, context: AppraisalContext) -> list[Finding]:
        from strongroom.attest import rego, result  # noqa: PLC0415  # few policies need them

        claims = replace(context.claims, report_data=b"")
        digest = None if context.job is None else job_digest(context.job)
        cpu = result.submodule(claims, result.NOT_APPRAISED, digest, appraised=False)
        got = rego.ask(self.module, {"submods": {"cpu0": cpu}, "job": context.job})
        return [Finding(f"rego {self.digest}", rego.ALLOWED, got, got == rego.ALLOWED)]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every policy holds. A `Rego` right inside is asked only if all others accept.

    Right inside, these apply to all: `UnsafeAcceptSimulated`, `Root`, `TcbStatus`, `SnpMeasurement`, and
    `TdxMeasurements` if it is complete.
    """

    policies: tuple[Policy, ...]
    kind: ClassVar[str] = "all_of"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[Finding]:
        """Return every comparison that decides, passed or not."""
        checks, inner = [p for p in self.policies if not isinstance(p, UnsafeAcceptSimulated)], self.inside(scope)
        if not checks:
            return [Finding("all_of", "at least one check", "none")]
        found = [f for policy in checks if not isinstance(policy, Rego) for f in policy.judge(context, inner)]
        for policy in checks:
            if isinstance(policy, Rego) and all(f.passed for f in found):
                found += policy.judge(context, inner)
        return list(dict.fromkeys(found))

    def inside(self, scope: Scope) -> Scope:
        """Return the scope of the policies inside."""
        waived = any(isinstance(p, UnsafeAcceptSimulated) for p in self.policies)
        return replace(_admitting(scope, self.policies), simulated=scope.simulated or waived)


@dataclass(frozen=True, slots=True)
class Reference:
    """Every policy holds; they were written from the reference values `id`, which the key `signer` signed."""

    id: str
    signer: str
    policies: tuple[Policy, ...]
    kind: ClassVar[str] = "reference"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[Finding]:
        """Return every comparison that decides, passed or not."""
        return AllOf(self.policies).judge(context, scope)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one policy holds."""

    policies: tuple[Policy, ...]
    kind: ClassVar[str] = "any_of"

    def judge(self, context: AppraisalContext, scope: Scope) -> list[Finding]:
        """Return the findings of the branch that holds, else of every branch, each with its branch's number."""
        if not self.policies:
            return [Finding("any_of", "at least one policy", "none")]
        found = []
        for number, policy in enumerate(self.policies):
            branch = policy.judge(context, scope)
            if all(f.passed for f in branch):
                return branch
            found += [replace(f, check=f"any_of[{number}]: {f.check}") for f in branch]
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


_ADMITTING = {SnpMeasurement, TdxMeasurements, Root, TcbStatus}


def _admitting(scope: Scope, checks: Sequence[Policy]) -> Scope:
    checks = [p for p in checks if type(p) in _ADMITTING]
    if not checks:
        return scope
    snp = any(isinstance(p, SnpMeasurement) for p in checks)
    tdx = any(isinstance(p, TdxMeasurements) and p.complete for p in checks)
    more = [tee for tee, named in (("snp", snp), ("tdx", tdx)) if named and tee not in scope.tees]
    roots = (value for p in checks if isinstance(p, Root) for value in p.values)
    judged = scope.tcb_status or any(isinstance(p, TcbStatus) for p in checks)
    return replace(scope, tees=(*scope.tees, *more), roots=(*scope.roots, *roots), tcb_status=judged)
