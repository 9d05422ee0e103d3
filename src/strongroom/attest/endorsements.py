"""Endorsements and trust anchors: what the maker of the hardware publishes, and which maker is trusted.

Endorsements are not secret and not trusted: each part is signed under the anchor and has a validity window. The anchor
is the one thing that is trusted, so it is an argument everywhere and configured by the owner.

Source: Intel PCS API v4 and `sgx_ql_qve_collateral_t` version 3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, cast

from cryptography import x509

from strongroom._encoding import parse_json
from strongroom.crypto.x509 import UNREADABLE
from strongroom.errors import EndorsementError, InputError

__all__ = ["INTEL_ROOT", "Endorsements", "TrustAnchor", "check_window", "crl_dates"]

RootKind = Literal["hardware", "simulated"]

_MAX_BYTES = 1 << 20
_BINARY = frozenset({"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustAnchor:
    """A root certificate and what it stands for.

    Attributes:
        kind: "hardware" or "simulated". A wrong "hardware" does not hide the in-band marks (`markers`).
        certificate_der: The root certificate.
    """

    kind: RootKind
    certificate_der: bytes

    def __post_init__(self) -> None:
        if self.kind not in ("hardware", "simulated"):
            raise InputError(f"a root is hardware or simulated, got {self.kind!r}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, as hex."""
        return hashlib.sha256(self.certificate_der).hexdigest()

    def to_json(self) -> dict[str, str]:
        """Return the anchor as JSON-ready values."""
        return {"kind": self.kind, "certificate": base64.b64encode(self.certificate_der).decode("ascii")}

    @classmethod
    def from_json(cls, value: object) -> TrustAnchor:
        """Return the anchor in `value`.

        Raises:
            InputError: Another shape, or not a certificate.
        """
        if not isinstance(value, Mapping) or set(value) != {"kind", "certificate"}:
            raise InputError("a trust anchor has exactly kind and certificate")
        kind, text = value["kind"], value["certificate"]
        if not isinstance(kind, str) or not isinstance(text, str) or len(text) > 1 << 14:
            raise InputError("a trust anchor's kind and certificate are text")
        try:
            der = base64.b64decode(text, validate=True)
            x509.load_der_x509_certificate(der)
        except UNREADABLE as exc:
            raise InputError("the trust anchor's certificate is not base64 DER") from exc
        return cls(kind=cast(RootKind, kind), certificate_der=der)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """The collateral of one platform family, as `dcap_qvl.QuoteCollateralV3` takes it.

    The PCK chain itself travels in the quote (certification data type 5) and is not accepted from here, so that the
    root which a quote names is the root that is checked.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    def to_json(self) -> dict[str, str]:
        """Return the endorsements as JSON-ready text; binary parts are hex, as PCCS writes them."""
        shown: dict[str, str] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            shown[field.name] = value.hex() if field.name in _BINARY else value
        return shown

    @classmethod
    def from_json(cls, value: object) -> Endorsements:
        """Return the endorsements in `value`.

        Raises:
            EndorsementError: A part is missing, unknown, of another type or too large.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise EndorsementError(f"endorsements: expected exactly {sorted(names)}, got {got}")
        parts: dict[str, str | bytes] = {}
        for name, part in value.items():
            if not isinstance(part, str) or len(part) > _MAX_BYTES or not part.isascii():
                raise EndorsementError(f"endorsements: {name} is not text of at most {_MAX_BYTES} ASCII characters")
            try:
                parts[name] = binascii.unhexlify(part) if name in _BINARY else part
            except ValueError as exc:
                raise EndorsementError(f"endorsements: {name} is not hex") from exc
        return cls(**parts)  # type: ignore[arg-type]  # each name was matched with its type above

    def parts(self) -> list[tuple[str, datetime, datetime]]:
        """Return the parts that expire: name, and the moments between which it holds.

        Raises:
            EndorsementError: A part is not readable.
        """
        found = [(name, *crl_dates(name, getattr(self, name))) for name in ("root_ca_crl", "pck_crl")]
        return found + [(name, *_dates(name, getattr(self, name))) for name in ("tcb_info", "qe_identity")]

    @property
    def tee(self) -> str:
        """The TEE that the TCB info names, "sgx" or "tdx"; "" if it names none. Only for choosing."""
        return _tee_of(self.tcb_info)


@lru_cache(maxsize=16)  # each verification asks, and endorsements change once a day
def _tee_of(tcb_info: str) -> str:
    try:
        document = parse_json(tcb_info, "tcb_info")
    except InputError:
        return ""
    return str(document.get("id", "")).lower() if isinstance(document, dict) else ""


def crl_dates(name: str, der: bytes) -> tuple[datetime, datetime]:
    """Return the moments between which a revocation list holds; without an end it holds for no time at all.

    Raises:
        EndorsementError: Not a revocation list.
    """
    try:
        crl = x509.load_der_x509_crl(der)
        return crl.last_update_utc, crl.next_update_utc or crl.last_update_utc
    except UNREADABLE as exc:
        raise EndorsementError(
            f"endorsements: the revocation list {name} is not readable",
            hint="`strongroom attest endorsements fetch FILE` gets them anew",
        ) from exc


def check_window(parts: Sequence[tuple[str, datetime, datetime]], now: datetime) -> None:
    """Return only if every part of endorsements holds at `now`.

    Raises:
        EndorsementError: One has expired, or the clock is before its time.
    """
    for name, start, end in parts:
        if not start <= now.astimezone(UTC) <= end:
            raise EndorsementError(
                f"endorsements: {name} holds from {start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}, "
                f"the time is {now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
                hint="fetch new endorsements (`strongroom attest endorsements fetch`), or correct the clock",
            )


def _dates(name: str, text: str) -> tuple[datetime, datetime]:
    try:
        document = parse_json(text, name)
        if not isinstance(document, dict):
            raise InputError(f"{name} is not an object")
        issued, until = (datetime.fromisoformat(str(document[key])) for key in ("issueDate", "nextUpdate"))
        return issued.astimezone(UTC), until.astimezone(UTC)
    except (InputError, KeyError, ValueError, OverflowError) as exc:
        raise EndorsementError(f"endorsements: {name} has no readable dates") from exc


INTEL_ROOT = TrustAnchor(
    kind="hardware",
    certificate_der=base64.b64decode(
        "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0Ex"
        "GjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMB4X"
        "DTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENv"
        "cnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0D"
        "AQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOBuzCBuDAf"
        "BgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVk"
        "c2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInzg7SVUr9QGzknBqwwDgYDVR0PAQH/"
        "BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94BgwTwg"
        "AiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
    ),
)
"""The Intel SGX Root CA, byte for byte the one built into dcap-qvl; SHA-256 44a0196b…fab674d3."""
