"""Verification of AMD SEV-SNP reports under one root of AMD's.

Proves origin and integrity: the chain from the root to the chip's (VCEK) or provider's (VLEK) key, its revocation, that
the key is of the chip and of the security versions that the report names, and the signature. Nothing is fetched: chain,
revocation list and, for reports that bring none along, the key's certificate are endorsements.

Rules:

1. The bytes are one report without anything else behind it but its signer's certificate (`snp`).
2. The root in the endorsements is the anchor, byte for byte. Root, intermediate and revocation list are signed by
   RSA-4096 with RSASSA-PSS, SHA-384 and 48 bytes of salt; the names are ARK-<product> over SEV-<product> (VCEK) or
   SEV-VLEK-<product> (VLEK).
3. The revocation list is the root's, holds now, and neither root nor intermediate is in it.
4. Every certificate holds now.
5. The key's certificate names product, security versions and chip (VCEK) or provider (VLEK); product and versions are
   the report's processor and `reported_tcb`, the chip is its `chip_id`.
6. The signature over the report is that key's.
7. The guest policy allows neither debugging nor a migration agent, nor memory behind CXL unless the owner allows it,
   and as much as the owner asks. A provider's key counts only if the owner named the provider.
8. Where the firmware says whether it looked for aliases of memory (from version 3 on) and it did not, the platform is
   ConfigurationNeeded: its memory modules may lie about their size (BadRAM).

Source: AMD 56860 (firmware ABI), 57230 (certificates and KDS).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, NameOID

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AMD_ROOTS, AnyEndorsements, SNPEndorsements
from strongroom.attest.endorsements import TrustAnchor, check_window
from strongroom.attest.evidence import Evidence
from strongroom.attest.markers import SIMULATED_NAME
from strongroom.attest.snp import TCB, SNPReport, parse_report
from strongroom.crypto.x509 import UNREADABLE
from strongroom.errors import EndorsementError, EvidenceError, VerificationError

__all__ = ["SNPRules", "SNPVerifier", "covers", "describe_key", "key_of", "provider_of"]

# AMD gives VCEKs the serial number 0, which `cryptography` remarks on at each of them.
warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")

_log = logging.getLogger(__name__)

_OID = "1.3.6.1.4.1.3704.1."
_SPL = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
_LIMIT = (
    "launch digest: firmware and first processor state; kernel, first file system and command line if the firmware has "
    "their hashes (QEMU: kernel-hashes=on); not the host's ACPI tables, which the kernel runs as programs, and nothing "
    "that is read from a disk or happens later"
)
_MILAN = (
    "Milan: whoever has a chip can read the seed of its keys by software alone (arXiv 2605.12990) and sign any report "
    "in its name, of any firmware; a policy should name machines whose operator is trusted (`machine`), or another line"
)
_FETCH = "`strongroom attest endorsements fetch snp` gets them"


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPRules:
    """What an owner asks of every platform under one root, beside what a policy asks of a job.

    Attributes:
        floors: Processor (`SNPReport.processor`) -> versions: whose reported, committed or launch versions are below is
            OutOfDate, and so is one without a floor, since each model and stepping counts its microcode on its own.
            AMD publishes no signed list of current versions, so this is the owner's to keep.
        minimum_abi: (major, minor) of the firmware interface that the guest's policy must ask for.
        smt: Whether the guest may share a core's threads with others.
        cxl: Whether the guest's memory may lie behind CXL, on devices that the processor does not see into.
        vlek: The provider whose keys (VLEK) count beside those of chips, by its name in them; empty for none.
    """

    floors: Mapping[str, TCB]
    minimum_abi: tuple[int, int] = (0, 0)
    smt: bool = True
    cxl: bool = False
    vlek: str = ""


@dataclass(frozen=True, slots=True)
class SNPVerifier:
    """Verifies reports under `anchor`."""

    anchor: TrustAnchor
    rules: SNPRules | None

    def verify(self, evidence: Evidence, endorsements: AnyEndorsements, *, now: datetime) -> Claims:
        """Return the claims proven by the report's signature.

        Args:
            evidence: A report of version 2, 3 or 5.
            endorsements: For the report's product line and kind of key, covering `now`.
            now: UTC. Never read from the clock here.

        Raises:
            EvidenceError: Not a report of these formats.
            EndorsementError: Endorsements are missing, unreadable, expired, revoked, or for another platform.
            VerificationError: Another root, a broken chain or signature, or a guest that others may enter.
        """
        report = parse_report(evidence.quote)  # 1.
        if evidence.tee != "snp":
            raise EvidenceError(f"report: expected TEE {evidence.tee}, got snp")
        if not isinstance(endorsements, SNPEndorsements):
            raise EndorsementError("endorsements: expected AMD's, got Intel's", hint=_FETCH)
        if self.rules is None:
            raise VerificationError(
                "root: AMD's is trusted without a floor of security versions",
                hint="`strongroom service trust` with --minimum-tcb",
            )
        if not hmac.compare_digest(endorsements.ark, self.anchor.certificate_der):
            found = hashlib.sha256(endorsements.ark).hexdigest()
            raise VerificationError(f"root: expected {self.anchor.fingerprint[:16]}, got {found[:16]}")
        ask, ark = _chain(endorsements, report.signer)  # 2. and 3.
        check_window(endorsements.parts(), now)
        leaf = _leaf(report, endorsements, ask)
        _check_validity((ark, ask, leaf), now)  # 4.
        _check_identity(report, leaf, _common_name(ark).removeprefix("ARK-"))  # 5.
        _check_signature(report, leaf)  # 6.
        provider = _text(leaf, "5")
        if report.signer == "vlek" and (not provider or provider != self.rules.vlek):  # 7.
            wanted = f"a VCEK or a VLEK of {self.rules.vlek}" if self.rules.vlek else "a VCEK"
            raise VerificationError(
                f"key: expected {wanted}, got a VLEK of {provider!r:.60}", hint="`strongroom service trust` with --vlek"
            )
        _check_policy(report, self.rules)
        return self._claims(report, (leaf, ask, ark), self.rules.floors.get(report.processor))

    def _claims(self, report: SNPReport, chain: tuple[x509.Certificate, ...], floor: TCB | None) -> Claims:
        simulated = self.anchor.kind == "simulated" or any(SIMULATED_NAME in str(c.subject) for c in chain)
        stale = [
            f"{name}: {reason}"
            for name in ("reported_tcb", "committed_tcb", "launch_tcb")
            for reason in (report.tcb(name).below(floor) if floor else ["no floor to compare it with"])
        ]
        unchecked = report.version > 2 and not report.number("platform_info") >> 5 & 1  # 8.
        found = [*stale, *(["memory aliases: not looked for (BadRAM)"] if unchecked else [])]
        status = ("OutOfDate" if stale else "") + ("ConfigurationNeeded" if unchecked else "")
        vectors = [f"{report.number(f'{when}_mit_vector'):#x}" for when in ("launch", "current") if report.version > 4]
        return Claims(
            tee="snp",
            root="simulated" if simulated else "hardware",
            root_fingerprint=self.anchor.fingerprint,
            simulated=simulated,
            measurement=report["measurement"],
            signer=report["author_key_digest"],
            isv_prod_id=0,
            isv_svn=0,
            config_id=report["host_data"],
            report_data=report["report_data"],
            debug=report.debug,
            tcb_status=status or "UpToDate",
            chip_id=report["chip_id"],
            vmpl=report.number("vmpl"),
            tcb=f"{report.tcb('reported_tcb')}, floor of {report.processor} {floor or 'none'}"
            + "".join(f"; {r}" for r in found),
            limits=(_LIMIT, _MILAN) if _product(chain[0]) == "Milan" else (_LIMIT,),
            signing_key=report.signer,
            provider=_text(chain[0], "5"),
            guest_policy=f"{report.number('policy'):#x}",
            platform_info=f"{report.number('platform_info'):#x}",
            mitigations=tuple(vectors),
        )


def covers(endorsements: SNPEndorsements, evidence: Evidence) -> bool:
    """Return whether `endorsements` are of the product line and kind of key of `evidence`. Only for choosing."""
    report = parse_report(evidence.quote)
    ask = _load("intermediate", endorsements.ask)
    if report.certificate:
        return _load("key", report.certificate).issuer == ask.subject
    return key_of(report, endorsements.keys, endorsements.ask) is not None


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
            leaf = _load("key", key)
            if ask:
                _check_signed("key", _load("intermediate", ask), leaf)
            chip = (_extension(leaf, "4") or b"").ljust(64, b"\0") if _common_name(leaf) == "SEV-VCEK" else b""
            levels = tuple(_level(leaf, _SPL[part], part) for part in TCB.PARTS)
        except (EndorsementError, VerificationError) as exc:
            _log.warning("a chip's key among the endorsements is not used reason=%s", exc)
            continue
        found.setdefault((_common_name(leaf), chip, levels), key)
    return found


def provider_of(der: bytes) -> str:
    """Return the provider that the certificate of a VLEK names, empty if it names none."""
    return _text(_load("key", der), "5")


def describe_key(der: bytes) -> str:
    """Return what a chip's or provider's certificate is for, in words: chip, product, security versions."""
    leaf = _load("key", der)
    levels = {part: _level(leaf, _SPL[part], part) for part in TCB.PARTS}
    if _product(leaf) != "Turin":
        del levels["fmc"]
    holder = _extension(leaf, "4") or _extension(leaf, "5") or b""
    return f"{_common_name(leaf)} {_product(leaf)} {holder.hex()[:16]} TCB {'.'.join(map(str, levels.values()))}"


@lru_cache(maxsize=16)
def _chain(endorsements: SNPEndorsements, signer: str) -> tuple[x509.Certificate, x509.Certificate]:
    # Endorsements change once a month, reports come all the time. Nothing in here depends on the time.
    ark, ask = _load("root", endorsements.ark), _load("intermediate", endorsements.ask)
    product = _common_name(ark).removeprefix("ARK-")
    expected = {"vcek": f"SEV-{product}", "vlek": f"SEV-VLEK-{product}"}[signer]
    if product not in AMD_ROOTS:
        raise VerificationError(f"root: expected ARK-{' or ARK-'.join(AMD_ROOTS)}, got {_common_name(ark)!r:.60}")
    if _common_name(ask) != expected:
        raise EndorsementError(
            f"endorsements: expected {expected} over the report's {signer}, got {_common_name(ask)!r:.60}", hint=_FETCH
        )
    for name, certificate in (("root", ark), ("intermediate", ask)):
        _check_signed(name, ark, certificate)
        if not _is_ca(certificate):
            raise VerificationError(f"chain: the {name} is not a certificate authority")
    _check_revocation(endorsements.crl, ark, ask)
    return ask, ark


def _check_revocation(der: bytes, ark: x509.Certificate, ask: x509.Certificate) -> None:
    try:
        crl = x509.load_der_x509_crl(der)
        issuer, critical = crl.issuer, [e.oid.dotted_string for e in crl.extensions if e.critical]
        revoked = {entry.serial_number for entry in crl}
    except UNREADABLE as exc:
        raise EndorsementError("endorsements: the revocation list crl is not readable", hint=_FETCH) from exc
    if issuer != ark.subject:
        raise EndorsementError("endorsements: the revocation list is another root's", hint=_FETCH)
    if critical:
        raise EndorsementError(f"endorsements: the revocation list has an extension that is not known: {critical[0]}")
    _check_signed("revocation list", ark, crl)
    for certificate in (ark, ask):
        if certificate.serial_number in revoked:
            name = _common_name(certificate)
            raise EndorsementError(f"revoked: {name} with serial {certificate.serial_number:x}")


def _leaf(report: SNPReport, endorsements: SNPEndorsements, ask: x509.Certificate) -> x509.Certificate:
    if report.certificate:
        leaf = _load("key", report.certificate)
    else:
        found = key_of(report, endorsements.keys, endorsements.ask)
        if found is None:
            chip, tcb = report["chip_id"].hex()[:16], report.tcb("reported_tcb")
            raise EndorsementError(
                f"endorsements: no {report.signer.upper()} of chip {chip} for TCB {tcb}, and the report brings none",
                hint="`strongroom attest endorsements fetch snp --report FILE` gets it",
            )
        leaf = _load("key", found)
    if leaf.issuer != ask.subject:
        issuer = leaf.issuer.rfc4514_string()
        raise EndorsementError(f"chain: expected a key under {_common_name(ask)}, got one under {issuer!r:.80}")
    _check_signed("key", ask, leaf)
    return leaf


def _check_validity(chain: tuple[x509.Certificate, ...], now: datetime) -> None:
    check_window([(_common_name(c), c.not_valid_before_utc, c.not_valid_after_utc) for c in chain], now)


def _check_identity(report: SNPReport, leaf: x509.Certificate, product: str) -> None:
    name, expected = _common_name(leaf), f"SEV-{report.signer.upper()}"
    if name != expected:
        raise VerificationError(f"key: expected {expected}, got {name!r:.60}")
    if _product(leaf) != product:
        raise VerificationError(f"product: expected {product}, got {_product(leaf)!r:.60}")
    line = report.line
    if line != product and (line is not None or product == "Turin"):
        raise VerificationError(f"product: expected a processor of {product}, got {line or 'a report without one'}")
    reported = report.tcb("reported_tcb")
    for part in TCB.PARTS:
        got = getattr(reported, part)
        if (level := _level(leaf, _SPL[part], part)) != (got or 0):
            raise VerificationError(f"tcb: the key is for {part} {level}, the report says {got}")
    for reserved in "4567":
        if _level(leaf, f"3.{reserved}", "a reserved part"):
            raise VerificationError("tcb: the key is for a version in a reserved part")
    _check_chip(report, leaf)


def _check_chip(report: SNPReport, leaf: x509.Certificate) -> None:
    chip, provider = _extension(leaf, "4"), _extension(leaf, "5")
    if report.signer == "vlek":
        if chip is not None or not provider:
            raise VerificationError("key: a VLEK names a provider and no chip")
        return
    if chip is None or provider is not None or len(chip) != (8 if report.turin else 64):
        raise VerificationError("key: a VCEK names its chip and no provider")
    if not any(chip) or not hmac.compare_digest(chip.ljust(64, b"\0"), report["chip_id"]):
        raise VerificationError(
            f"chip: the key is for {chip.hex()[:16]}, the report says {report['chip_id'].hex()[:16]}"
        )


def _check_signature(report: SNPReport, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationError("key: expected ECDSA P-384")
    signature = encode_dss_signature(report.number("signature_r"), report.number("signature_s"))
    try:
        key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as exc:
        raise VerificationError("signature: the report is not signed by its chip's key") from exc


def _check_policy(report: SNPReport, rules: SNPRules) -> None:
    policy = report.number("policy")
    if report.debug:
        raise VerificationError("policy: expected no debugging, got a guest whose memory the host may read (bit 19)")
    if policy >> 18 & 1:
        raise VerificationError("policy: expected no migration agent, got a guest that may be handed to one (bit 18)")
    if policy >> 21 & 1 and not rules.cxl:
        raise VerificationError("policy: expected no CXL, got a guest whose memory may lie behind it (bit 21)")
    if policy >> 16 & 1 and not rules.smt:
        raise VerificationError("policy: expected no SMT, got a guest that may share a core (bit 16)")
    asked = (policy >> 8 & 0xFF, policy & 0xFF)
    if asked < rules.minimum_abi:
        expected, got = (f"{major}.{minor}" for major, minor in (rules.minimum_abi, asked))
        raise VerificationError(f"policy: expected a minimum ABI of {expected}, got {got}")


def _check_signed(
    what: str, issuer: x509.Certificate, signed: x509.Certificate | x509.CertificateRevocationList
) -> None:
    key = issuer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
        raise VerificationError(f"chain: {_common_name(issuer)} has no RSA-4096 key")
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
        raise VerificationError(f"chain: the {what} is not signed by {_common_name(issuer)}") from exc


@lru_cache(maxsize=256)  # of parsing alone: machines come again with every renewal
def _load(what: str, der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # Read here, so that nothing below fails on a malformed one.
        _ = (certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        if not der.endswith(b"\0" + certificate.signature):
            raise ValueError("the signature has unused bits")
    except UNREADABLE as exc:
        raise EndorsementError(f"chain: the certificate of the {what} is not readable", hint=_FETCH) from exc
    return certificate


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and isinstance(usage, x509.KeyUsage) and usage.key_cert_sign


def _common_name(certificate: x509.Certificate) -> str:
    values = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def _extension(leaf: x509.Certificate, suffix: str) -> bytes | None:
    try:
        value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(_OID + suffix)).value
    except x509.ExtensionNotFound:
        return None
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def _level(leaf: x509.Certificate, suffix: str, part: str) -> int:
    # A DER INTEGER from 0 to 255. Milan and Genoa have no level of the first mutable code.
    raw = _extension(leaf, suffix)
    if raw is None and part in ("fmc", "a reserved part"):
        return 0
    if raw is not None and 3 <= len(raw) <= 4 and raw[:2] == bytes([2, len(raw) - 2]):
        value = int.from_bytes(raw[2:], "big", signed=True)
        if 0 <= value <= 0xFF and (len(raw) == 3 or value > 0x7F):
            return value
    raise VerificationError(f"key: its {part} level is not a number from 0 to 255")


def _product(leaf: x509.Certificate) -> str:
    # Such as Milan-B0; VLEKs have no stepping.
    return _text(leaf, "2").partition("-")[0]


def _text(leaf: x509.Certificate, suffix: str) -> str:
    # An IA5String.
    raw = _extension(leaf, suffix) or b""
    if not 2 < len(raw) < 0x80 or raw[:2] != bytes([0x16, len(raw) - 2]):
        return ""
    return raw[2:].decode("ascii", "replace")
