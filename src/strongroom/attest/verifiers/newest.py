"""Which endorsements are the newest that are known. An older one that still holds would hide what was revoked since.

Makers sign every part for itself, so each is renewed for itself: of all parts that are for the same thing, the newest
counts, whichever file it came in. A part counts only once its signature is proven, so that nobody withdraws the others
by claiming to be newer. How new a part is: its edition (TCB info and QE identity), then the date it was issued.

Source: Intel PCS API v4; RFC 5280, 5.1.2.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom._encoding import parse_json
from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements
from strongroom.attest.endorsements import Endorsements, TrustAnchor
from strongroom.attest.verifiers.chains import tcb_signers
from strongroom.crypto.x509 import UNREADABLE
from strongroom.errors import EndorsementError, InputError

__all__ = ["Mark", "newest", "proven"]

Mark = tuple[int, float]
"""Edition, and when it was issued in seconds of the epoch."""


@dataclass(frozen=True, slots=True)
class Proven:
    """Endorsements whose parts are all signed under their root; keys of chips are judged one by one elsewhere.

    Attributes:
        endorsements: What is proven.
        marks: How new each part is, by root and what it is for.
        fields: The fields of `endorsements` that make up each part.
    """

    endorsements: AnyEndorsements
    marks: Mapping[str, Mark]
    fields: Mapping[str, Mapping[str, object]]


def newest(
    found: Sequence[tuple[TrustAnchor, AnyEndorsements]], seen: dict[str, Mark] | None = None
) -> list[AnyEndorsements | EndorsementError]:
    """Return each of `found` with its parts renewed from the others, or why it does not count.

    Args:
        found: Endorsements and their roots.
        seen: The newest that was ever seen, by root and what it is for; brought up to date. Older parts are refused.
    """
    seen = {} if seen is None else seen
    judged: list[Proven | EndorsementError] = []
    for anchor, endorsements in found:
        try:
            judged.append(proven(anchor, endorsements))
        except EndorsementError as exc:
            judged.append(exc)
    good = [one for one in judged if isinstance(one, Proven)]
    for one in good:
        for key, mark in one.marks.items():
            seen[key] = max(mark, seen.get(key, mark))
    return [_renewed(one, good, seen) if isinstance(one, Proven) else one for one in judged]


def _renewed(one: Proven, good: Sequence[Proven], seen: Mapping[str, Mark]) -> AnyEndorsements | EndorsementError:
    changes: dict[str, object] = {}
    for key, mark in one.marks.items():
        if mark == seen[key]:
            continue
        newer = next((other for other in good if other.marks.get(key) == seen[key]), None)
        if newer is None:
            return EndorsementError(
                f"endorsements: {key.partition(' ')[2]}: expected {_shown(seen[key])}, seen before, or newer, "
                f"got {_shown(mark)}",
                hint="fetch current ones (`strongroom attest endorsements fetch`; --update early for a newer edition)",
            )
        changes |= newer.fields[key]
    return replace(one.endorsements, **changes) if changes else one.endorsements  # type: ignore[arg-type]


def _shown(mark: Mark) -> str:
    edition, issued = mark
    return (f"edition {edition} of " if edition else "that of ") + f"{datetime.fromtimestamp(issued, UTC):%Y-%m-%d}"


@lru_cache(maxsize=256)
def proven(anchor: TrustAnchor, endorsements: AnyEndorsements) -> Proven:
    """Return `endorsements` as proven to be signed under `anchor`; whether they hold now is asked elsewhere.

    Raises:
        EndorsementError: A part is not readable, or not signed under `anchor`.
    """
    issued = {name: start.timestamp() for name, start, _ in endorsements.parts()}
    snp = isinstance(endorsements, SNPEndorsements)
    try:
        given = _snp(anchor, endorsements) if snp else _intel(anchor, endorsements)  # type: ignore[arg-type]
    except (*UNREADABLE, InputError) as exc:
        raise EndorsementError("endorsements: a part is not readable, or not signed under its root") from exc
    marks, fields = {}, {}
    for name, (about, edition) in given.items():
        key = f"{anchor.fingerprint} {name}{about}"
        marks[key] = (edition, issued[name])
        parts = (name,) if "crl" in name else (name, f"{name}_signature", f"{name}_issuer_chain")
        fields[key] = {part: getattr(endorsements, part) for part in parts}
    return Proven(endorsements, marks, fields)


def _snp(anchor: TrustAnchor, endorsements: SNPEndorsements) -> dict[str, tuple[str, int]]:
    ark, ask = (x509.load_der_x509_certificate(der) for der in (endorsements.ark, endorsements.ask))
    _check_root(endorsements.ark, anchor)
    ask.verify_directly_issued_by(ark)
    _check_list("crl", endorsements.crl, ark)
    return {"crl": ("", 0)}


def _intel(anchor: TrustAnchor, endorsements: Endorsements) -> dict[str, tuple[str, int]]:
    issuer, root = x509.load_pem_x509_certificates(endorsements.pck_crl_issuer_chain.encode())
    _check_root(root.public_bytes(Encoding.DER), anchor)
    issuer.verify_directly_issued_by(root)
    _check_list("root_ca_crl", endorsements.root_ca_crl, root)
    _check_list("pck_crl", endorsements.pck_crl, issuer)
    by = hashlib.sha256(issuer.public_bytes(Encoding.DER)).hexdigest()[:16]
    found = {"root_ca_crl": ("", 0), "pck_crl": (f" {by}", 0)}
    for name, signer in tcb_signers(endorsements, anchor).items():
        text, signature = getattr(endorsements, name), getattr(endorsements, f"{name}_signature")
        key, half = signer.public_key(), len(signature) // 2
        if not isinstance(key, ec.EllipticCurvePublicKey) or half != 32:
            raise EndorsementError(f"{name}_signature: expected ECDSA P-256, got another")
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        try:
            key.verify(encode_dss_signature(r, s), text.encode(), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as exc:
            raise EndorsementError(f"{name}_signature: expected one by SGX TCB Signing, got another's") from exc
        document = parse_json(text, name)
        assert isinstance(document, dict)  # its dates were read
        edition = document.get("tcbEvaluationDataNumber")
        about = f" {document.get('id')} {document.get('fmspc') or ''}".lower().rstrip()
        found[name] = (about, edition if isinstance(edition, int) else 0)
    return found


def _check_root(der: bytes, anchor: TrustAnchor) -> None:
    if der != anchor.certificate_der:
        got = hashlib.sha256(der).hexdigest()[:16]
        raise EndorsementError(f"root: expected {anchor.fingerprint[:16]}, got {got}")


def _check_list(name: str, der: bytes, by: x509.Certificate) -> None:
    crl = x509.load_der_x509_crl(der)
    if crl.issuer != by.subject or not crl.is_signature_valid(by.public_key()):  # type: ignore[arg-type]
        raise EndorsementError(f"{name}: expected a list signed by {by.subject.rfc4514_string():.80}, got another's")
