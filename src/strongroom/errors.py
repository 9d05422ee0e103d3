"""Every error that Strongroom raises on purpose, and the one table that maps it to the outside.

    StrongroomError
    ├── InputError                what was asked for is wrong: fix the request
    ├── AttestationError
    │   ├── EvidenceError         the bytes are not a quote of the format
    │   ├── EndorsementError      endorsements are missing, expired, revoked or not for this platform
    │   ├── VerificationError     a signature, chain or binding does not hold
    │   └── AppraisalError        the values are true but not acceptable; carries every reason
    ├── DeniedError               the gate's answer
    │   └── UnattestedError       to a session that has not attested, or not lately
    ├── IntegrityError            data, manifest, log or database was altered
    └── UnavailableError          try again later; the only one that is retried

Messages say what, which one, expected and got. They never hold key material. `hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = [
    "AppraisalError",
    "AttestationError",
    "DeniedError",
    "EndorsementError",
    "EvidenceError",
    "InputError",
    "IntegrityError",
    "StrongroomError",
    "UnattestedError",
    "UnavailableError",
    "VerificationError",
    "from_code",
]


class StrongroomError(Exception):
    """Base of the tree.

    Attributes:
        code: Stable name, also the page under docs/reference/errors.md.
        http_status: What the trust service answers.
        exit_status: What the command line exits with.
        hint: One sentence on what to do, or "".
        details: JSON-ready extras for programs (`reasons`, `request`); never secrets.
    """

    code = "unexpected"
    http_status = 500
    exit_status = 2

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.details: dict[str, object] = dict(details or {})


class InputError(StrongroomError):
    """The request is wrong; the same request will fail again."""

    code = "input"
    http_status = 400
    exit_status = 1


class AttestationError(StrongroomError):
    """Base of the four attestation errors."""

    code = "attestation"
    http_status = 401
    exit_status = 1


class EvidenceError(AttestationError):
    """The evidence is not what its format defines."""

    code = "evidence"
    http_status = 400


class EndorsementError(AttestationError):
    """Endorsements are missing, expired, revoked or do not fit the evidence."""

    code = "endorsement"


class VerificationError(AttestationError):
    """A signature, certificate chain or binding does not hold."""

    code = "verification"


class AppraisalError(AttestationError):
    """Verified claims are not acceptable under the policy.

    Attributes:
        reasons: Each failed check, with expected and got.
    """

    code = "appraisal"
    http_status = 403

    def __init__(self, reasons: Sequence[str], *, hint: str = "", details: Mapping[str, object] | None = None) -> None:
        self.reasons = list(reasons)
        super().__init__(
            "; ".join(self.reasons) or "no policy allows it",
            hint=hint,
            details={"reasons": self.reasons, **(details or {})},
        )


class DeniedError(StrongroomError):
    """The gate says no."""

    code = "denied"
    http_status = 403
    exit_status = 1


class UnattestedError(DeniedError):
    """The session has not attested, or its lease has ended; clients of the protocol attest again at this status."""

    http_status = 401


class IntegrityError(StrongroomError):
    """Something that was written by us is not as it was written."""

    code = "integrity"
    http_status = 409
    exit_status = 1


class UnavailableError(StrongroomError):
    """Not now: a retry may help."""

    code = "unavailable"
    http_status = 503
    exit_status = 1


_BY_CODE: dict[str, type[StrongroomError]] = {
    c.code: c
    for c in (
        InputError,
        EvidenceError,
        EndorsementError,
        VerificationError,
        DeniedError,
        IntegrityError,
        UnavailableError,
    )
}


def from_code(
    code: str, message: str, *, hint: str = "", details: Mapping[str, object] | None = None
) -> StrongroomError:
    """Return the error that another Strongroom program reported as `code`."""
    extras = dict(details or {})
    if code == AppraisalError.code:
        reasons = extras.pop("reasons", None)
        listed = [str(r) for r in reasons] if isinstance(reasons, list) else [message]
        return AppraisalError(listed, hint=hint, details=extras)
    return _BY_CODE.get(code, StrongroomError)(message, hint=hint, details=extras)
