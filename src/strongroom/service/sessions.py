"""Guests' sessions, in memory: begun (a nonce waits for evidence) or attested, until the lease or the process ends.

What strangers can put in here is bounded, and what one guest holds pushes out itself before an honest job.
"""

from __future__ import annotations

import heapq
import itertools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from strongroom.errors import UnavailableError
from strongroom.kms.receivers import Guest

__all__ = ["Sessions", "Waiting"]

NONCE_LIFETIME_S = 60.0
MAX_WAITING = 32_768
"""More than the rate limit lets begin within a nonce's life, so that strangers cannot fill it."""
MAX_SESSIONS = 65_536
MAX_HELD_CHARS = 16 << 20
"""Of init data, over all sessions: what is parsed from it takes some twenty times as much memory."""
MAX_BY_TOKEN = 500
"""Requests of one session, which lives for an hour at most, that show its token alone: each may be an audit record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A session that has begun: its nonce, which TEE the guest claims, and until when on CLOCK_BOOTTIME."""

    nonce: str
    tee: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attested:
    guest: Guest
    changes: int
    held_chars: int
    token: bytes


@dataclass(slots=True)
class _Shown:
    session: str
    times: int = 0


class Sessions:
    """The sessions of one process; every method may be called from any thread.

    Args:
        uptime: Seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, uptime: Callable[[], float]) -> None:
        self._uptime = uptime
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._attested: OrderedDict[str, _Attested] = OrderedDict()
        self._tokens: dict[bytes, _Shown] = {}  # by digest, of those
        self._held = 0  # characters, by those
        self._order = itertools.count()
        self._largest: list[tuple[int, int, str]] = []  # a heap of those, and of some that have gone

    def begin(self, tee: str) -> tuple[str, str]:
        """Return a new session's name and nonce.

        Raises:
            UnavailableError: Too many wait.
        """
        session, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        with self._lock:
            self._forget_old()
            if len(self._waiting) >= MAX_WAITING:
                raise UnavailableError("too many guests wait to attest")
            self._waiting[session] = Waiting(nonce=nonce, tee=tee, until=self._uptime() + NONCE_LIFETIME_S)
        return session, nonce

    def by_token(self, token: str) -> str:
        """Return the session that was given `token` when it attested, "" if there is none.

        Raises:
            UnavailableError: It was shown too often.
        """
        with self._lock:
            shown = self._tokens.get(_digest(token))
            if shown is None:
                return ""
            if shown.times >= MAX_BY_TOKEN:
                raise UnavailableError(f"this token was shown {MAX_BY_TOKEN} times", hint="attest again")
            shown.times += 1
            return shown.session

    def knows(self, session: str) -> bool:
        """Return whether `session` has begun or attested."""
        with self._lock:
            return session in self._attested or session in self._waiting

    def waits(self, session: str) -> bool:
        """Return whether `session` has a challenge to answer."""
        with self._lock:
            return session in self._waiting

    def take(self, session: str) -> Waiting | None:
        """Return what `session` has to answer, once; None if there is nothing, or it is too old."""
        with self._lock:
            waiting = self._waiting.pop(session, None)
        return None if waiting is None or waiting.until < self._uptime() else waiting

    def add(self, session: str, guest: Guest, *, changes: int, held_chars: int, token: str) -> None:
        """Keep an attested guest.

        Args:
            session: Its name.
            guest: Who attested.
            changes: How often trust in its root had changed when its evidence was judged.
            held_chars: Of its init data.
            token: What it is told that it attested by; it may be shown in place of the name.
        """
        with self._lock:
            one = _Attested(guest=guest, changes=changes, held_chars=held_chars, token=_digest(token))
            self._attested[session], self._tokens[one.token] = one, _Shown(session)
            self._held += held_chars
            heapq.heappush(self._largest, (-held_chars, next(self._order), session))
            while len(self._attested) > MAX_SESSIONS:
                self._drop(next(iter(self._attested)))
            # The largest goes first: a flood of large documents pushes out itself, and no honest job.
            while self._held > MAX_HELD_CHARS:
                self._drop(heapq.heappop(self._largest)[2])
            if len(self._largest) > 2 * len(self._attested):
                self._largest = [entry for entry in self._largest if entry[2] in self._attested]
                heapq.heapify(self._largest)

    def guest(self, session: str, changes: Callable[[str], int]) -> Guest | None:
        """Return the guest of a session, None if it has not attested.

        Args:
            session: Its name.
            changes: How often trust in a root, by its fingerprint, has changed by now. If more often than when the
                guest attested, what it has shown was judged by a trust that was taken back: its session ends.
        """
        with self._lock:
            found = self._attested.get(session)
        if found is None:
            return None
        if changes(found.guest.claims.root_fingerprint) == found.changes:
            return found.guest
        with self._lock:
            self._drop(session)
        return None

    def _drop(self, session: str) -> None:
        if one := self._attested.pop(session, None):
            self._held -= one.held_chars
            del self._tokens[one.token]

    def _forget_old(self) -> None:
        uptime = self._uptime()
        while self._waiting and next(iter(self._waiting.values())).until < uptime:
            self._waiting.popitem(last=False)
        while self._attested and next(iter(self._attested.values())).guest.expires_at < uptime:
            self._drop(next(iter(self._attested)))


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
