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
from dataclasses import fields
from itertools import islice
from typing import Any, cast

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
)
from strongroom.errors import AppraisalError, InputError

__all__ = [
    "appraise",
    "check_pins_code",
    "findings",
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
_FREE = {"index", "pattern"}
_NOTHING: tuple[object, ...] = (None, ())
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
    made = type(policy)
    if made not in _FIELDS:
        raise InputError(f"policy: {policy.kind!r} has no JSON form")
    values = {name: getattr(policy, name) for name in _FIELDS[made]}
    absent = {name for name in _OPTIONAL[made] if values[name] in _NOTHING}
    return {"kind": policy.kind, **{name: _written(value) for name, value in values.items() if name not in absent}}


def _written(value: object) -> object:
    match value:
        case str() | int():
            return value
        case tuple():
            return [_written(item) for item in value]
        case FreeArgument():
            return {"index": value.index, "pattern": value.pattern}
        case _:
            return policy_to_json(cast(Policy, value))


def policy_from_json(value: object) -> Policy:
    """Return the policy in `value`.

    Raises:
        InputError: Unknown kinds or fields, wrong values, or more than 8 levels or 4096 checks.
    """
    return _Reader().policy(value)


class _Reader:
    """Reads one policy; counts so that a small document cannot cost much."""

    def __init__(self) -> None:
        self._depth = self._count = 0

    def policy(self, value: object) -> Policy:
        self._count += 1
        if self._depth >= _MAX_DEPTH or self._count > _MAX_CHECKS:
            raise InputError(f"policy: at most {_MAX_DEPTH} levels and {_MAX_CHECKS} checks are allowed")
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
            raise InputError(f"policy: expected an object of kind {', '.join(_KINDS)}, got {kind!r:.40}")
        made = _KINDS[kind]
        readers, given = _FIELDS[made], set(value) - {"kind"}
        required = set(readers) - _OPTIONAL[made]
        if not required <= given <= set(readers):
            raise InputError(f"policy {kind}: expected fields {sorted(required)}, got {sorted(map(str, given))}")
        self._depth += 1
        found = {name: read(self, kind, name, value[name]) for name, read in readers.items() if name in given}
        self._depth -= 1
        return _whole(made(**found))

    def policies(self, kind: str, name: str, value: object) -> tuple[Policy, ...]:
        if not isinstance(value, list):
            raise InputError(f"policy {kind}: {name} is not a list")
        return tuple(self.policy(item) for item in value)

    def free(self, kind: str, name: str, value: object) -> tuple[FreeArgument, ...]:
        if not isinstance(value, list) or len(value) > _MAX_CHECKS:
            raise InputError(f"policy {kind}: {name} is not a list")
        read = []
        for item in value:
            if not isinstance(item, Mapping) or set(item) != _FREE or not isinstance(item["pattern"], str):
                raise InputError(f"policy {kind}: a free argument has exactly index and pattern")
            index = self.number("free argument", "index", item["index"])
            read.append(FreeArgument(index=index, pattern=item["pattern"]))
        if len({argument.index for argument in read}) != len(read):
            raise InputError(f"policy {kind}: an argument is free twice")
        self._count += len(read)
        if self._count > _MAX_CHECKS:
            raise InputError(f"policy: at most {_MAX_CHECKS} checks and free arguments are allowed")
        return tuple(read)

    def number(self, kind: str, name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 16:
            raise InputError(f"policy {kind}: {name} is not a number from 0 to 65535")
        return value

    def digest(self, kind: str, name: str, value: object) -> str:
        if not isinstance(value, str) or not _DIGEST.fullmatch(value):
            raise InputError(f"policy {kind}: {name} is not a SHA-256 id")
        return value

    def module(self, kind: str, name: str, value: object) -> str:
        raw = value.encode("utf-8", "replace") if isinstance(value, str) else b""
        # Behind a NUL the library reads nothing, so nothing may stand there. What UTF-8 cannot carry became a `?`.
        if not 0 < len(raw) <= _MAX_MODULE or b"\0" in raw or raw.decode("utf-8") != value:
            raise InputError(f"policy {kind}: {name} is not a text of 1 to {_MAX_MODULE} bytes without NUL")
        return raw.decode("utf-8")


_Read = Callable[[_Reader, str, str, object], object]
"""Returns what a field says: the document's reader, the policy's kind, the field's name and value."""


def _texts(allowed: Callable[[str], object]) -> _Read:
    def read(_reader: _Reader, kind: str, name: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not 0 < len(value) <= _MAX_VALUES:
            raise InputError(f"policy {kind}: {name} is not a list of 1 to {_MAX_VALUES}")
        for item in value:
            if not isinstance(item, str) or not allowed(item):
                raise InputError(f"policy {kind}: {item!r:.100} is not a value for {name}")
        return tuple(value)

    return read


def _machine(text: str) -> bool:
    return _MACHINE.fullmatch(text) is not None and set(text) != {"0"}


def _whole(policy: Policy) -> Policy:
    # What no field by itself shows.
    if isinstance(policy, TdxMeasurements) and not policy.named:
        raise InputError(f"policy tdx_measurements: expected one or more of {', '.join(TDX_REGISTERS)}, got none")
    if isinstance(policy, TcbStatus) and policy.grace_days is not None and not set(policy.allowed) & set(LATE_STATUSES):
        raise InputError("policy tcb_status: grace_days limits OutOfDate and TDRelaunchAdvised; neither is allowed")
    return policy


_HEX = _texts(re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{96})").fullmatch)
_HEX48 = _texts(re.compile(r"[0-9a-f]{96}").fullmatch)
_FIELDS: Mapping[type[Any], Mapping[str, _Read]] = {
    AllOf: {"policies": _Reader.policies},
    AnyOf: {"policies": _Reader.policies},
    Reference: {"id": _Reader.digest, "signer": _Reader.digest, "policies": _Reader.policies},
    Measurement: {"values": _HEX},
    SnpMeasurement: {"values": _HEX48},
    Signer: {"values": _HEX},
    JobDigest: {"values": _texts(_DIGEST.fullmatch), "free": _Reader.free},
    MinimumSvn: {"minimum": _Reader.number, "product": _Reader.number},
    TdxMeasurements: dict.fromkeys(TDX_REGISTERS, _HEX48),
    TcbStatus: {
        "allowed": _texts(TCB_STATUSES.__contains__),
        "advisories": _texts(_ADVISORY.fullmatch),
        "grace_days": _Reader.number,
    },
    MinimumEvaluation: {"minimum": _Reader.number},
    Machine: {"values": _texts(_machine)},
    Root: {"values": _texts(re.compile(r"[0-9a-f]{64}").fullmatch)},
    Rego: {"module": _Reader.module},
    PlatformFlags: {"allowed": _texts(PLATFORM_FLAGS.__contains__)},
    NotDebug: {},
    UnsafeAcceptSimulated: {},
}
_KINDS: Mapping[str, type[Any]] = {made.kind: made for made in _FIELDS}

_OPTIONAL = {made: {field.name for field in fields(made) if field.default in _NOTHING} for made in _FIELDS}
"""What may be left out, since it says nothing if it is."""
