"""RA-TLS certificates: a TLS key whose certificate carries the evidence for it.

Whoever reads one believes nothing but the evidence: the certificate is signed by its own key, the claims name that key
by hash, the report data is the hash of the claims, and the quote is verified like any other. A certificate can be
replayed by whoever holds its key, so where the protocol has a challenge it is asked for as `nonce`; without one the
evidence is only as fresh as the caller makes it.

The extension is written as CCC interoperable-ra-tls defines it, and Gramine writes it: CBOR tag 60000 on [quote,
claims]. Its CBOR is read by grammar: lengths definite and as short as they can be, nothing twice, nothing behind.
(`cbor2` takes other encodings of the same value too, and has no switch against it.) Gramine's older extension, the bare
quote, is read if the newer one is not there.

A guest of a job on several machines has its certificate from the trust service, with evidence for it inside: the guest
asks with the extension in its request, the service verifies it, and whoever meets the guest can again. A peer, which
has no verifier, compares what `shown` reads with its own (docs/decisions/0030). Making one and `shown` run in the
guest: standard library and `cryptography`.

Source: github.com/CCC-Attestation/interoperable-ra-tls; TCG DICE (2.23.133.5.4.9); RFC 8949; IANA named information.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.attest.attesters import Attester
from strongroom.attest.claims import Claims, check_job, check_report_data
from strongroom.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from strongroom.attest.quote import parse_quote
from strongroom.crypto.x509 import UNREADABLE, uris
from strongroom.errors import EvidenceError, VerificationError

__all__ = [
    "EXTENSION",
    "JOB_URI",
    "RATLSClaims",
    "Statement",
    "decode_extension",
    "encode_extension",
    "job_of",
    "make_certificate",
    "make_extension",
    "read_certificate",
    "read_claims",
    "shown",
    "verify_certificate",
    "verify_extension",
]

EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.9")
LEGACY = x509.ObjectIdentifier("0.6.9.42.840.113741.1337.6")
"""Gramine's older one: the tag and length of a DER object identifier were taken into its content."""

JOB_URI = "strongroom://job/"
"""Before the digest of the job, in hex, among the names in a guest's certificate."""

_CODE = {
    "sgx": ("body.mr_enclave", "body.config_id"),
    "tdx": ("body.mr_td", "body.rtmr1", "body.rtmr2", "body.rtmr3", "body.mr_config_id"),
    "snp": ("measurement", "host_data"),
}
"""What is the same in all enclaves of a job. RTMR0 differs between machines: policies alone judge it."""
_T = TypeVar("_T")
_TAG = 60_000
_DIGEST = re.compile("[0-9a-f]{64}")
_HASHES = {1: hashlib.sha256, 7: hashlib.sha384, 8: hashlib.sha512}
_SHA256 = 1
_MAX_CERTIFICATE = 2 * MAX_EVIDENCE_BYTES
_MAX_CLAIMS = 16
_UINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAGGED = 0, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a certificate carries.

    Attributes:
        quote: The evidence, unread.
        claims: The claims' bytes, which the report data is the hash of; None in the older form.
    """

    quote: bytes
    claims: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RATLSClaims:
    """The claims about a TLS key, as said.

    Attributes:
        algorithm: Number of the hash, of IANA's named information: 1, 7 or 8.
        digest: Of the key's DER SubjectPublicKeyInfo.
        nonce: The challenge, None without one.
        root_kind: What a trust service says of its root key, None elsewhere.
        admin: For whom a trust service made its identity in this TEE: a certificate's fingerprint. None elsewhere.
        locked: Whether a trust service says that it is locked, so that the key is not its identity.
        job: What a guest says of its job, `sha256:<hex>`, None elsewhere.
    """

    algorithm: int
    digest: bytes
    nonce: bytes | None
    root_kind: bytes | None = None
    admin: bytes | None = None
    locked: bool = False
    job: bytes | None = None


def make_certificate(
    key: ec.EllipticCurvePrivateKey,
    attester: Attester,
    *,
    now: datetime,
    lifetime: timedelta,
    nonce: bytes | None = None,
    root_kind: str = "",
    admin: str = "",
    locked: bool = False,
) -> x509.Certificate:
    """Return a certificate of `key`, signed by it, with evidence of the enclave that holds it.

    Args:
        key: Made for this certificate; P-384 is what other implementations make.
        attester: Gives evidence with the report data that is asked for.
        now: UTC.
        lifetime: Of the certificate.
        nonce: The challenge of whoever will read it, if the protocol has one.
        root_kind: Of a trust service's root key: where it rests.
        admin: For whom a trust service made its identity in this TEE.
        locked: Whether a trust service is locked: the key is for credentials alone.
    """
    texts = {"strongroom-root": root_kind, "strongroom-admin": admin, "strongroom-locked": "1" if locked else ""}
    extension = make_extension(key.public_key(), attester, nonce=nonce, texts=texts)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RA-TLS")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, extension), critical=False)
    )
    return builder.sign(key, hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256())


def make_extension(
    key: ec.EllipticCurvePublicKey, attester: Attester, *, nonce: bytes | None, texts: Mapping[str, str]
) -> bytes:
    """Return the extension's value for `key`: evidence that binds it, the nonce, and each of `texts` that is not empty.

    Args:
        key: Of the enclave that `attester` is in.
        attester: Gives evidence with the report data that is asked for.
        nonce: The challenge, None without one.
        texts: Further claims by name.
    """
    entry = _head(_ARRAY, 2) + _head(_UINT, _SHA256) + _string(hashlib.sha256(_spki(key)).digest())
    said = {"nonce": nonce, **{label: text.encode() or None for label, text in texts.items()}, "pubkey-hash": entry}
    items = [_text(label) + _string(value) for label, value in said.items() if value is not None]
    claims = _head(_MAP, len(items)) + b"".join(items)
    return encode_extension(attester.attest(_report_data(claims)).quote, claims)


def read_certificate(der: bytes) -> tuple[x509.Certificate, Statement]:
    """Return the certificate and what it carries; nothing of it is believed yet.

    Raises:
        EvidenceError: Not a certificate, without evidence, or with evidence of another form.
    """
    if len(der) > _MAX_CERTIFICATE:
        raise EvidenceError(f"RA-TLS: a certificate of {len(der)} bytes, at most {_MAX_CERTIFICATE} are read")
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = [(e.oid, e.value) for e in certificate.extensions]
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except UNREADABLE as exc:
        raise EvidenceError(f"RA-TLS: not a readable certificate: {type(exc).__name__}") from exc
    found = {oid: value.value for oid, value in extensions if isinstance(value, x509.UnrecognizedExtension)}
    if EXTENSION in found:
        return certificate, decode_extension(found[EXTENSION])
    if LEGACY in found:
        return certificate, Statement(quote=found[LEGACY], claims=None)
    raise EvidenceError(
        f"RA-TLS: the certificate has no evidence: expected the extension {EXTENSION.dotted_string}, got none"
    )


def verify_certificate(
    der: bytes,
    verify: Callable[[Evidence], Claims],
    *,
    now: datetime,
    nonce: bytes | None = None,
    issued: bool = False,
) -> Claims:
    """Return the claims of the enclave that holds the certificate's key; `appraisal` asks whether they will do.

    Steps: 1. what it carries, 2. it holds now and is signed by its own key, 3. the claims name that key, 4. and the
    challenge, 5. the evidence holds, 6. and all 64 bytes of its report data are the claims' hash, then zeros.

    Args:
        der: As the other end of the TLS connection showed it: the handshake proves that it holds the key.
        verify: `verifiers.verify_any` with the caller's roots and endorsements.
        now: UTC.
        nonce: The caller's own challenge. With None whatever nonce there is counts for nothing.
        issued: It may be a guest's, which a trust service issued: then the evidence has to bind the job that it names.
            Who issued it, and whatever else it says, is not looked at.

    Raises:
        EvidenceError: Another form, or no evidence.
        EndorsementError: Of `verify`.
        VerificationError: Expired, not signed by its key, or not bound to this key, challenge and job.
    """
    certificate, statement = read_certificate(der)  # 1.
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:  # 2.
        raise VerificationError(
            f"RA-TLS: the certificate holds from {certificate.not_valid_before_utc} to "
            f"{certificate.not_valid_after_utc}, the time is {now}"
        )
    try:
        job = job_of(certificate) if issued else ""
        if not job or certificate.issuer == certificate.subject:
            certificate.verify_directly_issued_by(certificate)
        spki = _spki(certificate.public_key())
    except UNREADABLE as exc:
        wanted = "signed by its own key" + (", or another's that names one job" if issued else "")
        raise VerificationError(f"RA-TLS: expected a certificate {wanted}, got another") from exc
    return _verified(statement, spki, verify, nonce, job)


def verify_extension(
    raw: bytes, key: ec.EllipticCurvePublicKey, verify: Callable[[Evidence], Claims], *, nonce: bytes, job: str
) -> Claims:
    """Return the claims of the enclave that asks for a certificate of `key` with the extension `raw`.

    Raises:
        AttestationError: As for `verify_certificate`; `job`, `sha256:<hex>`, is the one that the evidence has to bind.
    """
    return _verified(decode_extension(raw), _spki(key), verify, nonce, job)


def shown(der: bytes) -> dict[str, str]:
    """Return which code and job a guest's certificate shows, by the names of the fields of its evidence.

    All but what needs a verifier: the claims name the certificate's key and job, and the evidence carries their hash.
    That the evidence is genuine is the word of whoever issued the certificate.

    Raises:
        EvidenceError: Another form, or no evidence.
        VerificationError: Not bound to this key and job.
    """
    certificate, statement = read_certificate(der)
    if not (job := job_of(certificate)):
        raise VerificationError("RA-TLS: job: expected a certificate for one job, got none or several")
    try:
        expected = _bound(statement, _spki(certificate.public_key()), None, job)
    except UNREADABLE as exc:
        raise EvidenceError(f"RA-TLS: not a readable key: {type(exc).__name__}") from exc
    from strongroom.attest.snp import parse_report  # noqa: PLC0415  # in most guests it costs a launch its time

    tee = Evidence.of(statement.quote).tee
    fields = parse_report(statement.quote) if tee == "snp" else parse_quote(statement.quote)
    got = fields["report_data" if tee == "snp" else "body.report_data"]
    if not hmac.compare_digest(got, expected):
        raise VerificationError(f"RA-TLS: report data: expected {expected.hex()}, got {got.hex()}")
    return {"tee": tee, **{name.removeprefix("body."): fields[name].hex() for name in _CODE[tee]}}


def job_of(certificate: x509.Certificate) -> str:
    """Return the one job that a certificate names, as `sha256:<hex>`; "" if it names none or several."""
    found = [uri.removeprefix(JOB_URI) for uri in uris(certificate) if uri.startswith(JOB_URI)]
    return f"sha256:{found[0]}" if len(found) == 1 and _DIGEST.fullmatch(found[0]) else ""


def _verified(
    statement: Statement, spki: bytes, verify: Callable[[Evidence], Claims], nonce: bytes | None, job: str
) -> Claims:
    expected = _bound(statement, spki, nonce, job)
    claims = verify(Evidence.of(statement.quote))  # 5.
    check_report_data(claims, expected)  # 6.
    if job:
        check_job(claims, bytes.fromhex(job.removeprefix("sha256:")), said=True)
    return claims


def _bound(statement: Statement, spki: bytes, nonce: bytes | None, job: str) -> bytes:
    # Returns the report data that evidence for this key, challenge and job carries.
    if statement.claims is None:
        if nonce is not None or job:
            raise VerificationError("RA-TLS: expected the nonce of this connection or a job, got a form without them")
        return _report_data(spki)
    said = read_claims(statement.claims)
    found = _HASHES[said.algorithm](spki).digest()
    if not hmac.compare_digest(said.digest, found):  # 3.
        raise VerificationError(f"RA-TLS: expected evidence for key {found.hex()}, got {said.digest.hex()}")
    if nonce is not None and not hmac.compare_digest(said.nonce or b"", nonce):  # 4.
        got = "none" if said.nonce is None else said.nonce.hex()[:128]
        raise VerificationError(f"RA-TLS: expected nonce {nonce.hex()}, got {got}: the evidence is not fresh")
    if job and not hmac.compare_digest(said.job or b"", job.encode()):
        got = (said.job or b"none").decode("ascii", "backslashreplace")[:80]
        raise VerificationError(f"RA-TLS: expected evidence for job {job}, got {got}")
    return _report_data(statement.claims)


def encode_extension(quote: bytes, claims: bytes | None) -> bytes:
    """Return the value of the extension."""
    return _head(_TAGGED, _TAG) + _head(_ARRAY, 2) + _string(quote) + _string(claims or b"")


def decode_extension(raw: bytes) -> Statement:
    """Return what the extension's value says.

    Raises:
        EvidenceError: Another tag or form, or bytes left over.
    """
    reader = _Reader(raw)
    reader.expect(_TAGGED, _TAG)
    reader.expect(_ARRAY, 2)
    return reader.done(Statement(quote=reader.string(_BYTES), claims=reader.string(_BYTES)))


def read_claims(raw: bytes) -> RATLSClaims:
    """Return the claims in `raw`; those with other names count for nothing, as their definition says.

    Raises:
        EvidenceError: Another form, a name twice, or no hash of a key by SHA-256, SHA-384 or SHA-512.
    """
    reader = _Reader(raw)
    count = reader.head(_MAP)
    if count > _MAX_CLAIMS:
        raise EvidenceError(f"RA-TLS: {count} claims, at most {_MAX_CLAIMS} are read")
    said = [(reader.string(_TEXT), reader.string(_BYTES)) for _ in range(count)]
    claims: Mapping[bytes, bytes] = reader.done(dict(said))
    if len(claims) != count or b"pubkey-hash" not in claims:
        raise EvidenceError("RA-TLS: expected each claim once and pubkey-hash among them")
    entry = _Reader(claims[b"pubkey-hash"])
    entry.expect(_ARRAY, 2)
    algorithm = entry.head(_UINT)
    digest = entry.done(entry.string(_BYTES))
    if algorithm not in _HASHES or len(digest) != _HASHES[algorithm]().digest_size:
        raise EvidenceError(f"RA-TLS: no hash of a key: algorithm {algorithm} with {len(digest)} bytes")
    names = ("nonce", "strongroom-root", "strongroom-admin", "strongroom-job")
    nonce, root_kind, admin, job = (claims.get(name.encode()) for name in names)
    return RATLSClaims(
        algorithm=algorithm,
        digest=digest,
        nonce=nonce,
        root_kind=root_kind,
        admin=admin,
        locked=b"strongroom-locked" in claims,
        job=job,
    )


class _Reader:
    """Reads CBOR items of the kinds that are expected, in their one encoding (RFC 8949 §4.2.1)."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def head(self, major: int) -> int:
        first = self._take(1)[0]
        short = first & 0x1F
        if first >> 5 != major or short > 27:  # 31 would be of indefinite length
            raise EvidenceError(f"RA-TLS: expected CBOR of major type {major}, got the byte {first:#04x}")
        if short < 24:
            return short
        value = int.from_bytes(self._take(1 << short - 24), "big")
        if value < (24 if short == 24 else 1 << 8 * (1 << short - 25)):
            raise EvidenceError("RA-TLS: a CBOR number is longer than it has to be")
        return value

    def expect(self, major: int, value: int) -> None:
        if (got := self.head(major)) != value:
            raise EvidenceError(f"RA-TLS: expected {value} in CBOR of major type {major}, got {got}")

    def string(self, major: int) -> bytes:
        return self._take(self.head(major))

    def done(self, value: _T) -> _T:
        if self._at != len(self._raw):
            raise EvidenceError(f"RA-TLS: {len(self._raw) - self._at} bytes left over behind the CBOR")
        return value

    def _take(self, size: int) -> bytes:
        if size > len(self._raw) - self._at:
            raise EvidenceError("RA-TLS: the CBOR is cut off")
        self._at += size
        return self._raw[self._at - size : self._at]


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes((major << 5 | value,))
    size = next(n for n in range(4) if value < 1 << 8 * (1 << n))
    return bytes((major << 5 | 24 + size,)) + value.to_bytes(1 << size, "big")


def _string(value: bytes) -> bytes:
    return _head(_BYTES, len(value)) + value


def _text(value: str) -> bytes:
    return _head(_TEXT, len(value.encode())) + value.encode()


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def _report_data(bound: bytes) -> bytes:
    return hashlib.sha256(bound).digest().ljust(64, b"\0")
