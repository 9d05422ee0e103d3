"""The audit log in the database: one record for each decision, in the transaction of that decision.

What its records, tags and heads are, and what finds what, says `audit_chain`, which owners have too.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import canonical_json
from strongroom.crypto import jose
from strongroom.kms.audit_chain import (
    HASH_BYTES,
    HEAD_TYPE,
    START,
    AuditHead,
    extend_chain,
    follow_links,
    hash_record,
    tag_owner,
)
from strongroom.kms.stores.mirror import damaged
from strongroom.kms.stores.sql import audit, audit_head

__all__ = ["AuditLog"]

_MAX_LINKS = 400
_MAX_PAGE_CHARS = 8 << 20


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
        record_hash = hash_record(record)
        chain = extend_chain(chain, tag_owner(owner, seq), record_hash)
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
        found = tx.execute(rows.order_by(audit.c.seq).limit(_MAX_LINKS))
        return b"".join(bytes.fromhex(tag_owner(row.owner, row.seq)) + _raw_hash(row.record_hash) for row in found)

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
                    "owner_tag": tag_owner(row.owner, row.seq),
                    "record_hash": str(row.record_hash),
                    "chain": str(row.chain),
                    "head": str(row.head),
                }
            )
        rows.close()
        return found


def _raw_hash(text: object) -> bytes:
    # The disk may have anything for it: that follows nothing.
    try:
        return bytes.fromhex(str(text))[:HASH_BYTES].ljust(HASH_BYTES)
    except ValueError:
        return bytes(HASH_BYTES)
