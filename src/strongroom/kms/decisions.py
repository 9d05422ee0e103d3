"""What the gate writes down: each decision, allowed or denied, and refused jobs for their owners to look at.

What strangers can have written is bounded: refusals that repeat within the hour, and how many an hour one owner gets.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime

import sqlalchemy as sa

from strongroom.errors import AppraisalError, StrongroomError
from strongroom.kms.audit import AuditLog
from strongroom.kms.job_document import KeyWanted, uses
from strongroom.kms.keys import KeyStore
from strongroom.kms.policies import PolicyStore, difference
from strongroom.kms.receivers import Guest, OwnerReceiver
from strongroom.kms.repeats import HourlyLimit, Repeats
from strongroom.kms.stores.sql import SQLStore, owners

__all__ = ["Decision", "Decisions"]

_log = logging.getLogger(__name__)

MAX_REFUSALS_PER_HOUR = 500
"""Of guests, recorded in full for one owner. Each could come as another job."""
_MAX_LINES = 100
_NOISE = ("claims.report_data", "claims.config_id", "claims.tcb_age_days", "claims.limits")


class Decision:
    """One decision that is being made: whatever ends it early is recorded as a refusal about `wanted`."""

    def __init__(self, receiver: Guest | OwnerReceiver, action: str, wanted: KeyWanted, now: datetime) -> None:
        self.receiver = receiver
        self.action = action
        self.wanted = wanted
        self.now = now


class Decisions:
    """Records decisions in the audit log, and refused jobs as requests."""

    def __init__(self, store: SQLStore, keys: KeyStore, policies: PolicyStore, audit: AuditLog) -> None:
        self._store = store
        self._keys = keys
        self._policies = policies
        self._audit = audit
        self._repeats = Repeats()
        self._limits: dict[str, HourlyLimit] = {}  # by owner; changed inside transactions, so one at a time

    @contextlib.contextmanager
    def made(
        self, receiver: Guest | OwnerReceiver, action: str, now: datetime, wanted: KeyWanted | None = None
    ) -> Iterator[Decision]:
        """Give the decision to whoever makes it; record its refusal if that raises."""
        decision = Decision(receiver, action, wanted or KeyWanted(owner="", name=""), now)
        try:
            yield decision
        except Exception as refusal:  # also the unforeseen: nothing is refused without a record
            self._refuse(decision, refusal)
            raise

    def allow(
        self,
        tx: sa.Connection,
        decision: Decision,
        details: Mapping[str, object],
        *,
        action: str = "",
        wanted: KeyWanted | None = None,
    ) -> None:
        """Record that it was allowed, about its key or `wanted`."""
        self._append(tx, decision, wanted or decision.wanted, action or decision.action, details, allowed=True)

    def _append(
        self,
        tx: sa.Connection,
        decision: Decision,
        wanted: KeyWanted,
        action: str,
        details: Mapping[str, object],
        *,
        allowed: bool,
    ) -> None:
        receiver, about = decision.receiver, dict(details)
        if isinstance(receiver, Guest):
            about |= {"job": receiver.job, "claims": receiver.claims.to_json()}
            about |= {"by_token": True} if receiver.by_token else {}
        self._audit.append(
            tx,
            now=decision.now,
            owner=wanted.owner,
            actor=receiver.actor,
            action=action,
            subject=f"key {wanted.name:.64}" if wanted.name else "no key",
            allowed=allowed,
            details=about,
        )

    def _refuse(self, decision: Decision, refusal: Exception) -> None:
        receiver, wanted, now = decision.receiver, decision.wanted, decision.now
        reasons = refusal.reasons if isinstance(refusal, AppraisalError) else [str(refusal)]
        if not isinstance(refusal, StrongroomError):  # its text may hold anything
            reasons = [f"unexpected error: {type(refusal).__name__}"]
        # What a refused guest wrote into its job document must not fill the owner's log.
        reasons = [_short(reason) for reason in reasons[:_MAX_LINES]]
        details: dict[str, object] = {"reasons": reasons}
        kind = None
        if isinstance(receiver, Guest):
            measurement = receiver.claims.measurement.hex()
            asked = (wanted.owner, wanted.name[:64], receiver.job, measurement, receiver.by_token)
            kind = (*asked, decision.action, type(refusal).__name__)
        with self._store.transaction() as tx:
            if tx.execute(sa.select(owners.c.id).where(owners.c.id == wanted.owner)).first() is None:
                _log.warning("refused about an unknown owner actor=%s reason=%.200r", receiver.actor, reasons[:1])
                return  # nobody could read the record
            known = wanted.name in self._keys.names(tx, wanted.owner)
            if known and isinstance(receiver, Guest) and isinstance(refusal, AppraisalError):
                changes = self._request(tx, receiver, wanted, reasons, now)
                refusal.details.update(changes)
                details.update(changes)
            if kind is not None:
                repeated = self._repeats.missed(kind, now)
                if repeated is None:
                    return  # one of this kind was recorded within the hour
                left_out = self._limits.setdefault(wanted.owner, HourlyLimit(MAX_REFUSALS_PER_HOUR)).take(now)
                if left_out is None:
                    _log.warning("refused and not recorded actor=%s reason=%.200r", receiver.actor, reasons[:1])
                    return
                details |= {"repeated": repeated} if repeated else {}
                details |= {"not_recorded": left_out} if left_out else {}
            self._append(tx, decision, wanted, decision.action, details, allowed=False)
        if kind is not None:
            self._repeats.recorded(kind, now)

    def _request(
        self, tx: sa.Connection, guest: Guest, wanted: KeyWanted, reasons: list[str], now: datetime
    ) -> dict[str, object]:
        last = self._policies.last_approved(tx, wanted.owner, wanted.name)
        changes: list[str] = []
        claims = guest.claims.to_json()
        if isinstance(last, dict):
            known = last.get("claims") or {}
            changes = difference(last.get("job_document"), dict(guest.document))
            changes += difference(known, {k: v for k, v in claims.items() if k in known}, "claims")
            changes = [_short(line) for line in changes if not line.startswith(_NOISE)][:_MAX_LINES]
        document = {
            "job_document": dict(guest.document),
            "claims": claims,
            "uses": uses(guest.document, wanted),
            "reasons": reasons,
            "difference": changes,
        }
        measurement = guest.claims.measurement.hex()
        number = self._policies.record_refusal(
            tx,
            wanted.owner,
            wanted.name,
            job=guest.job,
            measurement=measurement,
            document=document,
            now=now,
            again=not guest.by_token,
        )
        return {"request": number, "difference": changes}


def _short(line: str) -> str:
    return line if len(line) <= 2000 else line[:1997] + "..."
