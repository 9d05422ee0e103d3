"""What programs ask of the kernel: sockets at paths of any length, names on the disk, memory left to no dump."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import itertools
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from strongroom.errors import InputError, UnavailableError

__all__ = [
    "WrittenEarly",
    "connect_unix",
    "flush_files",
    "flush_folder",
    "listen_unix",
    "lock_alone",
    "make_folders",
    "protect_process",
    "read_text",
    "receive_exactly",
    "serve_connections",
    "write_new",
    "write_whole",
]

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4
_ACCEPT_AGAIN_S = 0.1
_LOCK_AGAIN_S = 0.02
_FLUSHED_AT_A_TIME = 8
_EARLY_BYTES, _SYNC_FILE_RANGE_WRITE = 8 << 20, 2


def connect_unix(path: str, timeout_s: float) -> socket.socket:
    """Return a connection to the Unix socket at `path`, which may be longer than the kernel's 107 bytes."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    folder = -1
    try:
        if len(os.fsencode(path)) > 100:
            folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
            path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return sock


def listen_unix(path: str) -> socket.socket:
    """Return a new socket that listens at `path`, for this user only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    return listener


def serve_connections(listener: socket.socket, serve: Callable[[socket.socket], object], name: str) -> None:
    """Have `serve` answer each connection on a thread of its own and close it, from now on.

    A connection that cannot be accepted (no descriptors or threads are left) ends nothing for the others.
    """

    def accept() -> None:
        while True:
            sock = None
            try:
                sock, _ = listener.accept()
                threading.Thread(target=serve, args=(sock,), daemon=True).start()
            except (OSError, RuntimeError) as exc:
                _log.warning("connection not accepted at=%s reason=%s", name, exc)
                if sock is not None:
                    sock.close()
                time.sleep(_ACCEPT_AGAIN_S)

    threading.Thread(target=accept, daemon=True, name=name).start()


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes.

    Raises:
        ConnectionResetError: There are none any more.
    """
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "the other end was closed")
        parts += part
    return bytes(parts)


def lock_alone(handle: int, what: str, wait_s: float) -> None:
    """Hold the lock on an open file or folder alone, until `handle` and every copy of it are closed.

    Raises:
        UnavailableError: Another run is writing to `what` for longer than `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"another run is writing to {what}", hint="wait until it is done and try again"
                ) from exc
            time.sleep(_LOCK_AGAIN_S)


def make_folders(folder: Path) -> None:
    """Make `folder` and those that it lies in: `mkdir` with `parents` calls itself for each, so they cannot be many."""
    missing = [*itertools.takewhile(lambda at: not at.is_dir(), (folder, *folder.parents))]
    for at in reversed(missing):
        at.mkdir(exist_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk: a file that was flushed may still lose its name without this."""
    _flush(folder, os.O_DIRECTORY)


def flush_files(paths: Collection[Path]) -> None:
    """Flush files to the disk, several at a time: its journal then writes for all who wait in one go.

    Raises:
        OSError: One could not be written.
    """
    if paths:
        with ThreadPoolExecutor(min(len(paths), _FLUSHED_AT_A_TIME)) as threads:
            list(threads.map(_flush, paths))


class WrittenEarly:
    """A file that the disk begins with while more is written: flushing it at the end then waits for little.

    That it is flushed it does not promise, nor that the kernel takes the hint (sync_file_range(2)).
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._new = 0

    def write(self, data: memoryview, /) -> int:
        """Write to the file where it is and return how much."""
        done = self._raw.write(data)
        self._new += done
        if self._new >= _EARLY_BYTES:
            begin = ctypes.c_int64(self._raw.tell() - self._new)
            _libc.sync_file_range(self._raw.fileno(), begin, ctypes.c_int64(self._new), _SYNC_FILE_RANGE_WRITE)
            self._new = 0
        return done


def _flush(path: Path, flags: int = os.O_NOFOLLOW | os.O_NONBLOCK) -> None:
    handle = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_text(path: Path, hint: str) -> str:
    """Return the text in a file that a person named.

    Raises:
        InputError: It is not readable, with `hint`, or no text.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise InputError(f"{path} is not readable: {reason}", hint=hint) from exc


def write_new(path: Path, raw: bytes, mode: int) -> None:
    """Write a file that was not there, flushed, or none; its name is on the disk once its folder is flushed.

    Raises:
        FileExistsError: It is there; it stays as it is.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_whole(path: Path, raw: bytes | str, mode: int = 0o666) -> None:
    """Let `path` hold `raw`, on the disk when this returns; nobody sees half of it, also after a power cut.

    Args:
        path: Replaced, with its permissions, if it is there.
        raw: All of it.
        mode: Less what the umask takes.

    Raises:
        OSError: It cannot be written; names `path`. Or it is a pipe, device or folder, which would be gone: /dev/null.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    beside = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}")
    try:
        write_new(beside, raw.encode() if isinstance(raw, str) else raw, mode)
    except OSError as exc:
        exc.filename = str(path)
        raise
    try:
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def protect_process() -> None:
    """Keep this process's memory out of core files and debuggers, and its new files to its user.

    Raises:
        OSError: The kernel refuses.
    """
    # A limit of 0 stops core files, but not a core_pattern that is a pipe; 1 stops both (fs/coredump.c).
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    os.umask(0o077)
