"""Files of a store while a mount has them open: read ahead from front to back, written from front to back, once."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["ReadFile", "WrittenFile", "as_os_errors"]

READ_AHEAD_BYTES = 4 << 20
_LEAST_BYTES = 128 << 10


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Let nothing out but an `OSError` with a number: the kernel takes no other."""
    try:
        yield
    except OSError as exc:
        if exc.errno:
            raise
        raise OSError(_number(exc), str(exc)) from exc
    except Exception as exc:
        raise OSError(errno.EIO, str(exc)) from exc


def _number(exc: OSError) -> int:
    kinds = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES}
    return next((number for kind, number in kinds.items() if isinstance(exc, kind)), errno.EIO)


class ReadFile:
    """An open file, read ahead of a reader that goes from front to back."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._size = int(raw.size)
        self._lock = threading.Lock()
        self._start = 0
        self._ready = b""
        self._ahead = _LEAST_BYTES

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes from `offset`; fewer only at the end."""
        with self._lock:
            end = min(offset + size, self._size)
            if offset >= end:
                return b""
            if not self._start <= offset <= end <= self._start + len(self._ready):
                self._fetch(offset, end - offset)
            return self._ready[offset - self._start : end - self._start]

    def _fetch(self, offset: int, size: int) -> None:
        follows = self._start <= offset <= self._start + len(self._ready)
        self._ahead = min(2 * self._ahead, READ_AHEAD_BYTES) if follows else _LEAST_BYTES
        self._raw.seek(offset)
        wanted = min(max(size, self._ahead), self._size - offset)
        parts = []
        while wanted:
            part = self._raw.read(wanted)
            if not part:
                raise OSError(errno.EIO, "the store gave less than the file has")
            parts.append(part)
            wanted -= len(part)
        self._start, self._ready = offset, b"".join(parts)

    def finish(self) -> None:
        """Do nothing: there is nothing to complete."""

    def close(self) -> None:
        """Let it go."""
        self._raw.close()


class WrittenFile:
    """A file that is being written, from front to back.

    `finish` completes it in the store. Whoever writes on after that appends: a process that was forked closes its copy
    of the file, which looks like the end.
    """

    def __init__(self, store: Any, path: str, size: int = 0) -> None:
        self._store = store
        self._raw: Any = None
        self._lock = threading.Lock()
        self.path = path
        self.size = size

    def start(self) -> None:
        """Make the file empty."""
        with self._lock:
            self._end()
            self._raw = self._store.open(self.path, "wb")
            self.size = 0

    def write(self, data: bytes, offset: int) -> int:
        """Append `data`, which has to begin where the file ends."""
        with self._lock:
            if offset != self.size:
                raise OSError(errno.EOPNOTSUPP, "a store's files are written from front to back")
            if self._raw is None:
                self._raw = self._store.open(self.path, "ab")
            at = 0
            while at < len(data):
                if not (done := int(self._raw.write(data[at:]) or 0)):
                    raise OSError(errno.EIO, "the store took nothing")
                at += done
            self.size += at
            return at

    def finish(self) -> None:
        """Complete it in the store."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    close = finish

    def discard(self) -> None:
        """Give up a file that is removed; nothing can be written to it any more."""
        with self._lock, contextlib.suppress(Exception):
            self.size = -1
            self._end()
