"""AMD's certificates: the chain above chips' and providers' keys, its revocation list, and what those keys say.

Signatures are RSASSA-PSS by RSA-4096 with SHA-384 and 48 bytes of salt, whatever a certificate names. What is kept here
does not depend on the time, and is what a machine that comes again would have read anew each time.

Source: AMD 57230 (certificates and KDS).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtensionOID

from strongroom.attest.endorsement_snp import AMD_ROOTS, SNPEndorsements
from strongroom.attest.snp import TCB, SNPReport
from strongroom.crypto.x509 import UNREADABLE, common_name
from strongroom.errors import EndorsementError, VerificationError

__all__ = [
    "FETCH", "chain_of", "check_key", "check_signed", "describe_key", "extension", "key_of", "levels_of",
    "load_certificate", "product_of", "provider_of", "text_of",
]  # fmt: skip

# AMD gives VCEKs the serial number 0, which `cryptography` remarks on at each of them.
warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")

_log = logging.getLogger(__name__)

_OID = "1.3.6.1.4.1.3704.1."
_SPL = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_SPL |= {f"reserved{n}": f"3.{n}" for n in range(4, 8)}
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
FETCH = "`strongroom attest endorsements fetch REPORT` gets them"


def key_of(report: SNPReport, keys: tuple[bytes, ...], ask: bytes = b"") -> bytes | None:
    """Return the certificate among `keys` for the chip and versions of `report`, None if there is none.

    For choosing alone. Those that are not readable, or with `ask` not signed by it, stand in no other's way.
    """
    chip = report["chip_id"] if report.signer == "vcek" else b""
    reported = report.tcb("reported_tcb")
    levels = tuple(getattr(reported, part) or 0 for part in TCB.PARTS)
    return _index(keys, ask).get((f"SEV-{report.signer.upper()}", chip, levels))


@lru_cache(maxsize=16)
def _index(keys: tuple[bytes, ...], ask: bytes) -> dict[tuple[str, bytes, tuple[int, ...]], bytes]:
    # Anybody may send a report, so finding its key among thousands must not mean reading them all each time.
    found: dict[tuple[str, bytes, tuple[int, ...]], bytes] = {}
    for key in keys:
        try:
            leaf = load_certificate("key", key)
            if ask:
                check_key(load_certificate("intermediate", ask), leaf)
            chip = (extension(leaf, "4") or b"").ljust(64, b"\0") if common_name(leaf.subject) == "SEV-VCEK" else b""
            levels = tuple(levels_of(leaf)[part] for part in TCB.PARTS)
        except (EndorsementError, VerificationError) as exc:
            _log.warning("a chip's key among the endorsements is not used reason=%s", exc)
            continue
        found.setdefault((common_name(leaf.subject), chip, levels), key)
    return found


def provider_of(der: bytes) -> str:
    """Return the provider that the certificate of a VLEK names, empty if it names none."""
    return text_of(load_certificate("key", der), "5")


def describe_key(der: bytes) -> str:
    """Return what a chip's or provider's certificate is for, in words: chip, product, security versions."""
    leaf = load_certificate("key", der)
    levels = levels_of(leaf)
    parts = TCB.PARTS[product_of(leaf) != "Turin" :]
    holder = extension(leaf, "4") or extension(leaf, "5") or b""
    tcb = ".".join(str(levels[part]) for part in parts)
    return f"{common_name(leaf.subject)} {product_of(leaf)} {holder.hex()[:16]} TCB {tcb}"


@lru_cache(maxsize=16)
def chain_of(endorsements: SNPEndorsements, signer: str) -> tuple[x509.Certificate, x509.Certificate]:
    """Return intermediate and root over a report's `signer`, proven to be signed and not revoked.

    Whether the root is trusted, and whether they hold now, is asked elsewhere.

    Raises:
        EndorsementError: For another kind of key, not readable, or revoked.
        VerificationError: Of no line of AMD's, or not signed by the root.
    """
    ark, ask = load_certificate("root", endorsements.ark), load_certificate("intermediate", endorsements.ask)
    product = common_name(ark.subject).removeprefix("ARK-")
    expected = {"vcek": f"SEV-{product}", "vlek": f"SEV-VLEK-{product}"}[signer]
    if product not in AMD_ROOTS:
        raise VerificationError(
            f"root: expected ARK-{' or ARK-'.join(AMD_ROOTS)}, got {common_name(ark.subject)!r:.60}"
        )
    if (got := common_name(ask.subject)) != expected:
        raise EndorsementError(
            f"endorsements: expected {expected} over the report's {signer}, got {got!r:.60}", hint=FETCH
        )
    for name, certificate in (("root", ark), ("intermediate", ask)):
        check_signed(name, ark, certificate)
        if not _is_ca(certificate):
            raise VerificationError(f"chain: expected the {name} to be a certificate authority, got one that is none")
    _check_revocation(endorsements.crl, ark, ask)
    return ask, ark


def _check_revocation(der: bytes, ark: x509.Certificate, ask: x509.Certificate) -> None:
    try:
        crl = x509.load_der_x509_crl(der)
        issuer, critical = crl.issuer, [e.oid.dotted_string for e in crl.extensions if e.critical]
        revoked = {entry.serial_number for entry in crl}
    except UNREADABLE as exc:
        raise EndorsementError("endorsements: the revocation list crl is not readable", hint=FETCH) from exc
    if issuer != ark.subject:
        raise EndorsementError(f"crl: expected {common_name(ark.subject)}'s list, got another root's", hint=FETCH)
    if critical:
        raise EndorsementError(f"crl: expected no unknown critical extension, got {critical[0]}")
    check_signed("revocation list", ark, crl)
    for certificate in (ark, ask):
        if certificate.serial_number in revoked:
            got = f"{common_name(certificate.subject)} with serial {certificate.serial_number:x}"
            raise EndorsementError(f"revoked: expected certificates that no list withdraws, got {got}")


@lru_cache(maxsize=256)
def check_key(ask: x509.Certificate, leaf: x509.Certificate) -> None:
    """Return only if the key's certificate `leaf` is signed by `ask`; as `check_signed`."""
    check_signed("key", ask, leaf)


def check_signed(
    what: str, issuer: x509.Certificate, signed: x509.Certificate | x509.CertificateRevocationList
) -> None:
    """Return only if `signed` is signed by `issuer`.

    Raises:
        VerificationError: It is not; the message calls it `what`.
    """
    key = issuer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
        raise VerificationError(f"chain: expected RSA-4096, got another key of {common_name(issuer.subject)}")
    try:
        # The second call compares the algorithm inside of what is signed with the one outside, which nobody signed.
        if isinstance(signed, x509.Certificate):
            key.verify(signed.signature, signed.tbs_certificate_bytes, _PSS, hashes.SHA384())
            signed.verify_directly_issued_by(issuer)
        else:
            key.verify(signed.signature, signed.tbs_certlist_bytes, _PSS, hashes.SHA384())
            if not signed.is_signature_valid(key):
                raise InvalidSignature
    except UNREADABLE as exc:
        by = common_name(issuer.subject)
        raise VerificationError(f"chain: expected the {what} to be signed by {by}, got another's signature") from exc


@lru_cache(maxsize=256)  # of parsing alone: machines come again with every renewal
def load_certificate(what: str, der: bytes) -> x509.Certificate:
    """Return the certificate in `der`, in its one form.

    Raises:
        EndorsementError: Not readable; the message calls it `what`.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        # Read here, so that nothing below fails on a malformed one.
        _ = (certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        if not der.endswith(b"\0" + certificate.signature):
            raise ValueError("the signature has unused bits")
    except UNREADABLE as exc:
        raise EndorsementError(f"chain: the certificate of the {what} is not readable", hint=FETCH) from exc
    return certificate


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and isinstance(usage, x509.KeyUsage) and usage.key_cert_sign


@lru_cache(maxsize=4096)
def extension(leaf: x509.Certificate, suffix: str) -> bytes | None:
    """Return AMD's extension under its object id and `suffix`, None if it is not there."""
    try:
        value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(_OID + suffix)).value
    except x509.ExtensionNotFound:
        return None
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


@lru_cache(maxsize=256)
def levels_of(leaf: x509.Certificate) -> Mapping[str, int]:
    """Return the security versions that a key is for, by part; `reserved4` and so on for the parts without a name.

    Raises:
        VerificationError: One is not a number from 0 to 255.
    """
    return {part: _level(leaf, suffix, part) for part, suffix in _SPL.items()}


def _level(leaf: x509.Certificate, suffix: str, part: str) -> int:
    # A DER INTEGER from 0 to 255. Milan and Genoa have no level of the first mutable code.
    raw = extension(leaf, suffix)
    if raw is None and (part == "fmc" or part.startswith("reserved")):
        return 0
    if raw is not None and 3 <= len(raw) <= 4 and raw[:2] == bytes([2, len(raw) - 2]):
        value = int.from_bytes(raw[2:], "big", signed=True)
        if 0 <= value <= 0xFF and (len(raw) == 3 or value > 0x7F):
            return value
    raise VerificationError(f"key: expected a {part} level from 0 to 255, got another")


def product_of(leaf: x509.Certificate) -> str:
    """Return the product line that a key is for: `Milan` of Milan-B0; VLEKs have no stepping."""
    return text_of(leaf, "2").partition("-")[0]


@lru_cache(maxsize=1024)
def text_of(leaf: x509.Certificate, suffix: str) -> str:
    """Return the IA5String in AMD's extension under `suffix`, empty if there is none."""
    raw = extension(leaf, suffix) or b""
    if not 2 < len(raw) < 0x80 or raw[:2] != bytes([0x16, len(raw) - 2]):
        return ""
    return raw[2:].decode("ascii", "replace")
