from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder
from cryptography.x509.verification import Store as Trust

from strongroom.crypto import x509
from strongroom.errors import InputError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT_KEY, LEAF_KEY = x509.new_key(), x509.new_key()
ROOT = x509.self_signed(ROOT_KEY, "Strongroom trust service", now=NOW, days=3650, ca=True)


def _leaf(**changes: object) -> cx.Certificate:
    values: dict[str, object] = {"now": NOW, "lifetime": timedelta(days=30), "dns": ["service.internal"]}
    return x509.issue(ROOT, ROOT_KEY, LEAF_KEY.public_key(), "leaf", **{**values, **changes})  # type: ignore[arg-type]


def test_a_leaf_chains_to_its_root_and_no_other() -> None:
    verifier = PolicyBuilder().store(Trust([ROOT])).time(NOW).build_server_verifier(cx.DNSName("service.internal"))
    verifier.verify(_leaf(), [])
    other = x509.self_signed(x509.new_key(), "Strongroom trust service", now=NOW, days=3650, ca=True)
    stranger = PolicyBuilder().store(Trust([other])).time(NOW).build_server_verifier(cx.DNSName("service.internal"))
    with pytest.raises(cx.verification.VerificationError):
        stranger.verify(_leaf(), [])


def test_a_leaf_is_no_authority_and_has_only_its_uses() -> None:
    leaf = _leaf(uris=["strongroom://job/1"])
    constraints = leaf.extensions.get_extension_for_class(cx.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert not leaf.extensions.get_extension_for_class(cx.KeyUsage).value.key_cert_sign
    assert list(leaf.extensions.get_extension_for_class(cx.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = leaf.extensions.get_extension_for_class(cx.SubjectAlternativeName).value
    assert names.get_values_for_type(cx.UniformResourceIdentifier) == ["strongroom://job/1"]
    assert leaf.not_valid_after_utc - NOW == timedelta(days=30)


def test_an_owner_is_no_authority() -> None:
    owner = x509.self_signed(LEAF_KEY, "owner", now=NOW, days=30, ca=False)
    assert not owner.extensions.get_extension_for_class(cx.BasicConstraints).value.ca
    assert not owner.extensions.get_extension_for_class(cx.KeyUsage).value.key_cert_sign


def test_ids_are_the_same_everywhere() -> None:
    der = LEAF_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert x509.spki_id(LEAF_KEY.public_key()) == "sha256:" + hashlib.sha256(der).hexdigest()
    again = x509.certificate_from_pem(x509.certificate_pem(ROOT))
    assert x509.fingerprint(again) == x509.fingerprint(ROOT)
    assert len(x509.fingerprint(ROOT)) == 64


def test_keys_round_trip() -> None:
    found = x509.private_key_from_pem(x509.private_key_pem(LEAF_KEY))
    assert found.private_numbers() == LEAF_KEY.private_numbers()


def _pem(key: object) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        _pem(ed25519.Ed25519PrivateKey.generate()),
        _pem(ec.generate_private_key(ec.SECP384R1())),
        x509.private_key_pem(LEAF_KEY)[:-40],
    ],
)
def test_what_is_no_private_key(raw: bytes) -> None:
    with pytest.raises(InputError):
        x509.private_key_from_pem(raw)


@pytest.mark.parametrize(
    "text", ["", "x", "\u00e4", "\ud800", x509.certificate_pem(ROOT)[:-60], x509.new_csr(LEAF_KEY, "x")]
)
def test_what_is_no_certificate(text: str) -> None:
    with pytest.raises(InputError):
        x509.certificate_from_pem(text)


def test_a_request_proves_its_key() -> None:
    text = x509.new_csr(LEAF_KEY, "workload")
    assert x509.spki_id(x509.public_key_of_csr(text)) == x509.spki_id(LEAF_KEY.public_key())


def _csr(key: object) -> str:
    builder = cx.CertificateSigningRequestBuilder().subject_name(cx.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def test_requests_that_do_not_prove_a_p256_key() -> None:
    der = cx.load_pem_x509_csr(x509.new_csr(LEAF_KEY, "workload").encode()).public_bytes(Encoding.DER)
    broken = cx.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1])).public_bytes(Encoding.PEM).decode()
    bad = [
        "",
        "\ud800",
        x509.certificate_pem(ROOT),
        _csr(ec.generate_private_key(ec.SECP384R1())),
        _csr(rsa.generate_private_key(65537, 2048)),
        broken,
    ]
    for text in bad:
        with pytest.raises(InputError):
            x509.public_key_of_csr(text)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_names_that_no_certificate_has(name: str) -> None:
    with pytest.raises(InputError, match="1 to 64"):
        x509.self_signed(LEAF_KEY, name, now=NOW, days=30, ca=False)
