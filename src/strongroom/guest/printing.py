"""What a program prints, counted: a key's policy may limit what leaves the enclave, and the host reads both streams."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["Printing"]

_BLOCK = 1 << 16


class Printing:
    """Passes on what a program prints to standard output and error, up to a number of bytes in all.

    Args:
        max_bytes: Of both together.
        on_excess: Told, once, when there is more; the rest is dropped.
    """

    def __init__(self, max_bytes: int, on_excess: Callable[[str], None]) -> None:
        self._max_bytes = self._left = max_bytes
        self._on_excess = on_excess
        self._turn = threading.Lock()
        pipes = [os.pipe() for _ in range(2)]
        self.output, self.error = (write for _, write in pipes)
        self._threads = [
            threading.Thread(target=self._pass_on, args=(read, to), daemon=True)
            for (read, _), to in zip(pipes, (1, 2), strict=True)
        ]

    def start(self) -> None:
        """Begin; the program has its ends by now."""
        os.close(self.output)
        os.close(self.error)
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Return once everything is passed on; no process of the program is left."""
        for thread in self._threads:
            thread.join()

    def _pass_on(self, source: int, to: int) -> None:
        while block := os.read(source, _BLOCK):
            with self._turn:
                allowed = block[: max(self._left, 0)]
                told = self._left < 0
                self._left -= len(block)
                over = self._left < 0 and not told
            view = memoryview(allowed)
            try:
                while view:
                    view = view[os.write(to, view) :]
            except OSError:  # nobody reads: the program is to find out
                break
            if over:
                self._on_excess(f"the program printed more than the {self._max_bytes} bytes that a key's policy allows")
        os.close(source)
