"""Proof of an answer: the trust service's identity key signs what was asked, by whom, and what it answered.

TLS ends at a key that lives for 30 days, in the service's process and, for a root key that needs a person, on its disk.
Whoever got hold of one could answer in the service's name: seal a key of its own choice to a guest, whose public key is
no secret, or show an answer of an earlier request. So the asker sends a nonce of its own, and believes an answer only
with this signature (docs/formats/release-protocol.md §6). Runs in the guest: standard library and `cryptography`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import sha256_id
from strongroom.crypto import jose
from strongroom.errors import VerificationError

__all__ = ["DATASET_HEAD_TYPE", "HEAD", "NONCE", "PROOF", "check_proof", "sign_proof"]

NONCE = "strongroom-nonce"
"""Request header: 32 base64url characters, fresh for each request."""
PROOF = "strongroom-proof"
"""Response header: a compact JWS."""
HEAD = "strongroom-audit-head"
"""Response header for owners: the signed head of the audit log after the request."""
DATASET_HEAD_TYPE = "strongroom-head+jwt"
"""Type of the signed statement that names a data set's newest manifest (docs/formats/data-set.md §3)."""
_TYPE = "strongroom-proof+jwt"


def sign_proof(
    key: ec.EllipticCurvePrivateKey, *, request: str, nonce: str, to: str, answer: bytes, head: str = ""
) -> str:
    """Return the proof of `answer`.

    Args:
        key: The service's identity key.
        request: Method and target, as sent.
        nonce: As sent.
        to: Who was let in: the SPKI id of an attested guest's key, or the fingerprint of an owner's certificate.
        answer: The body.
        head: Header `HEAD`, "" if there is none.
    """
    return jose.sign_jws(_statement(request, nonce, to, answer, head), key, typ=_TYPE)


def check_proof(
    proof: str,
    keys: Sequence[ec.EllipticCurvePublicKey],
    *,
    request: str,
    nonce: str,
    to: str,
    answer: bytes,
    head: str = "",
) -> None:
    """Return only if one of `keys` signed `answer` for this request; the arguments are those of `sign_proof`.

    Raises:
        VerificationError: There is no proof, or it is for something else.
    """
    if not proof:
        raise VerificationError(
            f"proof: expected one of the service's identity for {request:.200}, got none",
            hint="after an upgrade, stop the older service: `strongroom service stop`; else do not trust what answers",
        )
    found, expected = jose.verify_jws(proof, keys, typ=_TYPE), _statement(request, nonce, to, answer, head)
    for name, value in expected.items():
        if found.get(name) != value:
            raise VerificationError(f"proof: {name}: expected {value:.200}, got {found.get(name)!r:.200}")


def _statement(request: str, nonce: str, to: str, answer: bytes, head: str) -> dict[str, str]:
    return {"request": request, "nonce": nonce, "to": to, "answer": sha256_id(answer), "head": head}
