"""Enclave memory: says that it is full, in the words of who can change it.

A program finds out by an error of its own making, often long after and without a word of what was full.
"""

from __future__ import annotations

import logging
import os
import threading

__all__ = ["MemoryWatch"]

_log = logging.getLogger(__name__)

_PLACES = ("/work", "/tmp", "/dev/shm")  # noqa: S108  # memory file systems of `scratch_mb` each
_FULL = 0.95
_INTERVAL_S = 0.2


class MemoryWatch:
    """Looks at the memory file systems while a program runs, and warns once of each that fills up."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory")
        self.full: list[str] = []

    def start(self) -> None:
        """Watch in the background until `end`."""
        self._thread.start()

    def end(self, exit_code: int) -> None:
        """Stop; after a failure say again what was full."""
        self._ended.set()
        self._thread.join()
        self._look()
        if exit_code and self.full:
            _log.error("the program failed after enclave memory was full places=%s: raise --scratch-mb", self.full)

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        for place in _PLACES:
            if place not in self.full and _used(place) >= _FULL:
                self.full.append(place)
                _log.warning("enclave memory is full place=%s: --scratch-mb raises it", place)


def _used(place: str) -> float:
    try:
        found = os.statvfs(place)
    except OSError:
        return 0.0
    return 1 - found.f_bavail / found.f_blocks if found.f_blocks else 0.0
