"""Verifiers: is the statement true? One module per way of knowing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.makers import MAKERS
from strongroom.attest.quote import parse_quote
from strongroom.attest.verifiers.chains import covers_platform
from strongroom.attest.verifiers.newest import newest
from strongroom.attest.verifiers.snp import covers
from strongroom.errors import EndorsementError, VerificationError

__all__ = ["Verifier", "verify_any"]

_STRANGE = "the root is no maker's, and not trusted here; a SIMULATED platform's is trusted in its own workspace"


class Verifier(Protocol):
    """Turns evidence into claims under one root, or raises."""

    @property
    def anchor(self) -> TrustAnchor:
        """The root."""
        ...

    def verify(self, evidence: Evidence, endorsements: AnyEndorsements, *, now: datetime) -> Claims:
        """Return the claims proven by the hardware signature on `evidence`.

        Raises:
            EvidenceError: The bytes are not a quote of this format.
            EndorsementError: Endorsements are missing, expired, revoked or for another platform.
            VerificationError: A signature or the chain does not hold.
        """
        ...


def verify_any(evidence: Evidence, choices: Sequence[tuple[Verifier, AnyEndorsements]], *, now: datetime) -> Claims:
    """Return the claims of `evidence` under the one choice whose root the quote names.

    The quote only selects; the selected verifier then proves the chain up to its own root. Several endorsements under
    one root are told apart by the TEE and family that their TCB info names, and by the CA of their revocation list. An
    SNP report names no root: its choice is the product line whose intermediate is over the key's certificate. Of every
    part of endorsements the newest among `choices` counts (`newest`).

    Raises:
        EvidenceError: The bytes are not a quote.
        EndorsementError: No endorsements for this TEE under the root.
        VerificationError: No choice has this root, or verification fails.
    """
    renewed = newest([(verifier.anchor, endorsements) for verifier, endorsements in choices])
    pairs = list(zip(choices, renewed, strict=True))
    # What is not proven comes last, as it is: its verifier says what is wrong with it.
    choices = [(v, new) for (v, _), new in pairs if not isinstance(new, EndorsementError)]
    choices += [choice for choice, new in pairs if isinstance(new, EndorsementError)]
    if evidence.tee == "snp":
        return _verify_snp(evidence, choices, now)
    quote = parse_quote(evidence.quote)
    named = hashlib.sha256(quote.root_der).hexdigest()
    under_root = [(v, e) for v, e in choices if v.anchor.fingerprint == named]
    if not under_root:
        known = ", ".join(sorted({v.anchor.fingerprint[:16] for v, _ in choices})) or "none"
        hint = _missing(MAKERS[named]) if named in MAKERS else _STRANGE
        raise VerificationError(f"root: expected one of {known}, got {named[:16]}", hint=hint)
    verifier, endorsements = max(under_root, key=lambda choice: covers_platform(choice[1], quote))
    return verifier.verify(evidence, endorsements, now=now)


def _verify_snp(evidence: Evidence, choices: Sequence[tuple[Verifier, AnyEndorsements]], now: datetime) -> Claims:
    lines = [(v, e) for v, e in choices if isinstance(e, SNPEndorsements)]
    if not lines:
        raise VerificationError("root: expected one of none, got AMD's", hint=_missing("AMD"))
    verifier, endorsements = next((line for line in lines if covers(line[1], evidence)), lines[0])
    return verifier.verify(evidence, endorsements, now=now)


def _missing(maker: str) -> str:
    return f"no endorsements of {maker}'s are here: `strongroom attest endorsements fetch FILE` gets them"
