"""The audit log: append-only, hash-chained, every head signed.

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
from datetime import datetime

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import canonical_json, labelled_hash, parse_json
from strongroom.crypto import jose
from strongroom.errors import InputError, IntegrityError, VerificationError
from strongroom.kms.stores.mirror import damaged
from strongroom.kms.stores.sql import audit, audit_head

__all__ = ["LINKS", "SEEN", "AuditHead", "AuditLog", "follow_links", "read_head", "verify_records"]

HEAD_TYPE = "strongroom-audit-head+jwt"
START = "0" * 64
SEEN = "strongroom-audit-seen"
"""Request header of owners: number and chain value of the newest record that they saw, with a point between."""
LINKS = "strongroom-audit-links"
"""Response header: owner tag and hash of each record since, 32 bytes each, base64url; no more than `MAX_LINKS`."""
MAX_LINKS = 400
_HASH_BYTES = 32
_MAX_PAGE_CHARS = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The newest state of a log: how many records, and the chain value after the last."""

    seq: int
    chain: str


class AuditLog:
    """Appends records inside the caller's transaction, so that a decision and its record are one."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def append(
        self,
        tx: sa.Connection,
        *,
        now: datetime,
        owner: str,
        actor: str,
        action: str,
        subject: str,
        allowed: bool,
        details: dict[str, object] | None = None,
    ) -> str:
        """Append one record; return the new signed head."""
        last = tx.execute(sa.select(audit_head)).first()  # not the log's last row, which its disk's host may choose
        seq, chain = (last.seq + 1, last.chain) if last else (1, START)
        record = canonical_json(
            {
                "seq": seq,
                "time": now.isoformat(timespec="milliseconds"),
                "owner": owner,
                "actor": actor,
                "action": action,
                "subject": subject,
                "allowed": allowed,
                "details": details or {},
            }
        )
        record_hash = _record_hash(record)
        chain = _chain(chain, _owner_tag(owner, seq), record_hash)
        head = jose.sign_jws({"seq": seq, "chain": chain}, self._key, typ=HEAD_TYPE)
        tx.execute(
            sa.insert(audit).values(
                seq=seq, owner=owner, record=record.decode(), record_hash=record_hash, chain=chain, head=head
            )
        )
        newest = {"seq": seq, "chain": chain, "head": head}
        tx.execute(sa.update(audit_head).values(**newest) if last else sa.insert(audit_head).values(id=1, **newest))
        return head

    @staticmethod
    def head(tx: sa.Connection) -> str | None:
        """Return the newest signed head."""
        found = tx.execute(sa.select(audit_head.c.head)).scalar()
        return None if found is None else str(found)

    @staticmethod
    def check_end(tx: sa.Connection) -> None:
        """Return only if the log on the disk ends with the record that the state names as the newest.

        Raises:
            IntegrityError: Its tail was cut or rewritten, or it is not the log of this state.
        """
        last = tx.execute(sa.select(audit.c.seq, audit.c.chain).order_by(audit.c.seq.desc()).limit(1)).first()
        newest = tx.execute(sa.select(audit_head.c.seq, audit_head.c.chain)).first()
        if last != newest:
            raise damaged(
                f"the audit log does not end with record {newest.seq if newest else 0}, which the state names: "
                "its tail was cut or rewritten, or the state is an older one"
            )

    @staticmethod
    def check_extends(tx: sa.Connection, seen: AuditHead) -> None:
        """Return only if the log of this state goes on from what somebody saw of it.

        Raises:
            IntegrityError: The state is older, or went another way since.
        """
        last, found = tx.execute(sa.select(audit_head)).first(), seen
        newest = AuditHead(seq=last.seq, chain=last.chain) if last else AuditHead(seq=0, chain=START)
        while found.seq < newest.seq and (links := AuditLog.links(tx, after=found.seq)):
            found = follow_links(found, links)
        if found != newest:
            raise damaged(
                f"its log, of {newest.seq} records, does not go on from record {seen.seq}, which was seen: "
                "an older database was restored"
            )

    @staticmethod
    def links(tx: sa.Connection, *, after: int) -> bytes:
        """Return what leads from the head after record `after` towards the newest, for `follow_links`."""
        rows = sa.select(audit.c.seq, audit.c.owner, audit.c.record_hash).where(audit.c.seq > after)
        found = tx.execute(rows.order_by(audit.c.seq).limit(MAX_LINKS))
        return b"".join(bytes.fromhex(_owner_tag(row.owner, row.seq)) + _raw_hash(row.record_hash) for row in found)

    @staticmethod
    def export(tx: sa.Connection, owner: str, *, after: int, limit: int) -> list[dict[str, object]]:
        """Return up to `limit` records after `after`, those of other owners as hashes only; fewer if they are long."""
        rows = tx.execute(sa.select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit))
        found: list[dict[str, object]] = []
        size = 0
        for row in rows:
            record = str(row.record) if row.owner == owner else None
            size += len(record or "")
            if found and size > _MAX_PAGE_CHARS:
                break
            found.append(
                {
                    "seq": row.seq,
                    "record": record,
                    "owner_tag": _owner_tag(row.owner, row.seq),
                    "record_hash": str(row.record_hash),
                    "chain": str(row.chain),
                    "head": str(row.head),
                }
            )
        rows.close()
        return found


def _record_hash(record: bytes) -> str:
    return labelled_hash("strongroom-audit-record-v1", [record]).hex()


def _raw_hash(text: object) -> bytes:
    # The disk may have anything for it: that follows nothing.
    try:
        return bytes.fromhex(str(text))[:_HASH_BYTES].ljust(_HASH_BYTES)
    except ValueError:
        return bytes(_HASH_BYTES)


def _owner_tag(owner: object, seq: int) -> str:  # the disk may have anything for an owner
    return labelled_hash("strongroom-audit-owner-v1", [str(owner).encode(), str(seq).encode()]).hex()


def _chain(previous: str, owner_tag: str, record_hash: str) -> str:
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
    seq, chain, size = head.seq, head.chain, 2 * _HASH_BYTES
    for at in range(0, len(links) - size + 1, size):
        seq, chain = (
            seq + 1,
            _chain(chain, links[at:][:_HASH_BYTES].hex(), links[at + _HASH_BYTES :][:_HASH_BYTES].hex()),
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
            if owner_tag == _owner_tag(owner, seq):
                raise IntegrityError(f"record {seq} is withheld: it is this owner's, and the log has only its hash")
        else:
            if _record_hash(str(record).encode()) != record_hash:
                raise IntegrityError(f"record {seq} was altered: its hash is not the one in the log")
            parsed = parse_json(str(record), f"record {seq}", max_bytes=len(str(record)))
            if not isinstance(parsed, dict) or parsed.get("seq") != seq:
                raise IntegrityError(f"record {seq} was moved: it says that it is another")
            if _owner_tag(str(parsed.get("owner")), seq) != owner_tag:
                raise IntegrityError(f"record {seq} was altered: it is not of the owner that the log says")
        if any(bytes.fromhex(text).hex() != text for text in (record_hash, owner_tag)):
            raise IntegrityError(f"record {seq} was altered: its hashes are not in lower-case hex")
        chain = _chain(chain, owner_tag, record_hash)
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
