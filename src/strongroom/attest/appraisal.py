"""Appraisal: are verified claims acceptable? The raising entry, and policies as JSON.

Rules:

1. A policy that checks nothing denies: an empty `AllOf`, an empty `AnyOf`, a waiver alone.
2. A maker's root, a production enclave and an up-to-date platform without advisories are required in every branch, for
   SNP at VMPL 0. Only `UnsafeAcceptSimulated` in an enclosing `AllOf` admits a simulated root, only a `Root` one that
   is no maker's, only `TcbStatus` another status or advisories by name, only an `SnpMeasurement` SNP, only a
   `TdxMeasurements` that names MRTD and every RTMR TDX, and nothing a debug enclave.
3. A refusal carries every reason, each as `check: expected X, got Y`.
4. JSON is strict: unknown kinds and fields, wrong types, depth over 8 or more than 4096 checks and free arguments are
   errors.
5. A policy to be stored names code in every branch that can accept (`check_pins_code`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import cast

from strongroom.attest.findings import AppraisalContext, Finding, Policy, Scope
from strongroom.attest.policies import (
    LATE_STATUSES,
    PLATFORM_FLAGS,
    TCB_STATUSES,
    TDX_REGISTERS,
    AllOf,
    AnyOf,
    FreeArgument,
    JobDigest,
    Machine,
    Measurement,
    MinimumEvaluation,
    MinimumSvn,
    NotDebug,
    PlatformFlags,
    Reference,
    Rego,
    Root,
    Signer,
    SnpMeasurement,
    TcbStatus,
    TdxMeasurements,
    UnsafeAcceptSimulated,
    job_digest,
)
from strongroom.errors import AppraisalError, InputError

__all__ = [
    "AllOf",
    "AnyOf",
    "AppraisalContext",
    "Finding",
    "FreeArgument",
    "JobDigest",
    "Machine",
    "Measurement",
    "MinimumEvaluation",
    "MinimumSvn",
    "NotDebug",
    "PlatformFlags",
    "Policy",
    "Reference",
    "Rego",
    "Root",
    "Signer",
    "SnpMeasurement",
    "TcbStatus",
    "TdxMeasurements",
    "UnsafeAcceptSimulated",
    "appraise",
    "check_pins_code",
    "findings",
    "job_digest",
    "names_job",
    "policy_from_json",
    "policy_to_json",
    "references",
    "rego_modules",
]

_log = logging.getLogger(__name__)

_NAMES = ("measurement", "snp_measurement", "signer", *TDX_REGISTERS)
_CODE = frozenset({"code", "signer", "version"})
_JOB = frozenset({"job"})
_MAX_DEPTH = 8
_MAX_CHECKS = 4096
_MAX_VALUES = 1024
_MAX_MODULE = 64 << 10
_HEX = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{96})")
_HEX32 = re.compile(r"[0-9a-f]{64}")
_HEX48 = re.compile(r"[0-9a-f]{96}")
_MACHINE = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{128})")
_ADVISORY = re.compile(r"[A-Za-z0-9-]{1,64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def findings(policy: Policy, context: AppraisalContext) -> list[Finding]:
    """Return every comparison that decides, passed or not; the claims are acceptable if all passed."""
    return policy.judge(context, Scope())


def appraise(policy: Policy, context: AppraisalContext) -> None:
    """Return only if `policy` accepts the claims.

    Raises:
        AppraisalError: With every reason.
    """
    reasons = [str(finding) for finding in findings(policy, context) if not finding.passed]
    if reasons:
        raise AppraisalError(reasons, hint="compare the expected values with those of the build that was attested")
    if context.claims.simulated:
        _log.warning(
            "accepted a SIMULATED root fingerprint=%s: no hardware protects it", context.claims.root_fingerprint
        )


def references(policy: Policy, context: AppraisalContext, scope: Scope | None = None) -> list[str]:
    """Return which reference values `policy`, which accepts the claims, took the code by: of choices, in the first.

    Signed ones by their id; where an owner named the value in the policy itself, the kind of check and what it found
    (`measurement a1…`).
    """
    scope = scope or Scope()
    match policy:
        case AnyOf():
            accept = (p for p in policy.policies if all(found.passed for found in p.judge(context, scope)))
            used = [name for inner in islice(accept, 1) for name in references(inner, context, scope)]
        case AllOf():
            used = [name for inner in policy.policies for name in references(inner, context, policy.inside(scope))]
        case Reference():
            used = [policy.id]
        case Measurement() | SnpMeasurement() | Signer() | TdxMeasurements():
            used = [f"{found.check} {found.got}" for found in policy.judge(context, scope) if found.check in _NAMES]
        case _:
            used = []
    return list(dict.fromkeys(used))


def rego_modules(policy: Policy) -> list[str]:
    """Return the digests of the Rego modules anywhere in `policy`."""
    if isinstance(policy, AllOf | AnyOf | Reference):
        return [found for inner in policy.policies for found in rego_modules(inner)]
    return [policy.digest] if isinstance(policy, Rego) else []


def check_pins_code(policy: Policy) -> None:
    """Return only if every branch of `policy` that can accept names the code: what may run is never the host's choice.

    Code is named by `measurement` (SGX), by `signer` with `minimum_svn` and its product (SGX), by `snp_measurement`, or
    by `tdx_measurements` with all its registers.

    Raises:
        InputError: Some branch accepts code that nobody named.
    """
    if "code" not in _pinned(policy):
        raise InputError(
            "policy: a branch that can accept names no code: expected measurement, signer and minimum_svn with "
            "product, snp_measurement, or tdx_measurements with mrtd and rtmr0 to rtmr3, beside the other checks",
            hint="`strongroom policy set --allow JOB` writes a whole policy",
        )


def names_job(policy: Policy) -> bool:
    """Return whether every branch of `policy` that can accept names the job, with all its arguments."""
    return _pinned(policy) >= _JOB


def _pinned(policy: Policy) -> frozenset[str]:
    match policy:
        case AllOf() | Reference():
            found = frozenset[str]().union(*(_pinned(inner) for inner in policy.policies))
        case AnyOf(policies=()):
            found = _CODE | _JOB  # never accepts
        case AnyOf():
            found = frozenset.intersection(*(_pinned(inner) for inner in policy.policies))
        case Measurement() | SnpMeasurement() | TdxMeasurements(complete=True):
            found = frozenset({"code"})
        case JobDigest(free=()):
            found = _JOB
        case Signer():
            found = frozenset({"signer"})
        case MinimumSvn(product=int()):
            found = frozenset({"version"})
        case _:
            found = frozenset()
    return found | _CODE if found >= {"signer", "version"} else found


def policy_to_json(policy: Policy) -> dict[str, object]:
    """Return `policy` as JSON-ready values.

    Raises:
        InputError: A policy of a kind that has no JSON form.
    """
    rest: dict[str, object] = {}
    match policy:
        case AllOf() | AnyOf():
            rest = {"policies": [policy_to_json(inner) for inner in policy.policies]}
        case Reference():
            inner = [policy_to_json(p) for p in policy.policies]
            rest = {"id": policy.id, "signer": policy.signer, "policies": inner}
        case Measurement() | SnpMeasurement() | Signer() | Machine() | Root():
            rest = {"values": list(policy.values)}
        case TdxMeasurements():
            rest = {name: list(values) for name, values in policy.named.items()}
        case JobDigest():
            free = [{"index": f.index, "pattern": f.pattern} for f in policy.free]
            rest = {"values": list(policy.values)} | ({"free": free} if free else {})
        case MinimumSvn():
            rest = {"minimum": policy.minimum, **({} if policy.product is None else {"product": policy.product})}
        case Rego():
            rest = {"module": policy.module}
        case MinimumEvaluation():
            rest = {"minimum": policy.minimum}
        case TcbStatus():
            rest = {"allowed": list(policy.allowed)}
            rest |= {"advisories": list(policy.advisories)} if policy.advisories else {}
            rest |= {} if policy.grace_days is None else {"grace_days": policy.grace_days}
        case PlatformFlags():
            rest = {"allowed": list(policy.allowed)} if policy.allowed else {}
        case NotDebug() | UnsafeAcceptSimulated():
            pass
        case _:
            raise InputError(f"policy: {policy.kind!r} has no JSON form")
    return {"kind": policy.kind, **rest}


def policy_from_json(value: object) -> Policy:
    """Return the policy in `value`.

    Raises:
        InputError: Unknown kinds or fields, wrong values, or more than 8 levels or 4096 checks.
    """
    return _Reader().policy(value, 0)


class _Reader:
    """Reads one policy; counts so that a small document cannot cost much."""

    def __init__(self) -> None:
        self._count = 0

    def policy(self, value: object, depth: int) -> Policy:
        self._count += 1
        if depth >= _MAX_DEPTH or self._count > _MAX_CHECKS:
            raise InputError(f"policy: at most {_MAX_DEPTH} levels and {_MAX_CHECKS} checks are allowed")
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
            raise InputError(f"policy: expected an object of kind {', '.join(_KINDS)}, got {kind!r:.40}")
        required, optional, build = _KINDS[kind]
        fields = set(value) - {"kind"}
        if not required <= fields <= required | optional:
            raise InputError(f"policy {kind}: expected fields {sorted(required)}, got {sorted(map(str, fields))}")
        return build(self, value, depth)

    def free(self, value: Mapping[str, object]) -> tuple[FreeArgument, ...]:
        found = _free(value)
        self._count += len(found)
        if self._count > _MAX_CHECKS:
            raise InputError(f"policy: at most {_MAX_CHECKS} checks and free arguments are allowed")
        return found

    def inner(self, value: Mapping[str, object], depth: int) -> tuple[Policy, ...]:
        found = value["policies"]
        if not isinstance(found, list):
            raise InputError(f"policy {value['kind']}: policies is not a list")
        return tuple(self.policy(item, depth + 1) for item in found)


def _texts(value: Mapping[str, object], name: str, allowed: Callable[[str], object]) -> tuple[str, ...]:
    found = value[name]
    if not isinstance(found, list) or not 0 < len(found) <= _MAX_VALUES:
        raise InputError(f"policy {value['kind']}: {name} is not a list of 1 to {_MAX_VALUES}")
    for item in found:
        if not isinstance(item, str) or not allowed(item):
            raise InputError(f"policy {value['kind']}: {item!r:.100} is not a value for {name}")
    return tuple(cast(list[str], found))


def _number(value: Mapping[str, object], name: str) -> int:
    found = value[name]
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 16:
        raise InputError(f"policy {value.get('kind', 'free argument')}: {name} is not a number from 0 to 65535")
    return found


def _reference(reader: _Reader, value: Mapping[str, object], depth: int) -> Reference:
    for name in ("id", "signer"):
        if not isinstance(value[name], str) or not _DIGEST.fullmatch(str(value[name])):
            raise InputError(f"policy reference: {name} is not a SHA-256 id")
    return Reference(str(value["id"]), str(value["signer"]), reader.inner(value, depth))


def _rego(value: Mapping[str, object]) -> Rego:
    module = value["module"]
    raw = module.encode("utf-8", "replace") if isinstance(module, str) else b""
    # Behind a NUL the library reads nothing, so nothing may stand there. What UTF-8 cannot carry became a `?`.
    if not 0 < len(raw) <= _MAX_MODULE or b"\0" in raw or raw.decode("utf-8") != module:
        raise InputError(f"policy rego: module is not a text of 1 to {_MAX_MODULE} bytes without NUL")
    return Rego(module)


def _machine(text: str) -> bool:
    return _MACHINE.fullmatch(text) is not None and set(text) != {"0"}


def _tdx(value: Mapping[str, object]) -> TdxMeasurements:
    named = {name: _texts(value, name, _HEX48.fullmatch) for name in TDX_REGISTERS if name in value}
    if not named:
        raise InputError(f"policy tdx_measurements: expected one or more of {', '.join(TDX_REGISTERS)}, got none")
    return TdxMeasurements(**named)


def _platform_flags(value: Mapping[str, object]) -> PlatformFlags:
    return PlatformFlags(_texts(value, "allowed", PLATFORM_FLAGS.__contains__) if "allowed" in value else ())


def _tcb_status(value: Mapping[str, object]) -> TcbStatus:
    allowed = _texts(value, "allowed", TCB_STATUSES.__contains__)
    grace = _number(value, "grace_days") if "grace_days" in value else None
    if grace is not None and not set(allowed) & set(LATE_STATUSES):
        raise InputError("policy tcb_status: grace_days limits OutOfDate and TDRelaunchAdvised; neither is allowed")
    advisories = _texts(value, "advisories", _ADVISORY.fullmatch) if "advisories" in value else ()
    return TcbStatus(allowed, advisories, grace)


def _free(value: Mapping[str, object]) -> tuple[FreeArgument, ...]:
    found = value.get("free", [])
    if not isinstance(found, list) or len(found) > _MAX_CHECKS:
        raise InputError("policy job_digest: free is not a list")
    read = []
    for item in found:
        if not isinstance(item, Mapping) or set(item) != {"index", "pattern"} or not isinstance(item["pattern"], str):
            raise InputError("policy job_digest: a free argument has exactly index and pattern")
        read.append(FreeArgument(index=_number(item, "index"), pattern=item["pattern"]))
    if len({argument.index for argument in read}) != len(read):
        raise InputError("policy job_digest: an argument is free twice")
    return tuple(read)


_Build = Callable[[_Reader, Mapping[str, object], int], Policy]
_NONE: set[str] = set()
_KINDS: dict[str, tuple[set[str], set[str], _Build]] = {
    "all_of": ({"policies"}, _NONE, lambda r, v, d: AllOf(r.inner(v, d))),
    "any_of": ({"policies"}, _NONE, lambda r, v, d: AnyOf(r.inner(v, d))),
    "reference": ({"id", "signer", "policies"}, _NONE, _reference),
    "measurement": ({"values"}, _NONE, lambda _r, v, _d: Measurement(_texts(v, "values", _HEX.fullmatch))),
    "snp_measurement": (
        {"values"},
        _NONE,
        lambda _r, v, _d: SnpMeasurement(_texts(v, "values", _HEX48.fullmatch)),
    ),
    "signer": ({"values"}, _NONE, lambda _r, v, _d: Signer(_texts(v, "values", _HEX.fullmatch))),
    "job_digest": (
        {"values"},
        {"free"},
        lambda r, v, _d: JobDigest(_texts(v, "values", _DIGEST.fullmatch), r.free(v)),
    ),
    "minimum_svn": (
        {"minimum"},
        {"product"},
        lambda _r, v, _d: MinimumSvn(_number(v, "minimum"), _number(v, "product") if "product" in v else None),
    ),
    "tdx_measurements": (_NONE, set(TDX_REGISTERS), lambda _r, v, _d: _tdx(v)),
    "tcb_status": ({"allowed"}, {"advisories", "grace_days"}, lambda _r, v, _d: _tcb_status(v)),
    "minimum_evaluation": ({"minimum"}, _NONE, lambda _r, v, _d: MinimumEvaluation(_number(v, "minimum"))),
    "machine": ({"values"}, _NONE, lambda _r, v, _d: Machine(_texts(v, "values", _machine))),
    "root": ({"values"}, _NONE, lambda _r, v, _d: Root(_texts(v, "values", _HEX32.fullmatch))),
    "rego": ({"module"}, _NONE, lambda _r, v, _d: _rego(v)),
    "platform_flags": (_NONE, {"allowed"}, lambda _r, v, _d: _platform_flags(v)),
    "not_debug": (_NONE, _NONE, lambda _r, _v, _d: NotDebug()),
    "unsafe_accept_simulated": (_NONE, _NONE, lambda _r, _v, _d: UnsafeAcceptSimulated()),
}
