"""The certificate authority for workloads: short-lived certificates, given only to attested guests.

The certificate carries the job digest and the owner as URIs, `strongroom://job/<hex>` and `strongroom://owner/<hex>`;
peers compare them, since one root serves every job. It also carries the guest's evidence for its key, which the caller
has verified, so that whoever meets the guest can judge it too (`attest.ratls`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.attest.ratls import EXTENSION, JOB_URI
from strongroom.crypto import x509

__all__ = ["WorkloadCA"]


class WorkloadCA:
    """Signs workload certificates under one root key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, *, now: datetime) -> None:
        self._key = key
        self._root = x509.self_signed(key, "Strongroom workload root", now=now, days=3650, ca=True)

    @property
    def root_pem(self) -> str:
        """The root that peers of a job trust."""
        return x509.certificate_pem(self._root)

    def issue(self, csr: str, *, job: str, owner: str, evidence: bytes, now: datetime, lifetime: timedelta) -> str:
        """Return a certificate for the key in `csr`, bound to job digest and owner, with `evidence` for that key."""
        key = x509.public_key_of_csr(csr)
        certificate = x509.issue(
            self._root,
            self._key,
            key,
            "workload",
            now=now,
            lifetime=lifetime,
            uris=[JOB_URI + job.removeprefix("sha256:"), f"strongroom://owner/{owner}"],
            client=True,
            extensions={EXTENSION: evidence},
        )
        return x509.certificate_pem(certificate)
