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
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements
from strongroom.attest.endorsements import TrustAnchor, check_window
from strongroom.attest.evidence import Evidence
from strongroom.attest.makers import stands_for
from strongroom.attest.snp import TCB, SNPReport, parse_report
from strongroom.attest.verifiers.chains import marked
from strongroom.attest.verifiers.chip_keys import (
    FETCH,
    chain_of,
    check_key,
    extension,
    key_of,
    levels_of,
    load_certificate,
    product_of,
    text_of,
)
from strongroom.crypto.x509 import common_name
from strongroom.errors import EndorsementError, EvidenceError, VerificationError

__all__ = ["SNPRules", "SNPVerifier", "covers"]

_LIMIT = (
    "launch digest: firmware and first processor state; kernel, first file system and command line if the firmware has "
    "their hashes (QEMU: kernel-hashes=on); not the host's ACPI tables, which the kernel runs as programs, and nothing "
    "that is read from a disk or happens later"
)
_MILAN = (
    "Milan: whoever has a chip can read the seed of its keys by software alone (arXiv 2605.12990) and sign any report "
    "in its name, of any firmware; a policy should name machines whose operator is trusted (`machine`), or another line"
)


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
            evidence: A report of version 2 to 5.
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
            raise EndorsementError("endorsements: expected AMD's, got Intel's", hint=FETCH)
        if self.rules is None:
            raise VerificationError(
                "minimum_tcb: expected a floor of security versions under AMD's root, got none",
                hint=f"--minimum-tcb {report.processor}=VERSIONS, here or with `strongroom service trust`",
            )
        if not hmac.compare_digest(endorsements.ark, self.anchor.certificate_der):
            found = hashlib.sha256(endorsements.ark).hexdigest()
            raise VerificationError(f"root: expected {self.anchor.fingerprint[:16]}, got {found[:16]}")
        ask, ark = chain_of(endorsements, report.signer)  # 2. and 3.
        check_window(endorsements.parts(), now)
        leaf = _leaf(report, endorsements, ask)
        _check_validity((ark, ask, leaf), now)  # 4.
        _check_identity(report, leaf, common_name(ark.subject).removeprefix("ARK-"))  # 5.
        _check_signature(report, leaf)  # 6.
        claims = self._claims(report, (leaf, ask, ark), self.rules.floors.get(report.processor))
        try:
            _check_provider(claims, self.rules)  # 7.
            _check_policy(report, self.rules)
        except VerificationError as exc:
            exc.details |= {"tcb_status": claims.tcb_status, "advisory_ids": []}
            raise
        return claims

    def _claims(self, report: SNPReport, chain: tuple[x509.Certificate, ...], floor: TCB | None) -> Claims:
        root = stands_for(self.anchor, marked=any(map(marked, chain)))
        stale = [
            f"{name}: {reason}"
            for name in ("reported_tcb", "committed_tcb", "launch_tcb")
            for reason in (report.tcb(name).below(floor) if floor else ["no floor to compare it with"])
        ]
        unchecked = report.aliases_unchecked  # 8.
        found = [*stale, *(["memory aliases: not looked for (BadRAM)"] if unchecked else [])]
        status = ("OutOfDate" if stale else "") + ("ConfigurationNeeded" if unchecked else "")
        vectors = [f"{report.number(f'{when}_mit_vector'):#x}" for when in ("launch", "current") if report.version > 4]
        return Claims(
            tee="snp",
            root=root,
            root_fingerprint=self.anchor.fingerprint,
            simulated=root == "simulated",
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
            limits=(_LIMIT, _MILAN) if product_of(chain[0]) == "Milan" else (_LIMIT,),
            signing_key=report.signer,
            provider=text_of(chain[0], "5"),
            guest_policy=f"{report.number('policy'):#x}",
            platform_info=f"{report.number('platform_info'):#x}",
            mitigations=tuple(vectors),
        )


def covers(endorsements: SNPEndorsements, evidence: Evidence) -> bool:
    """Return whether `endorsements` are of the product line and kind of key of `evidence`. Only for choosing."""
    report = parse_report(evidence.quote)
    ask = load_certificate("intermediate", endorsements.ask)
    if report.certificate:
        return load_certificate("key", report.certificate).issuer == ask.subject
    return key_of(report, endorsements.keys, endorsements.ask) is not None


def _leaf(report: SNPReport, endorsements: SNPEndorsements, ask: x509.Certificate) -> x509.Certificate:
    if report.certificate:
        leaf = load_certificate("key", report.certificate)
    else:
        found = key_of(report, endorsements.keys, endorsements.ask)
        if found is None:
            chip, tcb = report["chip_id"].hex()[:16], report.tcb("reported_tcb")
            raise EndorsementError(
                f"endorsements: no {report.signer.upper()} of chip {chip} for TCB {tcb}, and the report brings none",
                hint="`strongroom attest endorsements fetch REPORT` gets it",
            )
        leaf = load_certificate("key", found)
    if leaf.issuer != ask.subject:
        issuer = leaf.issuer.rfc4514_string()
        raise EndorsementError(f"chain: expected a key under {common_name(ask.subject)}, got one under {issuer!r:.80}")
    check_key(ask, leaf)
    return leaf


def _check_validity(chain: tuple[x509.Certificate, ...], now: datetime) -> None:
    check_window([(common_name(c.subject), c.not_valid_before_utc, c.not_valid_after_utc) for c in chain], now)


def _check_identity(report: SNPReport, leaf: x509.Certificate, product: str) -> None:
    name, expected = common_name(leaf.subject), f"SEV-{report.signer.upper()}"
    if name != expected:
        raise VerificationError(f"key: expected {expected}, got {name!r:.60}")
    if product_of(leaf) != product:
        raise VerificationError(f"product: expected {product}, got {product_of(leaf)!r:.60}")
    line = report.line
    if line != product and (line is not None or product == "Turin"):
        raise VerificationError(f"product: expected a processor of {product}, got {line or 'a report without one'}")
    reported, levels = report.tcb("reported_tcb"), levels_of(leaf)
    for part in TCB.PARTS:
        got = getattr(reported, part) or 0
        if levels[part] != got:
            raise VerificationError(f"tcb: expected a key for {part} {got}, got one for {part} {levels[part]}")
    if any(level for part, level in levels.items() if part not in TCB.PARTS):
        raise VerificationError("tcb: expected a key without a version in a reserved part, got one with it")
    _check_chip(report, leaf)


def _check_chip(report: SNPReport, leaf: x509.Certificate) -> None:
    chip, provider = extension(leaf, "4"), extension(leaf, "5")
    if report.signer == "vlek":
        if chip is not None or not provider:
            raise VerificationError("key: expected a VLEK that names a provider and no chip, got another")
        return
    if chip is None or provider is not None or len(chip) != (8 if report.turin else 64):
        raise VerificationError("key: expected a VCEK that names its chip and no provider, got another")
    if not any(chip) or not hmac.compare_digest(chip.ljust(64, b"\0"), report["chip_id"]):
        raise VerificationError(
            f"chip: expected a key for the report's, {report['chip_id'].hex()[:16]}, got one for {chip.hex()[:16]}"
        )


def _check_signature(report: SNPReport, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationError("key: expected ECDSA P-384, got another key")
    signature = encode_dss_signature(report.number("signature_r"), report.number("signature_s"))
    try:
        key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as exc:
        got = "another's, or one over other bytes"
        raise VerificationError(f"signature: expected one by the chip's key, got {got}") from exc


def _check_provider(claims: Claims, rules: SNPRules) -> None:
    if claims.signing_key == "vlek" and (not claims.provider or claims.provider != rules.vlek):
        wanted = f"a VCEK or a VLEK of {rules.vlek}" if rules.vlek else "a VCEK"
        raise VerificationError(
            f"key: expected {wanted}, got a VLEK of {claims.provider!r:.60}",
            hint="`strongroom service trust` with --vlek",
        )


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
