"""What streams read from and write to: the part of a file that they use."""

from __future__ import annotations

from typing import Protocol

__all__ = ["RawSource", "RawTarget"]


class RawTarget(Protocol):
    """What a writer writes to."""

    def write(self, data: memoryview, /) -> int | None:
        """Write some of `data` and return how many bytes."""
        ...


class RawSource(Protocol):
    """What a reader reads from."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer` and return how many bytes; 0 at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move and return the new place."""
        ...
