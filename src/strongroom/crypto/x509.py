"""Certificates: the service's identity and leaves, owners, and short-lived workload certificates.

All keys are ECDSA P-256. Names carry no secret. A certificate is identified by the SHA-256 of its DER bytes
(`fingerprint`); a key that must outlive its certificates by the SHA-256 of its SubjectPublicKeyInfo (`spki_id`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strongroom._encoding import sha256_id
from strongroom.errors import InputError

__all__ = [
    "UNREADABLE",
    "certificate_from_pem",
    "certificate_pem",
    "check_own",
    "common_name",
    "extension_of_csr",
    "fingerprint",
    "issue",
    "key_usage",
    "new_csr",
    "new_key",
    "private_key_from_pem",
    "private_key_pem",
    "public_key_of_csr",
    "self_signed",
    "spki_id",
    "uris",
]

UNREADABLE = (
    InvalidSignature, UnsupportedAlgorithm, x509.DuplicateExtension, x509.ExtensionNotFound, x509.InvalidVersion,
    x509.UnsupportedGeneralNameType, TypeError, ValueError,
)  # fmt: skip
"""What `cryptography` raises for certificates and revocation lists whose bytes a stranger chose."""

_CLOCK_SKEW = timedelta(minutes=5)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return `key` as unencrypted PKCS#8 PEM; the caller decides where it may go."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key_from_pem(raw: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in `raw`.

    Raises:
        InputError: Not a PEM private key, or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError) as exc:
        raise InputError("the private key is not readable PEM") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("expected a P-256 private key")
    return key


def certificate_pem(certificate: x509.Certificate) -> str:
    """Return `certificate` as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def certificate_from_pem(text: str) -> x509.Certificate:
    """Return the first certificate in `text`.

    Raises:
        InputError: No PEM certificate there.
    """
    try:
        certificate = x509.load_pem_x509_certificate(text.encode("ascii"))
        _ = (certificate.public_key(), certificate.extensions)  # so that whoever reads them later can
        return certificate
    except UNREADABLE as exc:
        raise InputError("the certificate is not readable PEM") from exc


def check_own(certificate: x509.Certificate, *, ca: bool, now: datetime) -> None:
    """Return if whoever made the certificate held its P-256 key: a service's identity (`ca`), or an owner's.

    Raises:
        InputError: It is not signed by its own key, is of the other kind, or does not hold `now`.
    """
    key = certificate.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InputError("the certificate is not for a P-256 key")
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError) as exc:
        raise InputError("the certificate is not signed by its own key") from exc
    try:
        signs = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        signs = False
    kinds = {True: "a trust service's, which signs others", False: "an owner's, which signs no others"}
    if signs != ca:
        raise InputError(f"the certificate: expected {kinds[ca]}, got {kinds[signs]}")
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now <= end:
        when = [f"{at:%Y-%m-%d %H:%M}" for at in (start, end, now)]
        raise InputError(f"the certificate holds from {when[0]} to {when[1]} UTC, not at {when[2]}")


def common_name(name: x509.Name) -> str:
    """Return the one common name in `name`, empty if there is none or several."""
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the DER bytes, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def uris(certificate: x509.Certificate) -> frozenset[str]:
    """Return the URIs among the subject's alternative names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(names.get_values_for_type(x509.UniformResourceIdentifier))


def spki_id(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> str:
    """Return `sha256:<hex>` of the key's SubjectPublicKeyInfo."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256_id(der)


def self_signed(key: ec.EllipticCurvePrivateKey, name: str, *, now: datetime, days: int, ca: bool) -> x509.Certificate:
    """Return a certificate of `key` signed by itself: a root (`ca`) or an owner's."""
    builder = _builder(name, name, key.public_key(), now, timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    builder = builder.add_extension(key_usage(signs=True, commits=False, ca=ca), critical=True)
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return builder.sign(key, hashes.SHA256())


def issue(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    *,
    now: datetime,
    lifetime: timedelta,
    dns: Sequence[str] = (),
    uris: Sequence[str] = (),
    server: bool = True,
    client: bool = False,
    extensions: Mapping[x509.ObjectIdentifier, bytes] | None = None,
) -> x509.Certificate:
    """Return a leaf certificate for `key` signed by `issuer`; `extensions` are not critical."""
    issuer_name = issuer.subject.rfc4514_string().removeprefix("CN=")
    builder = _builder(name, issuer_name, key, now, lifetime)
    names: list[x509.GeneralName] = [x509.DNSName(d) for d in dns]
    names += [x509.UniformResourceIdentifier(u) for u in uris]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(key_usage(signs=True, commits=False, ca=False), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
    )
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def new_csr(
    key: ec.EllipticCurvePrivateKey, name: str, extensions: Mapping[x509.ObjectIdentifier, bytes] | None = None
) -> str:
    """Return a PEM certificate request for `key` that asks for `extensions`."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode("ascii")


def public_key_of_csr(text: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate request after checking that its holder signed it.

    Raises:
        InputError: Not a request, a bad signature, or not a P-256 key.
    """
    try:
        request = x509.load_pem_x509_csr(text.encode("ascii"))
        key = request.public_key()
        signed = request.is_signature_valid
    except UNREADABLE as exc:
        raise InputError("the certificate request is not readable PEM") from exc
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError("the certificate request is not signed by its P-256 key")
    if not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the certificate request is not for a P-256 key")
    return key


def extension_of_csr(text: str, oid: x509.ObjectIdentifier) -> bytes | None:
    """Return the value of an extension that a certificate request asks for, unread; None without it.

    Raises:
        InputError: Not a readable request.
    """
    try:
        value = x509.load_pem_x509_csr(text.encode("ascii")).extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    except UNREADABLE as exc:
        raise InputError("the certificate request is not readable PEM") from exc
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as exc:
        raise InputError(f"{text[:80]!r} cannot be the name in a certificate: 1 to 64 characters are allowed") from exc


def _builder(
    name: str, issuer: str, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, signs: bool, commits: bool, ca: bool) -> x509.KeyUsage:
    """Return what a key is for: to sign data, to sign what binds its holder, to sign certificates and their lists."""
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=commits,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
