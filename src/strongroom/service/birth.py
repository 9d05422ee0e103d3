"""What proves that a trust service's identity was made in its TEE, and for which administrator.

Whoever sets a service up outside has its identity key and root key. So a service that is started in a TEE over an empty
folder makes both there, for one administrator, whose certificate it is started with: the host's word, but evidence
names it, and its owner compares (decisions/0029). The *mark* says of an identity key and an administrator that this
code made the one for the other, on this machine: a MAC under the TEE's sealing key, which the host cannot make.
"""

from __future__ import annotations

import hmac
import logging

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import labelled_hash
from strongroom.attest.attesters import Attester
from strongroom.crypto import x509
from strongroom.errors import AttestationError, UnavailableError

__all__ = ["holds", "mark"]

_log = logging.getLogger(__name__)
_LABEL = "strongroom-service-born-v1"


def mark(attester: Attester, identity: ec.EllipticCurvePrivateKey, admin: str) -> bytes:
    """Return the mark of an identity that was made here, for the administrator with this fingerprint."""
    said = [x509.spki_id(identity.public_key()).encode(), admin.encode()]
    with attester.sealing_key() as raw:
        return hmac.digest(labelled_hash(_LABEL, [raw]), labelled_hash(_LABEL, said), "sha256")


def holds(found: bytes | None, attester: Attester | None, identity: ec.EllipticCurvePrivateKey, admin: str) -> bool:
    """Return whether `found` is that mark, of this code and machine."""
    if not found or attester is None:
        return False
    try:
        return hmac.compare_digest(found, mark(attester, identity, admin))
    except (AttestationError, UnavailableError) as exc:
        _log.warning("no sealing key to see where the identity was made reason=%s", exc)
        return False
