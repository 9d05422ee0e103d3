"""Guests' sessions, in memory: begun (a nonce waits for evidence) or attested, until the lease or the process ends.

What strangers can put in here is bounded, and what one guest holds pushes out itself before an honest job.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from strongroom._encoding import b64u
from strongroom.errors import UnavailableError
from strongroom.kms.receivers import Guest

__all__ = ["Sessions", "Waiting"]

NONCE_LIFETIME_S = 60.0
MAX_WAITING = 32_768
"""More than the rate limit lets begin within a nonce's life, so that strangers cannot fill it."""
MAX_SESSIONS = 65_536
MAX_HELD_CHARS = 16 << 20
"""Of init data, over all sessions: what is parsed from it takes some twenty times as much memory."""


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


class Sessions:
    """The sessions of one process; every method may be called from any thread.

    Args:
        uptime: Seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, uptime: Callable[[], float]) -> None:
        self._uptime = uptime
        self._lock = threading.Lock()
        self._naming = secrets.token_bytes(32)
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._attested: OrderedDict[str, _Attested] = OrderedDict()

    def begin(self, tee: str) -> tuple[str, str]:
        """Return a new session's name and nonce.

        Raises:
            UnavailableError: Too many wait.
        """
        nonce = secrets.token_urlsafe(32)
        session = self.named(nonce)
        with self._lock:
            self._forget_old()
            if len(self._waiting) >= MAX_WAITING:
                raise UnavailableError("too many guests wait to attest")
            self._waiting[session] = Waiting(nonce=nonce, tee=tee, until=self._uptime() + NONCE_LIFETIME_S)
        return session, nonce

    def named(self, nonce: str) -> str:
        """Return the name of the session with `nonce`: a token tells others the nonce, and not the name."""
        return b64u(hmac.digest(self._naming, nonce.encode(), "sha256"))

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

    def add(self, session: str, guest: Guest, *, changes: int, held_chars: int) -> None:
        """Keep an attested guest.

        Args:
            session: Its name.
            guest: Who attested.
            changes: How often trust in its root had changed when its evidence was judged.
            held_chars: Of its init data.
        """
        with self._lock:
            self._attested[session] = _Attested(guest=guest, changes=changes, held_chars=held_chars)
            while len(self._attested) > MAX_SESSIONS:
                self._attested.popitem(last=False)
            # The largest goes first: a flood of large documents pushes out itself, and no honest job.
            while sum(one.held_chars for one in self._attested.values()) > MAX_HELD_CHARS:
                del self._attested[max(self._attested, key=lambda name: self._attested[name].held_chars)]

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
            self._attested.pop(session, None)
        return None

    def _forget_old(self) -> None:
        uptime = self._uptime()
        while self._waiting and next(iter(self._waiting.values())).until < uptime:
            self._waiting.popitem(last=False)
        while self._attested and next(iter(self._attested.values())).guest.expires_at < uptime:
            self._attested.popitem(last=False)
