"""RA-TLS certificates: ours, Gramine's, and every way in which one must not pass."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.fakes.attest_parts import MEASUREMENT, NOW, FakeAttester, Platform, make_pki
from tests.fakes.snp_parts import MILAN

from strongroom.attest import ratls
from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.verifiers import verify_any
from strongroom.errors import EvidenceError, VerificationError

PLATFORM = Platform()
NONCE = bytes(range(32))
KEY, OTHER = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())


def verified(certificate: x509.Certificate | bytes, *, platform: Platform = PLATFORM, **more: Any) -> Claims:
    der = certificate if isinstance(certificate, bytes) else certificate.public_bytes(Encoding.DER)
    choices = [(platform.verifier, platform.endorsements())]
    return ratls.verify_certificate(der, lambda e: verify_any(e, choices, now=NOW), **{"now": NOW, **more})


def ours(key: ec.EllipticCurvePrivateKey = KEY, nonce: bytes | None = NONCE) -> x509.Certificate:
    return ratls.make_certificate(key, FakeAttester(), now=NOW, lifetime=timedelta(days=1), nonce=nonce)


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def made(
    extensions: list[tuple[str, bytes]], key: ec.EllipticCurvePrivateKey = KEY, signer: Any = None
) -> x509.Certificate:
    """Return a certificate written without `ratls`."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RATLS")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    for oid, value in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer or key, hashes.SHA384())


def gramine_claims(key: ec.EllipticCurvePrivateKey = KEY, algorithm: int = 1, digest: bytes | None = None) -> bytes:
    """Return the claims byte for byte as Gramine writes them."""
    digest = hashlib.sha256(spki(key)).digest() if digest is None else digest
    entry = bytes((0x82, algorithm, 0x58, len(digest))) + digest
    return b"\xa1\x6bpubkey-hash\x58" + bytes((len(entry),)) + entry


def gramine_extension(claims: bytes, bound: bytes | None = None) -> bytes:
    quote = PLATFORM.quote(report_data=hashlib.sha256(claims if bound is None else bound).digest().ljust(64, b"\0"))
    head = b"\xd9\xea\x60\x82\x59" + len(quote).to_bytes(2, "big")
    return head + quote + b"\x58" + bytes((len(claims),)) + claims


STANDARD, LEGACY = "2.23.133.5.4.9", "0.6.9.42.840.113741.1337.6"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
@pytest.mark.parametrize("nonce", [None, NONCE])
def test_what_is_made_verifies(curve: ec.EllipticCurve, nonce: bytes | None) -> None:
    certificate = ours(ec.generate_private_key(curve), nonce)
    assert verified(certificate, nonce=nonce).measurement == MEASUREMENT
    assert verified(certificate).measurement == MEASUREMENT  # who has no challenge asks for none
    assert b"\x06\x06\x67\x81\x05\x05\x04\x09" in certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(("algorithm", "name"), [(1, "sha256"), (7, "sha384"), (8, "sha512")])
def test_gramines_certificate_verifies(algorithm: int, name: str) -> None:
    claims = gramine_claims(algorithm=algorithm, digest=hashlib.new(name, spki(KEY)).digest())
    legacy = PLATFORM.quote(report_data=hashlib.sha256(spki(KEY)).digest().ljust(64, b"\0"))
    both = made([(LEGACY, legacy), (STANDARD, gramine_extension(claims))])
    assert verified(both).measurement == MEASUREMENT
    assert bytes.fromhex("060b06092a864886f84d8a3906") in both.public_bytes(Encoding.DER)
    assert verified(made([(LEGACY, legacy)])).measurement == MEASUREMENT


def test_our_encoding_is_gramines() -> None:
    _, statement = ratls.read_certificate(ours(nonce=None).public_bytes(Encoding.DER))
    assert statement.claims == gramine_claims()
    assert ratls.encode_extension(statement.quote, statement.claims)[:5] == b"\xd9\xea\x60\x82\x59"


def test_claims_of_other_names_count_for_nothing() -> None:
    claims = b"\xa2\x61x\x41y" + gramine_claims()[1:]
    assert verified(made([(STANDARD, gramine_extension(claims))])).measurement == MEASUREMENT


def test_T251_evidence_of_another_key() -> None:
    _, statement = ratls.read_certificate(ours().public_bytes(Encoding.DER))
    stolen = ratls.encode_extension(statement.quote, statement.claims)
    with pytest.raises(VerificationError, match="expected evidence for key"):
        verified(made([(STANDARD, stolen)], key=OTHER))
    own = ratls.encode_extension(statement.quote, gramine_claims(OTHER))
    with pytest.raises(VerificationError, match="report data"):
        verified(made([(STANDARD, own)], key=OTHER))
    legacy = PLATFORM.quote(report_data=hashlib.sha256(spki(KEY)).digest().ljust(64, b"\0"))
    with pytest.raises(VerificationError, match="report data"):
        verified(made([(LEGACY, legacy)], key=OTHER))
    with pytest.raises(VerificationError, match="signed by its own key"):
        verified(made([(STANDARD, stolen)], signer=OTHER))


def test_T252_a_certificate_of_another_connection() -> None:
    legacy = PLATFORM.quote(report_data=hashlib.sha256(spki(KEY)).digest().ljust(64, b"\0"))
    for replayed in (ours(), ours(nonce=None), made([(LEGACY, legacy)])):
        with pytest.raises(VerificationError, match="nonce"):
            verified(replayed, nonce=bytes(32))


def test_T252_report_data_is_compared_whole() -> None:
    claims = gramine_claims()
    bound = hashlib.sha256(claims).digest() + b"x" * 32  # the standard's 32 bytes are right, the rest says something
    quote = PLATFORM.quote(report_data=bound)
    with pytest.raises(VerificationError, match="report data"):
        verified(made([(STANDARD, ratls.encode_extension(quote, claims))]))


def test_expired_or_of_another_root() -> None:
    with pytest.raises(VerificationError, match="the certificate holds"):
        verified(ours(), now=NOW + timedelta(days=2))
    with pytest.raises(VerificationError, match="root"):
        verified(ours(), platform=Platform(make_pki("two")))
    _, statement = ratls.read_certificate(ours().public_bytes(Encoding.DER))
    altered = bytearray(statement.quote)
    altered[112] ^= 1  # the measurement
    with pytest.raises(VerificationError, match="signature"):
        verified(made([(STANDARD, ratls.encode_extension(bytes(altered), statement.claims))]))


CLAIMS = gramine_claims()


@pytest.mark.parametrize(
    "claims",
    [
        b"",
        b"\xa0",
        CLAIMS + b"\0",
        CLAIMS[:-1],
        b"\xa2" + CLAIMS[1:] * 2,  # one name twice
        b"\xb8\x01" + CLAIMS[1:],  # a longer head than it needs
        b"\xbf" + CLAIMS[1:] + b"\xff",  # of indefinite length
        CLAIMS.replace(b"\x58\x24", b"\x59\x00\x24"),
        b"\xa1\x6bpubkey-hash" + b"\x82\x01\x58\x20" + bytes(32),  # the array itself instead of its bytes
        gramine_claims(algorithm=2),  # sha-256-128
        gramine_claims(algorithm=7),  # 32 bytes are no SHA-384
        gramine_claims(digest=bytes(31) + b"x" * 20),
        b"\xb1" + b"".join(bytes((0x61, 65 + n, 0x40)) for n in range(17)),
        b"\xa1\x6b" + b"pubkey-hash" + b"\x5b" + b"\xff" * 8,
    ],
    ids=range(14),  # the values are other ones each time
)
def test_T253_claims_of_another_form(claims: bytes) -> None:
    with pytest.raises(EvidenceError, match="RA-TLS"):
        ratls.read_claims(claims)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b"\0",
        lambda raw: raw[:-1],
        lambda raw: b"\xd9\xea\x61" + raw[3:],
        lambda raw: b"\xda\0\0\xea\x60" + raw[3:],
        lambda raw: raw[:3] + b"\x83" + raw[4:] + b"\x40",
        lambda raw: raw[3:],
        lambda _raw: b"",
    ],
)
def test_T253_an_extension_of_another_form(change: Any) -> None:
    raw = gramine_extension(CLAIMS)
    assert ratls.decode_extension(raw).claims == CLAIMS
    with pytest.raises(EvidenceError, match="RA-TLS"):
        ratls.decode_extension(change(raw))


def test_T253_what_is_no_certificate_with_evidence() -> None:
    der = ours().public_bytes(Encoding.DER)
    for raw in (b"", b"\x30", der[:-1], der + b"\0", made([]).public_bytes(Encoding.DER), bytes(1 << 18)):
        with pytest.raises(EvidenceError, match="RA-TLS"):
            verified(raw)
    with pytest.raises(EvidenceError, match="quote"):
        verified(made([(STANDARD, ratls.encode_extension(b"\3\0\2\0" + bytes(600), CLAIMS))]))


def test_evidence_names_its_tee() -> None:
    class Tdx:
        def attest(self, report_data: bytes) -> Evidence:
            return Evidence(tee="tdx", quote=PLATFORM.quote_tdx(report_data=report_data))

    certificate = ratls.make_certificate(KEY, Tdx(), now=NOW, lifetime=timedelta(days=1))
    choices = [(PLATFORM.verifier, PLATFORM.endorsements("tdx"))]
    der = certificate.public_bytes(Encoding.DER)
    assert ratls.verify_certificate(der, lambda e: verify_any(e, choices, now=NOW), now=NOW).tee == "tdx"


class _SnpAttester:
    tee = "snp"

    def attest(self, report_data: bytes) -> Evidence:
        return MILAN.evidence(changes={0x50: report_data})


def test_a_report_of_sev_snp_in_a_certificate() -> None:
    der = ratls.make_certificate(
        KEY, _SnpAttester(), now=NOW, lifetime=timedelta(days=1), nonce=NONCE, root_kind="shares", admin="ab"
    ).public_bytes(Encoding.DER)
    choices = [(MILAN.verifier(), MILAN.endorsements())]
    claims = ratls.verify_certificate(der, lambda e: verify_any(e, choices, now=NOW), now=NOW, nonce=NONCE)
    assert claims.tee == "snp"
    statement = ratls.read_certificate(der)[1]
    said = ratls.read_claims(statement.claims or b"")
    assert (said.root_kind, said.admin) == (b"shares", b"ab")
    for junk in (b"", b"\2\0\2\0"):
        with pytest.raises(EvidenceError):
            verify_any(Evidence.of(junk), choices, now=NOW)
