"""Endorsements of AMD SEV-SNP: the chain above chips' keys, its revocation list, and chips' certificates.

Like Intel's they are neither secret nor trusted. One value covers one product line and one kind of key (VCEK or VLEK).

Source: AMD "VCEK Certificate and KDS Interface Specification" (57230); fingerprints of the roots computed from the
certificates that AMD's key distribution service serves.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from strongroom.attest.endorsements import Endorsements, crl_dates
from strongroom.errors import EndorsementError

__all__ = ["AMD_ROOTS", "AnyEndorsements", "SNPEndorsements", "read_endorsements"]

AMD_ROOTS: Mapping[str, str] = {
    "Milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "Genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "Turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
}
"""SHA-256 of AMD's root certificate (ARK) of each product line; Bergamo and Siena are Genoa's."""

_MAX_BYTES = 1 << 20
_MAX_KEYS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPEndorsements:
    """What AMD publishes about one product line.

    Attributes:
        ask: The intermediate certificate, DER: ASK over VCEKs or ASVK over VLEKs.
        ark: The root certificate, DER; trusted only if it is the verifier's anchor.
        crl: The root's revocation list, DER.
        keys: Certificates of chips or providers, DER, for reports that bring none along.
    """

    ask: bytes
    ark: bytes
    crl: bytes
    keys: tuple[bytes, ...] = ()

    tee: ClassVar[str] = "snp"

    def to_json(self) -> dict[str, object]:
        """Return the endorsements as JSON-ready values."""
        return {
            "tee": "snp",
            "ask": self.ask.hex(),
            "ark": self.ark.hex(),
            "crl": self.crl.hex(),
            "keys": [key.hex() for key in self.keys],
        }

    @classmethod
    def from_json(cls, value: object) -> SNPEndorsements:
        """Return the endorsements in `value`.

        Raises:
            EndorsementError: A part is missing, unknown, of another type or too large.
        """
        names = {"tee", "ask", "ark", "crl", "keys"}
        if not isinstance(value, Mapping) or set(value) != names or value["tee"] != "snp":
            raise EndorsementError(f"endorsements: expected exactly {sorted(names)} of tee snp")
        keys = value["keys"]
        if not isinstance(keys, list) or len(keys) > _MAX_KEYS:
            raise EndorsementError(f"endorsements: keys is not a list of at most {_MAX_KEYS}")
        parts = {name: _unhex(name, value[name]) for name in ("ask", "ark", "crl")}
        return cls(**parts, keys=tuple(_unhex("keys", key) for key in keys))

    def parts(self) -> list[tuple[str, datetime, datetime]]:
        """Return the parts that expire: name, and the moments between which it holds.

        Raises:
            EndorsementError: A part is not readable.
        """
        return [("crl", *crl_dates("crl", self.crl))]


AnyEndorsements = Endorsements | SNPEndorsements


def read_endorsements(value: object) -> AnyEndorsements:
    """Return Intel's or AMD's endorsements in `value`.

    Raises:
        EndorsementError: Neither.
    """
    if isinstance(value, Mapping) and "tee" in value:
        return SNPEndorsements.from_json(value)
    return Endorsements.from_json(value)


def _unhex(name: str, value: object) -> bytes:
    try:
        if isinstance(value, str) and 0 < len(value) <= _MAX_BYTES:
            return binascii.unhexlify(value)
    except ValueError:
        pass
    raise EndorsementError(f"endorsements: {name} is not hex of at most {_MAX_BYTES} digits")
