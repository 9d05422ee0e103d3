"""How much strangers may write into the audit log: refusals that repeat, and refusals an hour.

What is left out is counted, and the number is in the next record.

In memory: a restart records again, and forgets nothing that was recorded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from datetime import UTC, datetime, timedelta

__all__ = ["HourlyLimit", "Repeats"]

_HOUR = timedelta(hours=1)
_MAX_KINDS = 4096


class HourlyLimit:
    """Lets `most` events an hour through and counts the others. Not for several threads at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._hour = datetime.min.replace(tzinfo=UTC)
        self._taken = self._missed = 0

    def take(self, now: datetime) -> int | None:
        """Return how many were not let through since the last one that was; None if this one is not."""
        if now - self._hour >= _HOUR:
            self._hour, self._taken = now, 0
        if self._taken >= self._most:
            self._missed += 1
            return None
        missed, self._missed = self._missed, 0
        self._taken += 1
        return missed


class Repeats:
    """Lets one event of each kind through an hour and counts the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: OrderedDict[Hashable, tuple[datetime, int]] = OrderedDict()

    def missed(self, kind: Hashable, now: datetime) -> int | None:
        """Return how many events of `kind` were not recorded since the last that was; None: do not record this one."""
        with self._lock:
            since, missed = self._kinds.get(kind, (now - _HOUR, 0))
            if now - since >= _HOUR:
                return missed
            self._kinds[kind] = (since, missed + 1)
            return None

    def recorded(self, kind: Hashable, now: datetime) -> None:
        """Note that an event of `kind` is in the log: the record is on the disk."""
        with self._lock:
            self._kinds[kind] = (now, 0)
            self._kinds.move_to_end(kind)
            while len(self._kinds) > _MAX_KINDS:
                self._kinds.popitem(last=False)
