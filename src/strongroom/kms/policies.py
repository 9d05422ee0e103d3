"""Release policies per key and use, and the requests of refused jobs that wait for the owner.

A key's policy document is `{"read": policy or null, "write": policy or null}` in `attest.appraisal`'s JSON form.
No policy denies. `"outputs": {"max_bytes": number or null, "approval": bool}` says what jobs with the key may leave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from strongroom._encoding import canonical_json, parse_json
from strongroom.attest.appraisal import check_pins_code, policy_from_json
from strongroom.attest.binding import MAX_JOB_BYTES
from strongroom.attest.findings import Policy
from strongroom.errors import InputError
from strongroom.kms.owners import check_room
from strongroom.kms.stores.sql import policies, requests

__all__ = ["USES", "OutputRule", "PolicyStore", "difference"]

USES = ("read", "write")
_MAX_PENDING = 200
"""Of one owner; they lie in memory, each with its job document."""
_MAX_CLOSED = 200
_MAX_APPROVED_BYTES = 2 * MAX_JOB_BYTES  # the job document, and claims


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRule:
    """What a job that uses a key may leave.

    Attributes:
        max_bytes: Of each volume that it writes, and of what it prints: names and contents; None for any number.
        approval: What it writes waits for the owner, who has to own every volume that it writes.
    """

    max_bytes: int | None = None
    approval: bool = False

    @classmethod
    def from_json(cls, value: object) -> OutputRule:
        """Return the rule in a policy document; None is the rule that allows everything.

        Raises:
            InputError: Another form.
        """
        if value is None:
            return cls()
        if not isinstance(value, Mapping) or set(value) != {"max_bytes", "approval"}:
            raise InputError("policy: outputs has max_bytes and approval")
        limit, approval = value["max_bytes"], value["approval"]
        if type(approval) is not bool or not (limit is None or (type(limit) is int and 0 <= limit < 1 << 53)):
            raise InputError("policy: outputs has max_bytes, a number or null, and approval, true or false")
        return cls(max_bytes=limit, approval=approval)

    def to_json(self) -> dict[str, object]:
        """Return the rule as JSON-ready data."""
        return {"max_bytes": self.max_bytes, "approval": self.approval}


class PolicyStore:
    """Policies and pending requests in a store."""

    def get(self, tx: sa.Connection, owner: str, key: str) -> dict[str, object]:
        """Return the key's policy document and revision; revision 0 is no policy."""
        row = tx.execute(sa.select(policies).where(policies.c.owner == owner, policies.c.key == key)).first()
        if row is None:
            return {"key": key, "revision": 0, "policy": dict.fromkeys(USES)}
        return {"key": key, "revision": row.revision, "policy": json.loads(row.document), "updated": row.updated}

    @staticmethod
    def policy(found: Mapping[str, object], use: str) -> Policy | None:
        """Return the policy for one use in what `get` found, or None if there is none."""
        document = found["policy"]
        assert isinstance(document, dict)
        return None if document.get(use) is None else _checked(document[use])

    def outputs(self, tx: sa.Connection, owner: str, key: str) -> OutputRule:
        """Return what jobs that use the key may leave."""
        document = self.get(tx, owner, key)["policy"]
        assert isinstance(document, dict)
        return OutputRule.from_json(document.get("outputs"))

    def put(self, tx: sa.Connection, owner: str, key: str, document: object, *, now: datetime) -> int:
        """Store a policy document; return its revision.

        Raises:
            InputError: An unknown use, not a policy, or one that names no code.
        """
        if not isinstance(document, dict) or set(document) - {*USES, "outputs"}:
            raise InputError(f"a release policy has the uses {', '.join(USES)}, and outputs")
        checked = {use: document.get(use) for use in USES}
        for use in USES:
            if checked[use] is not None:
                _checked(checked[use])
        rule = OutputRule.from_json(document.get("outputs"))
        if rule != OutputRule():
            checked["outputs"] = rule.to_json()
        revision = self.get(tx, owner, key)["revision"]
        assert isinstance(revision, int)
        tx.execute(sa.delete(policies).where(policies.c.owner == owner, policies.c.key == key))
        tx.execute(
            sa.insert(policies).values(
                owner=owner,
                key=key,
                revision=revision + 1,
                document=canonical_json(checked).decode(),
                updated=now.isoformat(),
            )
        )
        check_room(tx, owner)
        return revision + 1

    def record_refusal(
        self,
        tx: sa.Connection,
        owner: str,
        key: str,
        *,
        job: str,
        measurement: str,
        document: object,
        now: datetime,
        again: bool = True,
    ) -> int:
        """Keep a refused job for the owner to look at; return the request's number (the same for the same job).

        One that is known is counted and pending again, unless `again` is false: then it stays as it is.
        """
        mine = sa.and_(
            requests.c.owner == owner,
            requests.c.key == key,
            requests.c.job == job,
            requests.c.measurement == measurement,
        )
        row = tx.execute(sa.select(requests).where(mine)).first()
        text = canonical_json(document).decode()
        if row is not None and not again:
            return int(row.id)
        if row is not None:
            tx.execute(
                sa.update(requests)
                .where(mine)
                .values(seen=row.seen + 1, last_seen=now.isoformat(), document=text, state="pending")
            )
            return int(row.id)
        # What the owner approved stays: later refusals say what differs from it.
        waiting = sa.and_(requests.c.owner == owner, requests.c.state == "pending")
        oldest = sa.select(requests.c.id).where(waiting).order_by(requests.c.id.desc()).offset(_MAX_PENDING - 1)
        tx.execute(sa.delete(requests).where(waiting, requests.c.id.in_(oldest)))
        done = tx.execute(
            sa.insert(requests).values(
                owner=owner,
                key=key,
                job=job,
                measurement=measurement,
                document=text,
                state="pending",
                first_seen=now.isoformat(),
                last_seen=now.isoformat(),
                seen=1,
            )
        )
        key_of_row = done.inserted_primary_key
        assert key_of_row is not None
        return int(key_of_row[0])

    def requests(self, tx: sa.Connection, owner: str) -> list[dict[str, object]]:
        """Return the owner's requests, newest first."""
        rows = tx.execute(sa.select(requests).where(requests.c.owner == owner).order_by(requests.c.last_seen.desc()))
        return [_request(row) for row in rows]

    def request(self, tx: sa.Connection, owner: str, number: int) -> dict[str, object]:
        """Return one request of the owner.

        Raises:
            InputError: None of that number.
        """
        row = tx.execute(sa.select(requests).where(requests.c.owner == owner, requests.c.id == number)).first()
        if row is None:
            raise InputError(f"there is no request {number}", hint="`strongroom policy requests` lists them")
        return _request(row)

    def close_request(self, tx: sa.Connection, owner: str, number: int, state: str) -> None:
        """Mark a request `approved` or `dismissed`."""
        self.request(tx, owner, number)
        tx.execute(sa.update(requests).where(requests.c.id == number).values(state=state))
        closed = sa.and_(requests.c.owner == owner, requests.c.state != "pending", requests.c.id != number)
        newest = (requests.c.state == "approved").desc(), requests.c.last_seen.desc()
        rest = sa.select(requests.c.id).where(closed).order_by(*newest).offset(_MAX_CLOSED - 1)
        tx.execute(sa.delete(requests).where(closed, requests.c.id.in_(rest)))

    def last_approved(self, tx: sa.Connection, owner: str, key: str) -> object:
        """Return the document of the job approved last for the key, or None."""
        row = tx.execute(
            sa.select(requests.c.document)
            .where(requests.c.owner == owner, requests.c.key == key, requests.c.state == "approved")
            .order_by(requests.c.last_seen.desc())
            .limit(1)
        ).first()
        return None if row is None else parse_json(row.document, "request")

    def record_approval(
        self, tx: sa.Connection, owner: str, key: str, *, job: str, measurement: str, document: object, now: datetime
    ) -> None:
        """Remember a job that the owner allowed, so that a later refusal can say what differs from it.

        Raises:
            InputError: The document is longer than a job's can be.
        """
        if (size := len(canonical_json(document))) > _MAX_APPROVED_BYTES:
            raise InputError(f"approved: the document has {size} bytes, at most {_MAX_APPROVED_BYTES} are allowed")
        number = self.record_refusal(tx, owner, key, job=job, measurement=measurement, document=document, now=now)
        self.close_request(tx, owner, number, "approved")


def _checked(value: object) -> Policy:
    policy = policy_from_json(value)
    check_pins_code(policy)
    return policy


def _request(row: sa.Row[tuple[object, ...]]) -> dict[str, object]:
    return {
        "id": row.id,
        "key": row.key,
        "job": row.job,
        "measurement": row.measurement,
        "state": row.state,
        "first_seen": row.first_seen,
        "last_seen": row.last_seen,
        "seen": row.seen,
        **json.loads(row.document),
    }


def difference(old: object, new: object, where: str = "") -> list[str]:
    """Return one line per place where two JSON documents differ: `where: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(set(old) | set(new)):
            lines += difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in difference(a, b, f"{where}[{i}]")
        ]
    if old == new:
        return []
    return [f"{where}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = "(none)" if value is None else canonical_json(value).decode()
    return text if len(text) <= 160 else text[:157] + "..."
