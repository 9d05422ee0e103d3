"""Quotes of every version and body, taken apart so that a test can alter one part and sign the rest again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import NOW, Platform

from strongroom.attest.endorsements import Endorsements
from strongroom.attest.simulated.pki import SimulatedPKI, raw_signature

PLATFORM = Platform()
PKI = PLATFORM.pki
FORMATS = {
    "sgx3": (3, 1), "sgx4": (4, 1), "sgx5": (5, 1),
    "tdx4": (4, 2), "tdx5": (5, 2), "tdx5-1.5": (5, 3), "tdx5-ex": (5, 4),
}  # fmt: skip
_SGX, _TDX = PLATFORM.quote(), PLATFORM.quote_tdx()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a quote is made of; `build` signs with these keys, so that only what is altered is wrong."""

    version: int
    kind: int  # of the body: 1 SGX, 2 TDX 1.0, 3 TDX 1.5, 4 TDX 1.5 extended
    body: bytes
    key_type: int = 2
    tee_type: int | None = None
    vendor: bytes = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
    named_kind: int | None = None
    named_size: int | None = None
    qe_report: bytes = _SGX[564 : 564 + 384]
    qe_auth: bytes = bytes(range(32))
    rebind: bool = True  # the QE report names the attestation key
    pem: bytes = PKI.pck_chain_pem()
    outer_type: int = 6
    inner_type: int = 5
    attestation_key: ec.EllipticCurvePrivateKey = field(default=PKI.attestation_key, repr=False)
    quote_key: ec.EllipticCurvePrivateKey = field(default=PKI.attestation_key, repr=False)
    qe_key: ec.EllipticCurvePrivateKey = field(default=PKI.pck_key, repr=False)
    inside: bytes = b""  # after the PCK chain, within the authentication data
    between: bytes = b""  # after the nested data, within the authentication data
    after: bytes = b""
    auth_size: int = 0  # added to what the quote says

    def build(self) -> bytes:
        tee_type = (0, 0, 0x81, 0x81, 0x81)[self.kind] if self.tee_type is None else self.tee_type
        signed = b"".join(_le(n, s) for n, s in ((self.version, 2), (self.key_type, 2), (tee_type, 4)))
        signed += (_le(8, 2) + _le(13, 2) if self.version == 3 else bytes(4)) + self.vendor + bytes(20)
        if self.version == 5:
            signed += _le(self.kind if self.named_kind is None else self.named_kind, 2)
            signed += _le(len(self.body) if self.named_size is None else self.named_size, 4)
        signed += self.body
        numbers = self.attestation_key.public_key().public_numbers()
        point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        report = self.qe_report
        if self.rebind:
            report = patched(report, 320, hashlib.sha256(point + self.qe_auth).digest())
        nested = report + raw_signature(self.qe_key, report) + _le(len(self.qe_auth), 2) + self.qe_auth
        nested += _le(self.inner_type, 2) + _le(len(self.pem), 4) + self.pem + self.inside
        if self.version > 3:
            nested = _le(self.outer_type, 2) + _le(len(nested), 4) + nested
        auth = raw_signature(self.quote_key, signed) + point + nested + self.between
        return signed + _le(len(auth) + self.auth_size, 4) + auth + self.after


def _le(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little")


def patched(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


def parts(name: str) -> Parts:
    """Return the parts of a good quote of a format of `FORMATS`."""
    version, kind = FORMATS[name]
    newer = _TDX[48:632] + _TDX[48:64] + bytes(48)
    body = (b"", _SGX[48:432], _TDX[48:632], newer, newer + bytes(237))[kind]
    return Parts(version=version, kind=kind, body=body)


def tee(name: str) -> str:
    return name[:3]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One presented quote with its endorsements."""

    parts: Parts
    endorsements: Endorsements
    tee: str
    now: datetime = NOW
    raw: bytes | None = None

    @property
    def quote(self) -> bytes:
        return self.parts.build() if self.raw is None else self.raw

    def quoted(self, **changes: Any) -> Case:
        return replace(self, parts=replace(self.parts, **changes))

    def body(self, at: int, value: bytes) -> Case:
        return self.quoted(body=patched(self.parts.body, at, value))

    def qe(self, at: int, value: bytes) -> Case:
        return self.quoted(qe_report=patched(self.parts.qe_report, at, value))

    def bytes(self, change: Callable[[bytes], bytes]) -> Case:
        return replace(self, raw=change(self.quote))

    def endorsed(self, **changes: Any) -> Case:
        return replace(self, endorsements=replace(self.endorsements, **changes))

    def document(self, name: str, change: Callable[[dict[str, Any]], object]) -> Case:
        """Alter TCB info or QE identity, and sign it again."""
        value = json.loads(getattr(self.endorsements, name))
        change(value)
        text = json.dumps(value)
        return self.endorsed(**{name: text, f"{name}_signature": raw_signature(PKI.tcb_key, text.encode())})

    def chain(self, pki: SimulatedPKI = PKI, **certificates: x509.Certificate) -> Case:
        """Alter the PCK chain by certificates named leaf, ca or root."""
        given = (certificates.get("leaf", pki.pck), certificates.get("ca", pki.platform_ca))
        return self.quoted(pem=pem(*given, certificates.get("root", pki.root)))


def case(name: str, **changes: Any) -> Case:
    """Return a good case of a format; `changes` go to the simulated maker's endorsements."""
    which = tee(name)
    endorsements = PKI.endorsements(NOW, tee=which, **changes) if changes else PLATFORM.endorsements(which)
    return Case(parts=parts(name), endorsements=endorsements, tee=which)


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def reissued(
    cert: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    subject: x509.Name | None = None,
    issuer: x509.Name | None = None,
    public: ec.EllipticCurvePublicKey | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    replaced: dict[x509.ObjectIdentifier, x509.ExtensionType | None] | None = None,
    added: list[tuple[x509.ExtensionType, bool]] | None = None,
) -> x509.Certificate:
    """Return `cert` with some things different, signed by `key`."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or cert.subject)
        .issuer_name(issuer or cert.issuer)
        .public_key(public or cert.public_key())  # type: ignore[arg-type]
        .serial_number(cert.serial_number)
        .not_valid_before(start or cert.not_valid_before_utc)
        .not_valid_after(end or cert.not_valid_after_utc)
    )
    for extension in cert.extensions:
        value = (replaced or {}).get(extension.oid, extension.value)
        if value is not None:
            builder = builder.add_extension(value, extension.critical)
    for value, critical in added or []:
        builder = builder.add_extension(value, critical)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def crl(
    issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, days: int = 0, revoked: int | None = None
) -> bytes:
    """Return a revocation list of thirty days that began `days` after an hour before now."""
    start = NOW - timedelta(hours=1) + timedelta(days=days)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(start)
        .next_update(start + timedelta(days=30))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    if revoked is not None:
        entry = x509.RevokedCertificateBuilder().serial_number(revoked).revocation_date(start).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)
