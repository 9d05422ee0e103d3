"""Files in enclave memory: where links among them lead, what is a hole, whether one is whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from strongroom.crypto.stream import Reader, write_all
from strongroom.errors import InputError
from strongroom.guest.opening import open_below

__all__ = [
    "Identity",
    "digest",
    "follow",
    "freeze",
    "identity",
    "is_frozen",
    "leads_to",
    "look",
    "open_plain",
    "put_plain",
]

Identity = tuple[int, int, int, int]
"""Size, times of the last change of content and of anything, number."""

_PAGE = 4096
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_MAX_LINKS = 40


def open_plain(place: Path, path: str) -> io.FileIO:
    """Return the file at `path` in `place`, or the one in `place` that the link there leads to, open for reading.

    Raises:
        InputError: Neither; says what it is.
        OSError: It is gone, or cannot be opened.
    """
    at = _inside(place, path)
    linked = at != path
    try:
        return open_below(place, at)
    except OSError as exc:
        if linked and exc.errno in _NOWHERE:
            raise InputError("a link to nothing") from exc
        raise
    except InputError as exc:
        raise InputError("a link, but not to a file" if linked else "neither a file nor a folder") from exc


def look(place: Path, path: str) -> Identity:
    """Return what is known of the file that `open_plain` opens; of a link, the number is its own.

    Raises:
        InputError: As `open_plain`.
        OSError: It is gone.
    """
    info = (place / path).lstat()
    if not stat.S_ISLNK(info.st_mode):
        return identity(info)
    return (*leads_to(place, path)[:3], info.st_ino)


def leads_to(place: Path, path: str) -> Identity:
    """Return what is known of the file that the link at `path` leads to, its own number too; raises as `look`."""
    try:
        return identity((place / _inside(place, path)).lstat())
    except OSError as exc:
        if exc.errno in _NOWHERE:
            raise InputError("a link to nothing") from exc
        raise


def _inside(place: Path, path: str) -> str:
    at, outside = follow(place, path)
    if outside:
        raise InputError("a link out of the volume")
    return at


def follow(place: Path, path: str) -> tuple[str, str]:
    """Return where the links at `path` lead in `place`, or else "" and where they lead outside.

    Link by link, and never looking outside: there may be a view of this process, which would wait for itself. Who opens
    what comes of it must follow no link: a program that still runs must not lead it elsewhere meanwhile.

    Raises:
        InputError: In a circle.
    """
    todo, done, text = path.split("/")[::-1], list[str](), ""
    links = 0
    while todo:
        part = todo.pop()
        if part == ".." and not done:
            return "", text
        if part == "..":
            done.pop()
        if part in ("", ".", ".."):
            continue
        try:
            link = os.readlink(place.joinpath(*done, part))
        except OSError:  # no link, or nothing
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise InputError("a link in a circle")
        text = os.path.normpath(place.joinpath(*done, link))
        if link.startswith("/"):
            if not f"{link}/".startswith(f"{place}/"):
                return "", text
            link, done = link[len(str(place)) :], []
        todo += link.split("/")[::-1]
    return "/".join(done) or ".", ""


def put_plain(reader: Reader, path: Path, *, holes: bool = True) -> None:
    """Copy what `reader` holds to a new file at `path`; pages of zeros become holes, which take no memory.

    Args:
        reader: At its beginning.
        path: On a memory file system.
        holes: Whether that one's holes read as zeros. Of a LibOS's they may be what its memory held before.
    """
    with open(path, "wb", buffering=0) as out:
        at = 0

        def write(block: memoryview) -> None:
            nonlocal at
            for start, end in _filled(block) if holes else [(0, len(block))]:
                out.seek(at + start)
                write_all(out, block[start:end])
            at += len(block)

        reader.copy_to(write)
        if out.tell() < at:
            out.truncate(at)


def _filled(block: memoryview) -> Iterator[tuple[int, int]]:
    begun = -1
    for at in range(0, len(block), _PAGE):
        hole = not block[at] and not bytes(block[at : at + _PAGE]).strip(b"\0")
        if hole and begun >= 0:
            yield begun, at
            begun = -1
        elif not hole and begun < 0:
            begun = at
    if begun >= 0:
        yield begun, len(block)


def identity(info: os.stat_result) -> Identity:
    """Return what changes with a file."""
    # ctime: a program may set mtime back
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def digest(raw: io.FileIO) -> bytes:
    """Return the SHA-256 of all of it; it is at its beginning again."""
    found = hashlib.file_digest(raw, "sha256").digest()
    raw.seek(0)
    return found


def freeze(raw: io.FileIO) -> bool:
    """Return whether nobody has the file open or mapped for writing; whoever opens it so from now on waits.

    The kernel gives a read lease on such a file only, and holds it until the file is closed here, or too long.
    """
    try:
        fcntl.fcntl(raw, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def is_frozen(raw: io.FileIO) -> bool:
    """Return whether nobody has waited too long since `freeze`."""
    return fcntl.fcntl(raw, fcntl.F_GETLEASE) == fcntl.F_RDLCK
