"""The lease: the guest attests again before its release runs out, and stops if it may not."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from strongroom.errors import StrongroomError, UnavailableError
from strongroom.guest.session import boottime as _boottime

__all__ = ["Lease"]

_log = logging.getLogger(__name__)

RETRY_S = 5.0
_TICK_S = 30.0


class Lease:
    """Renews what a guest was given until the process ends.

    Args:
        lock: Held while renewing: the job may be committing on the same connection.
        renew: Attests again and asks again; returns the new end.
        ends_at: End of the shortest, in seconds of CLOCK_BOOTTIME; None if nothing was given, so nothing to renew.
    """

    def __init__(
        self, lock: contextlib.AbstractContextManager[object], renew: Callable[[], float], ends_at: float | None
    ) -> None:
        self._lock = lock
        self._ask = renew
        self._ends_at = ends_at

    def start(self, on_end: Callable[[str], object]) -> None:
        """Watch in the background; call `on_end` with the reason if the lease cannot be renewed."""
        if self._ends_at is not None:
            threading.Thread(target=self._watch, args=(on_end,), daemon=True, name="lease").start()

    def check(self) -> None:
        """Raise if the lease has ended, also while the machine slept.

        Raises:
            UnavailableError: It has.
        """
        if self._is_ended():
            raise UnavailableError("the lease has ended")

    def _is_ended(self) -> bool:
        return self._ends_at is not None and _boottime() >= self._ends_at

    def _watch(self, on_end: Callable[[str], object]) -> None:
        try:
            self._sleep(self._left() / 2)
            while True:
                try:
                    self._renew()
                    wait = self._left() / 2
                except UnavailableError as exc:
                    if self._is_ended():
                        on_end(f"the lease has ended and the trust service does not answer: {exc}")
                        return
                    _log.warning("lease not renewed yet reason=%s", exc)
                    wait = RETRY_S
                self._sleep(max(RETRY_S, wait))
        except StrongroomError as exc:
            on_end(f"the lease was not renewed: {exc}")
        except Exception as exc:  # whatever it was: without a watcher the job must not go on
            _log.error("lease not renewed error=%s", type(exc).__name__)
            on_end(f"the lease was not renewed: {type(exc).__name__}")

    def _left(self) -> float:
        return max(0.0, (self._ends_at or 0.0) - _boottime())

    def _sleep(self, seconds: float) -> None:
        # In short steps by CLOCK_BOOTTIME: a guest that was suspended wakes up to an ended lease within one of them.
        until = _boottime() + seconds
        while (left := until - _boottime()) > 0:
            time.sleep(min(left, _TICK_S))

    def _renew(self) -> None:
        with self._lock:
            self._ends_at = self._ask()
