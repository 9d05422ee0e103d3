"""The audit log as it is checked: append-only, hash-chained, every head signed.

A record is canonical JSON. `record_hash` covers it, `owner_tag` is a hash of its owner and number, `chain` covers the
previous chain value, `owner_tag` and `record_hash`, `head` is a signed statement of (seq, chain). An owner sees its own
records in full and of the others only the hashes, so it can check the whole chain without reading them.

What finds what: an altered record, its hash; a dropped or reordered one, the chain; a recomputed chain, the signature;
a cut tail or an older database, the newest head that the client remembers; a record that is withheld from its owner,
its tag. The price of the tag: an owner who knows another's fingerprint can count the other's records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import labelled_hash, parse_json
from strongroom.crypto import jose
from strongroom.errors import InputError, IntegrityError, VerificationError

__all__ = [
    "HASH_BYTES",
    "HEAD_TYPE",
    "LINKS",
    "SEEN",
    "START",
    "AuditHead",
    "extend_chain",
    "follow_links",
    "hash_record",
    "read_head",
    "tag_owner",
    "verify_records",
]

HEAD_TYPE = "strongroom-audit-head+jwt"
START = "0" * 64
"""The chain value before the first record."""
SEEN = "strongroom-audit-seen"
"""Request header of owners: number and chain value of the newest record that they saw, with a point between."""
LINKS = "strongroom-audit-links"
"""Response header: owner tag and hash of each record since, 32 bytes each, base64url; of so many that it is small."""
HASH_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The newest state of a log: how many records, and the chain value after the last."""

    seq: int
    chain: str


def hash_record(record: bytes) -> str:
    """Return the hash of a record, in hex."""
    return labelled_hash("strongroom-audit-record-v1", [record]).hex()


def tag_owner(owner: object, seq: int) -> str:
    """Return the tag of a record's owner, in hex; a disk may have anything for an owner."""
    return labelled_hash("strongroom-audit-owner-v1", [str(owner).encode(), str(seq).encode()]).hex()


def extend_chain(previous: str, owner_tag: str, record_hash: str) -> str:
    """Return the chain value, in hex, after a record of this tag and hash."""
    fields = [bytes.fromhex(previous), bytes.fromhex(owner_tag), bytes.fromhex(record_hash)]
    return labelled_hash("strongroom-audit-chain-v2", fields).hex()


def read_head(token: str, keys: Sequence[ec.EllipticCurvePublicKey]) -> AuditHead:
    """Return the head in a signed statement.

    Raises:
        VerificationError: The service's key did not sign it.
    """
    payload = jose.verify_jws(token, keys, typ=HEAD_TYPE)
    seq, chain = payload.get("seq"), payload.get("chain")
    if not isinstance(seq, int) or not isinstance(chain, str):
        raise VerificationError("the audit head has no seq and chain")
    return AuditHead(seq=seq, chain=chain)


def follow_links(head: AuditHead, links: bytes) -> AuditHead:
    """Return the head after the records whose owner tags and hashes are `links`; it counts only once it is signed."""
    seq, chain, size = head.seq, head.chain, 2 * HASH_BYTES
    for at in range(0, len(links) - size + 1, size):
        seq, chain = (
            seq + 1,
            extend_chain(chain, links[at:][:HASH_BYTES].hex(), links[at + HASH_BYTES :][:HASH_BYTES].hex()),
        )
    return AuditHead(seq=seq, chain=chain)


def verify_records(
    records: Iterable[dict[str, object]],
    keys: Sequence[ec.EllipticCurvePublicKey],
    *,
    owner: str,
    newest: AuditHead | None,
) -> AuditHead:
    """Return the head after `records`, which must be the whole log from its first record.

    Args:
        records: As `AuditLog.export` gives them.
        keys: The service's signing keys.
        owner: Whose log it is: every record of this owner has to be there in full.
        newest: The newest head the caller ever saw, or None.

    Raises:
        IntegrityError: Names the first record that is altered, missing, withheld, out of order or not signed; or says
            that the log is shorter than, or differs from, what the caller saw.
    """
    seq, chain = 0, START
    for entry in records:
        seq += 1
        if set(entry) != {"seq", "record", "owner_tag", "record_hash", "chain", "head"}:
            raise IntegrityError(f"record {seq} was altered: it has other members than a record")
        chain = _check_record(entry, seq, chain, keys, owner)
        if newest is not None and seq == newest.seq and chain != newest.chain:
            raise IntegrityError(f"record {seq} is not the one seen before: the log was rewritten")
    if newest is not None and seq < newest.seq:
        raise IntegrityError(
            f"the log ends at record {seq}, but record {newest.seq} was seen before: its tail was cut "
            "or an older database was restored"
        )
    return AuditHead(seq=seq, chain=chain)


def _check_record(
    entry: dict[str, object], seq: int, chain: str, keys: Sequence[ec.EllipticCurvePublicKey], owner: str
) -> str:
    if entry.get("seq") != seq:
        raise IntegrityError(f"record {seq} is missing: the next one found is {entry.get('seq')}")
    record_hash, record, owner_tag = str(entry.get("record_hash")), entry.get("record"), str(entry.get("owner_tag"))
    try:
        if record is None:
            if owner_tag == tag_owner(owner, seq):
                raise IntegrityError(f"record {seq} is withheld: it is this owner's, and the log has only its hash")
        else:
            if hash_record(str(record).encode()) != record_hash:
                raise IntegrityError(f"record {seq} was altered: its hash is not the one in the log")
            parsed = parse_json(str(record), f"record {seq}", max_bytes=len(str(record)))
            if not isinstance(parsed, dict) or parsed.get("seq") != seq:
                raise IntegrityError(f"record {seq} was moved: it says that it is another")
            if tag_owner(str(parsed.get("owner")), seq) != owner_tag:
                raise IntegrityError(f"record {seq} was altered: it is not of the owner that the log says")
        if any(bytes.fromhex(text).hex() != text for text in (record_hash, owner_tag)):
            raise IntegrityError(f"record {seq} was altered: its hashes are not in lower-case hex")
        chain = extend_chain(chain, owner_tag, record_hash)
    except (ValueError, InputError) as exc:
        raise IntegrityError(f"record {seq} was altered: its hash is unreadable") from exc
    if entry.get("chain") != chain:
        raise IntegrityError(f"record {seq} does not follow its predecessor: the chain was altered")
    try:
        head = read_head(str(entry.get("head")), keys)
    except VerificationError as exc:
        raise IntegrityError(f"record {seq} is not signed by the trust service: the chain was recomputed") from exc
    if head != AuditHead(seq=seq, chain=chain):
        raise IntegrityError(f"record {seq} carries the signature of another")
    return chain
