"""Why a quote is not believed, in words: whose fault it is, which check, what was expected and what was there.

dcap-qvl names the check alone; what explains a refusal is unsigned yet, so it has any form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeGuard

from cryptography import x509

from strongroom.attest.endorsements import Endorsements
from strongroom.attest.quote import Quote
from strongroom.attest.verifiers.chains import Chain, Platform, platform, tcb_info
from strongroom.crypto.x509 import UNREADABLE, common_name
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, VerificationError

__all__ = ["Judged", "classified", "not_in_force"]

# What dcap-qvl 0.7 says, by the part that it blames. Anything unknown counts as a failed verification.
_ENDORSEMENT_WORDS = (
    "crl", "tcbinfo", "tcb info", "tcb level", "tcb status", "tcb_info", "qeidentity", "qe identity", "qe_identity",
    "fmspc mismatch", "tdx module", "component count", "collateral", "tee_tcb_svn2",
)  # fmt: skip
_EVIDENCE_WORDS = ("failed to decode quote", "unsupported dcap", "quote must have version", "unknown qe vendor")


@dataclass(frozen=True, slots=True)
class Judged:
    """What one verification is about."""

    quote: Quote
    chain: Chain
    signers: Mapping[str, x509.Certificate]
    endorsements: Endorsements
    now: datetime

    @property
    def platform(self) -> Platform:
        """What the PCK certificate says; ValueError if it has no such extension."""
        return platform(self.quote["auth.cert_data"])


def classified(message: str, judged: Judged) -> AttestationError:
    """Return the refusal that dcap-qvl's `message` stands for; unknown words are a failed verification."""
    try:
        return _classified(message.removeprefix("Verification failed: "), judged)
    except UNREADABLE:
        return EndorsementError(f"endorsements: {message}")


def _classified(said: str, judged: Judged) -> AttestationError:
    low = said.lower()
    if "certificate chain" in low or "certrevoked" in low or "crl" in low:
        blamed = not_in_force(judged)
        if blamed is not None:
            return blamed
    if any(word in low for word in _EVIDENCE_WORDS):
        return EvidenceError(f"quote: {said}")
    if any(word in low for word in _ENDORSEMENT_WORDS) and "debug" not in low:
        return EndorsementError(f"endorsements: {said}{_got(low, judged)}")
    return VerificationError(f"quote: {said}")


def not_in_force(judged: Judged) -> AttestationError | None:
    """Return which certificate is withdrawn or does not hold now, None if all are in force."""
    try:
        return _withdrawn(judged) or _not_valid(judged)
    except UNREADABLE as exc:
        return EndorsementError(f"endorsements: not readable: {type(exc).__name__}")


def _withdrawn(judged: Judged) -> AttestationError | None:
    leaf, issuer, root = judged.chain.leaf, judged.chain.issuer, judged.chain.root
    lists = {}
    for name, by in (("root_ca_crl", root), ("pck_crl", issuer)):
        crl = x509.load_der_x509_crl(getattr(judged.endorsements, name))  # readable: the window was read from it
        if crl.issuer != by.subject or not crl.is_signature_valid(by.public_key()):  # type: ignore[arg-type]
            return EndorsementError(f"{name}: expected a list signed by {common_name(by.subject)}, got another's")
        lists[name] = crl
    for certificate in (leaf, issuer, root, *judged.signers.values()):
        crl = lists["pck_crl" if certificate is leaf else "root_ca_crl"]
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            return EndorsementError(
                f"revoked: {common_name(certificate.subject)} with serial {certificate.serial_number:x}"
            )
    return None


def _not_valid(judged: Judged) -> AttestationError | None:
    now = judged.now.astimezone(UTC)
    chain = judged.chain
    given = [("chain", c) for c in (chain.leaf, chain.issuer, chain.root)] + list(judged.signers.items())
    for name, certificate in given:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            family = VerificationError if name == "chain" else EndorsementError
            return family(
                f"{name}: {common_name(certificate.subject)} is not valid now: it holds from {start:%Y-%m-%d} to "
                f"{end:%Y-%m-%d}, the time is {now:%Y-%m-%dT%H:%M:%SZ}"
            )
    return None


def _got(low: str, judged: Judged) -> str:
    """Return what was compared, in words, where the library names the check alone."""
    document = tcb_info(judged.endorsements)
    if "revoked" in low:
        levels = document.get("tcbLevels")
        revoked = [v.get("advisoryIDs") for v in levels if v.get("tcbStatus") == "Revoked"] if _objects(levels) else []
        named = {str(a) for ids in revoked if isinstance(ids, list) for a in ids}
        return f"; advisories: {', '.join(sorted(named)) or 'none named'}"
    if not any(word in low for word in ("fmspc", "tcb level", "tee_tcb_svn2", "tdx module")):
        return ""
    try:
        pck = judged.platform
    except ValueError:
        return ""
    text = f": expected a level for FMSPC {document.get('fmspc')}, got FMSPC {pck.fmspc.hex().upper()}, "
    text += f"CPUSVN {pck.cpu_svn.hex()}, PCESVN {pck.pce_svn}"
    if judged.quote.tee == "tdx":
        svn = judged.quote["body.tee_tcb_svn"]
        text += f", TEE_TCB_SVN {svn.hex()} (module TDX_{svn[1]:02X})"
    return text


def _objects(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
