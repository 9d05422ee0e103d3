"""Every file that any process of this machine writes, to be searched for what must not be there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

__all__ = ["Written", "written"]

# linux/fanotify.h
_NONBLOCKING_UNLIMITED = 0x1 | 0x2 | 0x10
_ADD_FILE_SYSTEM = 0x1 | 0x100
_MODIFY, _CLOSE_WRITE, _OVERFLOW = 0x2, 0x8, 0x4000
_EVENT = struct.Struct("=IBBHQii")
_AT_FDCWD = -100
_PLACES = ("/", "/dev/shm")
_BLOCK = 4 << 20
_SIGN = b"this-is-seen-in-a-file"


class Written:
    """What was written so far, searched as it is closed and whenever asked, while it may still be open."""

    def __init__(self, found_in: Callable[[bytes], set[str]], skipped: set[Path]) -> None:
        self._found_in, self._skipped = found_in, skipped
        self._paths: set[str] = set()
        self._hits: dict[str, set[str]] = {}
        self.signs: set[str] = set()

    def add(self, descriptor: int, *, closed: bool) -> None:
        """Take one event of the kernel: a file that somebody wrote to."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not any(place == Path(path) or place in Path(path).parents for place in self._skipped):
            self._paths.add(path)
            if closed:
                self._search(path, descriptor)

    def hits(self) -> dict[str, set[str]]:
        """Read all of them again; return where anything was found, ever: path -> names."""
        for path in sorted(self._paths):
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                self._search(path, file.fileno())
        return {path: set(names) for path, names in self._hits.items()}

    def _search(self, path: str, descriptor: int) -> None:
        at, tail = 0, b""
        while block := os.pread(descriptor, _BLOCK, at):
            if block.startswith(_SIGN):
                self.signs.add(path.removesuffix(" (deleted)"))
            if names := self._found_in(tail + block):
                self._hits.setdefault(path, set()).update(names)
            at, tail = at + len(block), block[-256:]


@contextlib.contextmanager
def written(found_in: Callable[[bytes], set[str]], skipped: set[Path]) -> Iterator[Written]:
    """Watch the whole machine's files (needs root); at the end make sure that the watch saw what was there to see.

    A walk over the disk would ask each of millions of files when it changed, which took an hour on a cold machine,
    and would miss what is gone again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.fanotify_init(_NONBLOCKING_UNLIMITED, os.O_RDONLY | os.O_CLOEXEC)
    if watch < 0 and ctypes.get_errno() == errno.EPERM:
        pytest.skip("only root may watch what every process writes")
    assert watch >= 0, os.strerror(ctypes.get_errno())
    found, ended = Written(found_in, skipped), threading.Event()

    def read() -> None:
        last = False
        while not last:
            last = ended.is_set()  # once more after the end
            with contextlib.suppress(BlockingIOError):
                while events := os.read(watch, 1 << 16):
                    for _, _, _, _, mask, descriptor, _ in _EVENT.iter_unpack(events):
                        assert not mask & _OVERFLOW
                        with contextlib.suppress(OSError):
                            found.add(descriptor, closed=bool(mask & _CLOSE_WRITE))
                        os.close(descriptor)
            ended.wait(0.02)

    try:
        for place in _PLACES:
            mask = ctypes.c_uint64(_MODIFY | _CLOSE_WRITE)
            if libc.fanotify_mark(watch, _ADD_FILE_SYSTEM, mask, _AT_FDCWD, place.encode()):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield found
            signs = set()
            for place in _PLACES:
                with tempfile.NamedTemporaryFile(dir=place, prefix=".seen-") as sign:
                    sign.write(_SIGN)
                signs.add(sign.name)
        finally:
            ended.set()
            reader.join()
    finally:
        os.close(watch)
    assert signs <= found.signs, "the watch saw nothing"
