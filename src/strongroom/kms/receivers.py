"""Who receives what the gate releases: an attested guest, or the authenticated owner of the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.attest.claims import Claims
from strongroom.crypto import jose
from strongroom.errors import UnattestedError

__all__ = ["MIN_LEASE_S", "Guest", "OwnerReceiver"]

MIN_LEASE_S = 60
"""A release is good for at least this long: no guest receives a key that it has to give back at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An attested guest: what verification proved, and the key that answers are sealed to.

    Attributes:
        claims: Proven by the quote.
        job: `sha256:<hex>` of the init-data that the quote binds.
        document: The job document in that init-data.
        nonce: The session's challenge, which the evidence answered.
        public_key: The guest's fresh key, bound by the report data.
        tls_spki: SPKI id of the guest's TLS key, bound alike; "" if it has none.
        run_id: Of this session, 16 bytes in hex.
        expires_at: End of the lease, in seconds of CLOCK_BOOTTIME.
        by_token: This request showed the session's token alone: it may be from whoever was shown that.
    """

    claims: Claims
    job: str
    document: Mapping[str, object]
    nonce: str
    public_key: jose.ReceiverKey
    tls_spki: str
    run_id: str
    expires_at: float
    by_token: bool = False

    @property
    def actor(self) -> str:
        """How the audit log calls this guest."""
        own = f"own root {self.claims.root_fingerprint[:16]} "
        kind = {"simulated": "SIMULATED ", "own": own}.get(self.claims.root, "")
        return f"{kind}guest {self.claims.measurement.hex()[:16]} job {self.job[7:23]}"

    def check_lease(self, uptime_s: float) -> None:
        """Return only while the lease runs, at `uptime_s` of CLOCK_BOOTTIME.

        Raises:
            UnattestedError: It has ended.
        """
        if uptime_s >= self.expires_at:
            raise UnattestedError("the guest's lease has ended", hint="attest again")

    def lease_s(self, uptime_s: float) -> int:
        """Return how many seconds of the lease are left.

        Raises:
            UnattestedError: Too few for a release.
        """
        left_s = int(self.expires_at - uptime_s)
        if left_s < MIN_LEASE_S:
            raise UnattestedError(
                f"the guest's lease: expected at least {MIN_LEASE_S} s for a release, got {left_s} s",
                hint="attest again",
            )
        return left_s


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerReceiver:
    """The authenticated owner, with the fresh key of this request."""

    owner: str
    public_key: ec.EllipticCurvePublicKey
    purpose: Literal["data", "export"]

    @property
    def actor(self) -> str:
        """How the audit log calls this owner."""
        return f"owner {self.owner[:16]}"
