"""Evidence: what an attester hands over, before anyone believes it.

Runs in the guest: standard library only. Wire form: KBS `tee-evidence`, docs/formats/release-protocol.md §4.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.errors import EvidenceError

__all__ = ["MAX_EVIDENCE_BYTES", "TEES", "Evidence"]

MAX_EVIDENCE_BYTES = 1 << 16
_MAX_LOG_CHARS = 1 << 18
_LOG = "cc_eventlog"
_UNREAD = f"{_LOG} came along and was not read: registers count as they are"
_BASE64 = re.compile("[A-Za-z0-9+/]*={0,2}")
TEES = ("sgx", "tdx", "snp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A signed raw statement of a TEE.

    Attributes:
        tee: "sgx", "tdx" or "snp": who is said to have made the quote.
        quote: The quote's bytes, at most 64 KiB.
        unread: What came along and nobody looks at, for people.
    """

    tee: str
    quote: bytes
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tee not in TEES:
            raise EvidenceError(f"evidence: expected a TEE of {', '.join(TEES)}, got {self.tee!r:.40}")
        if not 0 < len(self.quote) <= MAX_EVIDENCE_BYTES:
            raise EvidenceError(f"evidence: expected 1 to {MAX_EVIDENCE_BYTES} bytes, got {len(self.quote)}")

    @classmethod
    def of(cls, quote: bytes) -> Evidence:
        """Return `quote` as evidence of the TEE that its first bytes name: of SEV-SNP, or what a quote says there.

        Raises:
            EvidenceError: Empty or too large.
        """
        # A quote has the type of its attestation key in two bytes, which is 2; a report has zeros of its version there.
        tee = "snp" if quote[2:4] == b"\0\0" else "tdx" if quote[4:8] == b"\x81\0\0\0" else "sgx"
        return cls(tee=tee, quote=quote)

    def to_json(self) -> dict[str, object]:
        """Return the evidence object of the release protocol."""
        return {"quote": base64.b64encode(self.quote).decode("ascii")}

    @classmethod
    def from_json(cls, value: object, tee: str) -> Evidence:
        """Return the evidence in `value`: a quote, for TDX also beside the event log that stock clients send.

        Raises:
            EvidenceError: Another shape, surplus fields, not base64, or too large.
        """
        if not isinstance(value, Mapping) or set(value) - ({_LOG} if tee == "tdx" else set()) != {"quote"}:
            raise EvidenceError("evidence: expected an object with exactly the field quote")
        text, log = value["quote"], value.get(_LOG)
        if log is not None and not (isinstance(log, str) and len(log) <= _MAX_LOG_CHARS and _BASE64.fullmatch(log)):
            raise EvidenceError(f"evidence: {_LOG} is not null or base64 of at most {_MAX_LOG_CHARS} characters")
        if not isinstance(text, str) or len(text) > MAX_EVIDENCE_BYTES * 4 // 3 + 4:
            raise EvidenceError(f"evidence: quote is not base64 of at most {MAX_EVIDENCE_BYTES} bytes")
        try:
            quote = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise EvidenceError("evidence: quote is not standard base64") from exc
        return cls(tee=tee, quote=quote, unread=(_UNREAD,) if log else ())
