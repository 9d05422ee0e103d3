"""The verifier of a service that was not told whom to trust: it refuses everything."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.evidence import Evidence
from strongroom.errors import VerificationError

__all__ = ["FailingVerifier"]


@dataclass(frozen=True, slots=True)
class FailingVerifier:
    """Verifies nothing."""

    def verify(self, evidence: Evidence, endorsements: AnyEndorsements, *, now: datetime) -> Claims:
        """Raise: no trust anchor is configured.

        Raises:
            VerificationError: Always.
        """
        raise VerificationError(
            "no verifier is configured", hint="configure a trust anchor; without one no evidence is believed"
        )
