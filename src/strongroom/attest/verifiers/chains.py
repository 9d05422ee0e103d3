"""Intel's certificates that quotes and endorsements bring along, and what they say.

Signatures are checked here where the answer does not depend on the time, so that it can be kept: a machine sends the
same certificates with every quote. Whether they hold now and were withdrawn is asked elsewhere.

Source: Intel "SGX PCK Certificate and CRL Profile"; OIDs 1.2.840.113741.1.13.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom._encoding import parse_json
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import Endorsements, TrustAnchor
from strongroom.attest.markers import SIMULATED_NAME
from strongroom.attest.quote import Quote
from strongroom.crypto.x509 import UNREADABLE, common_name
from strongroom.errors import EndorsementError, InputError, VerificationError

__all__ = [
    "Chain", "Platform", "certified", "covers_platform", "issuers", "marked", "platform",
    "tcb_info", "tcb_signers",
]  # fmt: skip

_PCK = "1.2.840.113741.1.13.1"


@dataclass(frozen=True, slots=True)
class Chain:
    """Leaf, CA and root, each signed by the next; `marked` if one of them says SIMULATED."""

    leaf: x509.Certificate
    issuer: x509.Certificate
    root: x509.Certificate
    marked: bool


@lru_cache(maxsize=256)
def certified(ders: tuple[bytes, ...]) -> Chain:
    """Return leaf, CA and root as a PCK chain whose signatures hold; whether the root is trusted is asked elsewhere.

    Raises:
        VerificationError: One is not readable, not signed by the next, or not what its place wants.
    """
    issuer, root, signs = _authority(ders[1:])
    try:
        # The signature first, so that what is read below is what its issuer wrote.
        leaf = x509.load_der_x509_certificate(ders[0])
        leaf.verify_directly_issued_by(issuer)
        subject = common_name(leaf.subject)
    except UNREADABLE as exc:
        raise VerificationError("chain: a certificate is not readable or not signed by the next") from exc
    if subject.removeprefix("Intel ") != "SGX PCK Certificate":
        raise VerificationError(f"leaf: expected subject SGX PCK Certificate, got {subject!r:.60}")
    if not signs:
        raise VerificationError("chain: expected an issuer that may sign certificates, got one that may not")
    return Chain(leaf, issuer, root, marked=any(map(marked, (leaf, issuer, root))))


@lru_cache(maxsize=16)
def _authority(ders: tuple[bytes, ...]) -> tuple[x509.Certificate, x509.Certificate, bool]:
    try:
        issuer, root = map(x509.load_der_x509_certificate, ders)
        issuer.verify_directly_issued_by(root)
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        return issuer, root, usage.key_cert_sign and basic.ca
    except UNREADABLE as exc:
        raise VerificationError("chain: a certificate is not readable or not signed by the next") from exc


@dataclass(frozen=True, slots=True)
class Platform:
    """What a PCK certificate says of its platform.

    Attributes:
        components: CPUSVN by its 16 components.
        dynamic_platform: Packages may join it later; this and the next are None if the certificate does not say.
        cached_keys: Intel keeps its root keys.
        smt: Hyperthreading was on when it registered.
    """

    fmspc: bytes
    pce_id: bytes
    ppid: bytes
    piid: bytes
    cpu_svn: bytes
    pce_svn: int
    components: tuple[int, ...]
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


@lru_cache(maxsize=256)
def platform(pem: bytes) -> Platform:
    """Return what the first certificate in `pem` says.

    Raises:
        ValueError: It has no such extension, or one that is not readable.
    """
    found = dcap_qvl.parse_pck_extension_from_pem(pem)
    components = [found.get_value(f"{_PCK}.2.{i}") for i in range(1, 17)]
    flags = [found.get_value(f"{_PCK}.7.{i}") for i in (1, 2, 3)]
    dynamic, cached, smt = (None if flag is None else flag != b"\0" for flag in flags)
    return Platform(
        fmspc=found.fmspc,
        pce_id=found.pce_id,
        ppid=found.ppid,
        piid=found.platform_instance_id or b"",
        cpu_svn=found.cpu_svn,
        pce_svn=found.pce_svn,
        components=tuple(int.from_bytes(svn or b"", "big") for svn in components),
        dynamic_platform=dynamic,
        cached_keys=cached,
        smt=smt,
    )


@lru_cache(maxsize=16)
def tcb_info(endorsements: Endorsements) -> Mapping[str, object]:
    """Return the TCB info as it stands; its signature is not checked.

    Raises:
        EndorsementError: Not readable, or not of version 3.
    """
    try:
        document = parse_json(endorsements.tcb_info, "tcb_info")
    except InputError as exc:
        raise EndorsementError(f"endorsements: {exc}") from exc
    if not isinstance(document, dict) or document.get("version") != 3:
        raise EndorsementError("tcb_info: expected TCB info version 3, got another")
    return document


@lru_cache(maxsize=16)
def tcb_signers(endorsements: Endorsements, anchor: TrustAnchor) -> Mapping[str, x509.Certificate]:
    """Return the certificates over TCB info and QE identity, by part; their own signatures are not checked.

    Raises:
        EndorsementError: They are not SGX TCB Signing's directly under `anchor`.
    """
    tcb_info(endorsements)
    found = {}
    for name in ("tcb_info", "qe_identity"):
        given = f"{name}_issuer_chain: expected SGX TCB Signing and root {anchor.fingerprint[:16]}, got "
        chain = _pem_certificates(getattr(endorsements, f"{name}_issuer_chain"))
        try:
            names = [common_name(certificate.subject) for certificate in chain]
            if len(chain) != 2 or _der(chain[1]) != anchor.certificate_der:
                raise EndorsementError(f"{given}{', '.join(names) or 'nothing'}")
            chain[0].verify_directly_issued_by(chain[1])
        except UNREADABLE as exc:
            raise EndorsementError(f"{given}a certificate that the root did not sign") from exc
        if names[0].removeprefix("Intel ") != "SGX TCB Signing":
            raise EndorsementError(f"{given}{names[0]!r:.60}")
        found[name] = chain[0]
    return found


def covers_platform(endorsements: AnyEndorsements, quote: Quote) -> tuple[bool, bool, bool]:
    """Return whether `endorsements` are of the TEE, platform family and CA of `quote`. Only for choosing."""
    if not isinstance(endorsements, Endorsements):
        return False, False, False
    try:
        family = str(tcb_info(endorsements).get("fmspc")).lower() == platform(quote["auth.cert_data"]).fmspc.hex()
    except (ValueError, EndorsementError):
        family = False
    return endorsements.tee == quote.tee, family, issuers(endorsements) == quote.pck_chain[1:]


@lru_cache(maxsize=16)
def issuers(endorsements: Endorsements) -> tuple[bytes, ...]:
    """Return the certificates over the PCK revocation list, DER."""
    return tuple(map(_der, _pem_certificates(endorsements.pck_crl_issuer_chain)))


def _pem_certificates(text: str) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(text.encode("utf-8"))
        _ = [(c.subject, c.public_key(), c.not_valid_after_utc) for c in found]  # so that they can be read later
        return found
    except UNREADABLE:
        return []


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@lru_cache(maxsize=256)
def marked(certificate: x509.Certificate) -> bool:
    """Return whether `certificate` says that it, or who signed it, is simulated."""
    return any(
        SIMULATED_NAME in str(attribute.value)
        for name in (certificate.subject, certificate.issuer)
        for attribute in name
    )
