"""Evidence: what an attester hands over, before anyone believes it.

Runs in the guest: standard library only. Wire form: KBS `tee-evidence`, docs/formats/release-protocol.md §4.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.errors import EvidenceError

__all__ = ["MAX_EVIDENCE_BYTES", "TEES", "Evidence"]

MAX_EVIDENCE_BYTES = 1 << 16
TEES = ("sgx", "tdx", "snp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A signed raw statement of a TEE.

    Attributes:
        tee: "sgx", "tdx" or "snp": who is said to have made the quote.
        quote: The quote's bytes, at most 64 KiB.
    """

    tee: str
    quote: bytes

    def __post_init__(self) -> None:
        if self.tee not in TEES:
            raise EvidenceError(f"evidence: expected a TEE of {', '.join(TEES)}, got {self.tee!r:.40}")
        if not 0 < len(self.quote) <= MAX_EVIDENCE_BYTES:
            raise EvidenceError(f"evidence: expected 1 to {MAX_EVIDENCE_BYTES} bytes, got {len(self.quote)}")

    def to_json(self) -> dict[str, object]:
        """Return the evidence object of the release protocol."""
        return {"quote": base64.b64encode(self.quote).decode("ascii")}

    @classmethod
    def from_json(cls, value: object, tee: str) -> Evidence:
        """Return the evidence in `value`.

        Raises:
            EvidenceError: Another shape, surplus fields, not base64, or too large.
        """
        if not isinstance(value, Mapping) or set(value) != {"quote"}:
            raise EvidenceError("evidence: expected an object with exactly the field quote")
        text = value["quote"]
        if not isinstance(text, str) or len(text) > MAX_EVIDENCE_BYTES * 4 // 3 + 4:
            raise EvidenceError(f"evidence: quote is not base64 of at most {MAX_EVIDENCE_BYTES} bytes")
        try:
            quote = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise EvidenceError("evidence: quote is not standard base64") from exc
        return cls(tee=tee, quote=quote)
