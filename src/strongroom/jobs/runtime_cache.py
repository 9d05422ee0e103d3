"""Which runtimes stay in the cache: those that a job shows, and those that somebody used within a week.

Whoever uses a runtime holds a shared lock on its folder until the process has ended, and so does the platform that it
forks. A folder's own times are in no digest: its mtime says when it was used last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

__all__ = ["UNUSED_DAYS", "hold", "remove_unused", "size_of"]

UNUSED_DAYS = 7
_MAX_COUNTED = 200_000
_held: dict[Path, int] = {}


def hold(folder: Path) -> bool:
    """Return whether `folder` is there; if it is, it stays until this process and those forked from now on have ended.

    A file system that locks no folders removes none either.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)
        os.utime(handle)
    if not _is(folder, handle):  # removed between the two calls
        os.close(handle)
        return False
    if (before := _held.get(folder)) is not None:
        os.close(before)
    _held[folder] = handle
    return True


def remove_unused(cache: Path, kind: str) -> None:
    """Remove the runtimes of a kind that nobody used for a week, and what cut-off builds and removals left."""
    limit = time.time() - UNUSED_DAYS * 86_400
    for name in os.listdir(cache):
        folder, gone = cache / name, cache / f".{name.lstrip('.')[:60]}.{os.getpid()}"
        if not name.startswith((f"{kind}-", f".{kind}-")):
            continue
        with contextlib.suppress(OSError):  # not a folder, held, or gone already
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(handle).st_mtime > limit:
                    continue
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_mtime > limit or not _is(folder, handle):  # meanwhile
                    continue
                folder.rename(gone)  # at once, so that nobody sees half of it
            finally:
                os.close(handle)
            shutil.rmtree(gone, ignore_errors=True)


def size_of(cache: Path) -> tuple[int, int, bool]:
    """Return how many runtimes the cache holds, their bytes, and whether there are more than were counted."""
    folders, seen, total = [p for p in cache.glob("*") if p.is_dir()], set[tuple[int, int]](), 0
    waiting = [os.fspath(f) for f in folders]
    while waiting and len(seen) < _MAX_COUNTED:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif (info.st_dev, info.st_ino) not in seen:  # environments share files
                    seen.add((info.st_dev, info.st_ino))
                    total += info.st_blocks * 512
    return len(folders), total, bool(waiting)


def _is(folder: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(handle))
    except FileNotFoundError:
        return False
