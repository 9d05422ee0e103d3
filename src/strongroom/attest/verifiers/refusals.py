"""What one verification of an Intel quote is about, and which of its certificates is not in force.

dcap-qvl says of those only that there is one. What explains a refusal may be unsigned, so it has any form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from strongroom.attest.endorsements import Endorsements
from strongroom.attest.quote import Quote
from strongroom.attest.verifiers.chains import Chain, Platform, platform
from strongroom.crypto.x509 import UNREADABLE, common_name
from strongroom.errors import AttestationError, EndorsementError, VerificationError

__all__ = ["Judged", "not_in_force"]


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


def not_in_force(judged: Judged) -> AttestationError | None:
    """Return which certificate is withdrawn or does not hold now, None if all are in force."""
    try:
        return _withdrawn(judged) or _not_valid(judged)
    except UNREADABLE as exc:
        return EndorsementError(f"endorsements: expected readable certificates and lists, got {type(exc).__name__}")


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
            got = f"{common_name(certificate.subject)} with serial {certificate.serial_number:x}"
            return EndorsementError(f"revoked: expected certificates that no list withdraws, got {got}")
    return None


def _not_valid(judged: Judged) -> AttestationError | None:
    now = judged.now.astimezone(UTC)
    chain = judged.chain
    given = [("chain", c) for c in (chain.leaf, chain.issuer, chain.root)] + list(judged.signers.items())
    for name, certificate in given:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            family = VerificationError if name == "chain" else EndorsementError
            got = f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
            subject, time = common_name(certificate.subject), f"{now:%Y-%m-%dT%H:%M:%SZ}"
            return family(f"{name}: expected {subject} to hold now, {time}, got one that holds from {got}")
    return None
