"""Opening files in folders that the host, or a program, changes meanwhile: no link is followed, no pipe waited for.

Source: openat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from strongroom.crypto.header import PREFIX_BYTES
from strongroom.crypto.stream import FileSecret, Reader
from strongroom.errors import InputError
from strongroom.storage.dataset import tampered
from strongroom.storage.files import sealed_by

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["open_below", "open_reader", "open_regular", "read_sealed"]

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_OPENAT2, _NO_MAGIC_LINKS, _NO_LINKS, _BENEATH = 437, 0x02, 0x04, 0x08
_libc = ctypes.CDLL(None, use_errno=True)


def open_reader(
    folder: Path, volume: str, path: str, ask: Callable[[bytes], tuple[FileSecret, int]], *, at: str = ""
) -> Reader:
    """Return the sealed file at `path` in `folder`, open for reading.

    Args:
        folder: Of the volume.
        volume: Its name.
        path: In the volume.
        ask: Returns secret and size of the file that begins with a prefix, or refuses it.
        at: Where it lies, if that is elsewhere in the folder.

    Raises:
        IntegrityError: Not the file that belongs there, or not there; says how.
    """
    name = f"{volume}/{path}"
    try:
        raw = open_below(folder, at or path)
    except InputError as exc:
        raise tampered("swapped or rolled back", name, str(exc)) from exc
    except FileNotFoundError as exc:
        raise tampered("dropped", name, "the manifest lists it, the folder does not hold it") from exc
    return read_sealed(raw, name, ask)


def read_sealed(raw: io.FileIO, name: str, ask: Callable[[bytes], tuple[FileSecret, int]]) -> Reader:
    """Return what `raw` holds, open for reading, as `open_reader` does; closing it closes `raw`."""
    try:
        secret, size = ask(raw.read(PREFIX_BYTES))
        reader = _NamedReader(raw, secret, name)
        if reader.size != size:
            raise tampered("truncated or extended", name, f"it holds {reader.size} bytes, expected {size}")
    except BaseException:
        raw.close()
        raise
    return reader


class _NamedReader(Reader):
    """A reader whose refusals say which file it is."""

    def __init__(self, raw: io.FileIO, secret: FileSecret, name: str) -> None:
        self._name, self._file = name, raw
        with sealed_by(name):
            super().__init__(raw, secret)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with sealed_by(self._name):
            return super().readinto(buffer)

    def close(self) -> None:
        super().close()
        self._file.close()


def open_regular(path: Path) -> io.FileIO:
    """Return the file at `path`, open for reading; a link is not followed, a pipe does not block.

    Raises:
        InputError: It is no regular file.
    """
    try:
        handle = os.open(path, _FLAGS | os.O_NOFOLLOW)
    except OSError as exc:
        raise _opening(exc) from exc
    return _regular(handle)


def open_below(folder: Path, path: str) -> io.FileIO:
    """Return the file at `path` in `folder`, open for reading; no link is followed, not in the middle either.

    The host must not lead the guest elsewhere, into its own view, say, where it would wait for itself; nor a program
    that runs, to what the guest alone can read.

    Raises:
        InputError: It is no regular file, or a link leads there.
        OSError: It is not there, or cannot be opened.
    """
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _How(flags=_FLAGS, mode=0, resolve=_NO_MAGIC_LINKS | _NO_LINKS | _BENEATH)
        size = ctypes.c_size_t(ctypes.sizeof(how))
        handle = _libc.syscall(_OPENAT2, top, os.fsencode(path), ctypes.byref(how), size)
        number = ctypes.get_errno()
    finally:
        os.close(top)
    if handle < 0 and number == errno.ENOSYS:  # Linux before 5.6
        return open_regular(folder / path)
    if handle < 0:
        raise _opening(OSError(number, os.strerror(number)))
    return _regular(int(handle))


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _opening(exc: OSError) -> OSError | InputError:
    if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EXDEV):
        return InputError("it is a symbolic link or a special file")
    return FileNotFoundError(exc.errno, exc.strerror) if exc.errno in (errno.ENOENT, errno.ENOTDIR) else exc


def _regular(handle: int) -> io.FileIO:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError("it is not a regular file")
    return io.FileIO(handle)
