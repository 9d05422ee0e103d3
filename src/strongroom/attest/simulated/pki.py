"""The simulated maker: a root, a platform CA, one platform's PCK certificate and a TCB signer, all from one seed.

Whoever has the seed can forge every simulated quote. It stays outside the sandbox (DESIGN.md decision 7) and proves
nothing about hardware. Every name carries `SIMULATED` in its organisation and the platform carries `SIMULATED_FMSPC`,
so that evidence says what it is even to a verifier that was given the wrong root.

The same seed always gives the same certificates: keys come from HKDF, signatures are deterministic (RFC 6979) and the
validity is fixed. Source: Intel "SGX PCK Certificate and CRL Profile"; OIDs 1.2.840.113741.1.13.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from strongroom._encoding import labelled_hash
from strongroom.attest.endorsements import Endorsements, TrustAnchor
from strongroom.attest.markers import SIMULATED_FMSPC, SIMULATED_NAME
from strongroom.attest.simulated import der
from strongroom.attest.simulated.collateral import PCESVN, TCB_SVN, collateral_documents
from strongroom.crypto.x509 import key_usage
from strongroom.errors import InputError

__all__ = ["SimulatedPKI", "raw_signature"]

_SGX = "1.2.840.113741.1.13.1"
_NOT_BEFORE = datetime(2024, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(2049, 12, 31, tzinfo=UTC)
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_CRL_URL = "https://simulated.invalid/root.crl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPKI:
    """The keys and certificates of one simulated platform and its maker.

    Attributes:
        root: Self-signed root certificate.
        platform_ca: Issuer of the PCK certificate.
        pck: The platform's certificate; its key signs the quoting enclave's report.
        tcb_signing: Signs TCB info and QE identity.
        attestation_key: The quoting enclave's own key.
    """

    root: x509.Certificate
    platform_ca: x509.Certificate
    pck: x509.Certificate
    tcb_signing: x509.Certificate
    root_key: ec.EllipticCurvePrivateKey
    platform_key: ec.EllipticCurvePrivateKey
    pck_key: ec.EllipticCurvePrivateKey
    tcb_key: ec.EllipticCurvePrivateKey
    attestation_key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"<SimulatedPKI {self.anchor().fingerprint[:16]}>"

    @classmethod
    def create(cls, seed: bytes, *, now: datetime) -> SimulatedPKI:
        """Return the PKI of `seed`; the same one for every `now` within the certificates' validity.

        Args:
            seed: 32 random bytes of this workspace; never a constant, never inside the sandbox.
            now: UTC.

        Raises:
            InputError: The seed has another size, or `now` is outside 2024 to 2049.
        """
        if len(seed) != 32:
            raise InputError(f"a simulated platform's seed has 32 bytes, got {len(seed)}")
        if not _NOT_BEFORE <= now < _NOT_AFTER:
            raise InputError(
                f"simulated certificates hold from {_NOT_BEFORE:%Y} to {_NOT_AFTER:%Y}, the clock says {now}"
            )
        keys = {name: _key(seed, name) for name in ("root", "platform", "pck", "tcb", "attestation")}
        root = _certify(seed, "Strongroom Root CA", keys["root"], issuer=None, issuer_key=keys["root"], ca_path=1)
        ca_name = "SGX PCK Platform CA"
        platform = _certify(seed, ca_name, keys["platform"], issuer=root, issuer_key=keys["root"], ca_path=0)
        pck = _certify(
            seed,
            "SGX PCK Certificate",
            keys["pck"],
            issuer=platform,
            issuer_key=keys["platform"],
            extra=[_sgx_extension(seed)],
        )
        tcb = _certify(seed, "SGX TCB Signing", keys["tcb"], issuer=root, issuer_key=keys["root"])
        return cls(
            root=root,
            platform_ca=platform,
            pck=pck,
            tcb_signing=tcb,
            root_key=keys["root"],
            platform_key=keys["platform"],
            pck_key=keys["pck"],
            tcb_key=keys["tcb"],
            attestation_key=keys["attestation"],
        )

    def anchor(self) -> TrustAnchor:
        """Return the root as a trust anchor of kind `simulated`."""
        return TrustAnchor(kind="simulated", certificate_der=self.root.public_bytes(Encoding.DER))

    def pck_chain_pem(self) -> bytes:
        """Return leaf, platform CA and root as PEM, the order in which quotes carry them."""
        return _pem(self.pck, self.platform_ca, self.root)

    def endorsements(
        self,
        now: datetime,
        *,
        tee: str = "sgx",
        tcb_status: str = "UpToDate",
        advisory_ids: Sequence[str] = (),
        qe_status: str = "UpToDate",
        tcb_eval_number: int = 1,
        revoke_pck: bool = False,
        revoke_platform_ca: bool = False,
    ) -> Endorsements:
        """Return endorsements that hold from an hour before `now` (clocks differ) to 30 days after it.

        Args:
            now: UTC.
            tee: "sgx" or "tdx".
            tcb_status: Of this platform.
            advisory_ids: Of this platform.
            qe_status: Of the quoting enclave.
            tcb_eval_number: Of both documents.
            revoke_pck: The platform's certificate is revoked.
            revoke_platform_ca: So is its issuer's.
        """
        tcb_info, qe_identity, issued, expires = collateral_documents(
            now, tee=tee, tcb_status=tcb_status, advisory_ids=advisory_ids, qe_status=qe_status, number=tcb_eval_number
        )
        by_root, by_ca = [self.platform_ca] * revoke_platform_ca, [self.pck] * revoke_pck
        signers = _pem(self.tcb_signing, self.root).decode()
        return Endorsements(
            pck_crl_issuer_chain=_pem(self.platform_ca, self.root).decode("ascii"),
            root_ca_crl=_crl(self.root, self.root_key, by_root, issued, expires),
            pck_crl=_crl(self.platform_ca, self.platform_key, by_ca, issued, expires),
            tcb_info_issuer_chain=signers,
            tcb_info=tcb_info,
            tcb_info_signature=raw_signature(self.tcb_key, tcb_info.encode("ascii")),
            qe_identity_issuer_chain=signers,
            qe_identity=qe_identity,
            qe_identity_signature=raw_signature(self.tcb_key, qe_identity.encode("ascii")),
        )


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return the 64 bytes r || s of a deterministic ECDSA P-256 signature with SHA-256, as quotes carry it."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _key(seed: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    # 48 bytes modulo the order leave a bias below 2**-127 (FIPS 186-5 A.2.1).
    wide = HKDF(hashes.SHA256(), 48, None, f"strongroom/simulated/{name}".encode()).derive(seed)
    return ec.derive_private_key(int.from_bytes(wide, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"{SIMULATED_NAME} - no hardware protects this"),
        ]
    )


def _certify(
    seed: bytes,
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    ca_path: int | None = None,
    extra: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:
    public, ca = key.public_key(), ca_path is not None
    serial = int.from_bytes(labelled_hash("simulated/serial", [seed, common_name.encode()])[:16], "big") | 1
    points = x509.CRLDistributionPoints(
        [x509.DistributionPoint([x509.UniformResourceIdentifier(_CRL_URL)], None, None, None)]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .issuer_name(issuer.subject if issuer else _name(common_name))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=ca_path), critical=True)
        .add_extension(key_usage(signs=not ca, commits=not ca, ca=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(points, critical=False)
    )
    for extension in extra:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256(), ecdsa_deterministic=True)


def _sgx_extension(seed: bytes) -> x509.UnrecognizedExtension:
    def entry(suffix: str, value: bytes) -> bytes:
        return der.sequence(der.object_id(f"{_SGX}.{suffix}"), value)

    tcb = [entry(f"2.{i + 1}", der.integer(svn)) for i, svn in enumerate(TCB_SVN)]
    tcb += [entry("2.17", der.integer(PCESVN)), entry("2.18", der.octets(bytes(TCB_SVN)))]
    flags = [entry(f"7.{i}", der.boolean(False)) for i in (1, 2, 3)]  # dynamic platform, cached keys, SMT
    value = der.sequence(
        entry("1", der.octets(labelled_hash("simulated/ppid", [seed])[:16])),
        entry("2", der.sequence(*tcb)),
        entry("3", der.octets(bytes(2))),
        entry("4", der.octets(SIMULATED_FMSPC)),
        entry("5", der.enumerated(0)),
        entry("6", der.octets(labelled_hash("simulated/piid", [seed])[:16])),
        entry("7", der.sequence(*flags)),
    )
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), value)


def _crl(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: Sequence[x509.Certificate],
    issued: datetime,
    until: datetime,
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(issued)
        .next_update(until)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for certificate in revoked:
        entry = (
            x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(issued).build()
        )
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def _pem(*chain: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
