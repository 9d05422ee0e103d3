"""The kernel's FUSE protocol for files that nobody writes, or writes once, spoken over /dev/fuse without libfuse.

Trusts the kernel, whose requests these are, and nothing that a program names. Every answer comes from `Files`; what
cannot be answered is EIO to the program, and told to whoever runs the server, once.

Source: linux/fuse.h, protocol 7.31; fs/fuse/ for what the kernel makes of an answer.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import select
import stat
import struct
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from strongroom.errors import IntegrityError, StrongroomError, UnavailableError

__all__ = ["DEVICE", "NEAR", "Files", "FuseServer", "OpenFile", "WritableFiles", "WritingServer", "hold", "mount"]

_log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
MAX_READ = MAX_WRITE = 1 << 20
_PAGE, _MAX_NAME = 4096, 255
_AWAKE_S = 100e-6
_MAX_WARM = 64
"""So many open files keep buffers, a megabyte each at most."""
NEAR = 1 << 20
_SMALL = 1 << 15
_AGAIN = 64
"""The second small read within `NEAR` bytes is said to be close to another; so is every one after so many more."""

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _DESTROY = 25, 26, 27, 28, 29, 36, 38
_BATCH_FORGET, _READDIRPLUS = 42, 44
_SETATTR, _UNLINK, _RENAME, _WRITE, _FSYNC, _CREATE = 4, 10, 12, 16, 20, 35
_UNANSWERED = {_FORGET, _BATCH_FORGET, _INTERRUPT}

_MAJOR, _MINOR = 7, 31
# Reads side by side, listings with attributes, requests of up to MAX_READ.
_ASYNC_READ, _READDIRPLUS_ON, _READDIRPLUS_AUTO, _PARALLEL_LISTINGS, _MAX_PAGES = 1, 1 << 13, 1 << 14, 1 << 18, 1 << 22
_WANTED = _ASYNC_READ | _READDIRPLUS_ON | _READDIRPLUS_AUTO | _PARALLEL_LISTINGS | _MAX_PAGES
_BIG_WRITES = 1 << 5
_DIRECT, _KEEP_CACHE, _CACHE_LISTING = 1, 1 << 1, 1 << 3
_GONE = "\0"
"""The path of what was removed: no file is called so."""
_VALID_S = 86_400  # nothing changes while the view is there

_REQUEST = struct.Struct("<IIQQIIII")  # length, operation, unique, node, uid, gid, pid, padding
_REPLY = struct.Struct("<IiQ")  # length, error, unique
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTRIBUTES = struct.Struct("<QQQQQQ10I")
_ENTRY = struct.Struct("<QQQQII")
_GETATTR_OUT = struct.Struct("<QII")
_OPENED = struct.Struct("<QII")
_READ_IN = struct.Struct("<QQI")
_HANDLE = struct.Struct("<Q")
_CREATE_IN_BYTES, _SIZE = 16, 1 << 3
_SETATTR_IN = struct.Struct("<I12xQ")
_WRITE_IN, _WRITE_OUT = struct.Struct("<QQI20x"), struct.Struct("<II")
_NAME = struct.Struct("<QQII")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND = 1, 2, 4, 4096
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class OpenFile(Protocol):
    """A file that is read at any place."""

    size: int

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to `offset`."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer`; fewer bytes only at the end."""

    def shrink(self) -> None:
        """Give up buffers, until the next read."""

    def close(self) -> None:
        """Give it up."""


class Files(Protocol):
    """A tree of files, by relative path; the top folder is `""`."""

    def size(self, path: str) -> int | None:
        """Return a file's size, -1 for a folder, None if nothing is there."""

    def names(self, folder: str) -> dict[str, int]:
        """Return name -> size, as `size` says it."""

    def open(self, path: str) -> OpenFile:
        """Open a file.

        Raises:
            StrongroomError: It is not what it should be.
        """


class WritableFiles(Files, Protocol):
    """One folder of files that are written once, from the first byte to the last."""

    def create(self, path: str) -> None:
        """Begin a file."""

    def write(self, path: str, offset: int, data: memoryview) -> None:
        """Take the bytes that follow those before.

        Raises:
            OSError: What the program is told: they do not follow, or there is no room.
        """

    def promise(self, path: str, size: int) -> None:
        """Hear how long the file will be."""

    def close(self, path: str) -> None:
        """Take the file as it is from the next look at it, unless more is written before."""

    def rename(self, source: str, target: str) -> None:
        """Give a file a name that no other has."""

    def remove(self, path: str) -> None:
        """Forget a file."""


def mount(place: Path, *, writable: bool = False) -> int:
    """Mount an empty view at `place`, which must exist, and return the descriptor that serves it.

    Needs CAP_SYS_ADMIN over the mount namespace, and /dev/fuse. Not answered before a `FuseServer` serves it.

    Raises:
        OSError: The kernel refuses.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},max_read={MAX_READ}"
    options += ",default_permissions"
    flags = _MS_NOSUID | _MS_NODEV | (0 if writable else _MS_RDONLY)
    if _libc.mount(b"strongroom", os.fsencode(place), b"fuse", flags, options.encode()):
        number = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(number, os.strerror(number), str(place))
    return descriptor


def hold(place: Path) -> None:
    """Make the folder `place` a mount of its own: nobody renames it, nor takes what is mounted in it elsewhere."""
    if _libc.mount(os.fsencode(place), os.fsencode(place), None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), f"{place} cannot be mounted")


class FuseServer:
    """Answers the kernel about one view.

    Args:
        descriptor: From `mount`.
        files: What is there.
        on_failure: Told of the first error that is not the program's.
        on_near: Told of a small read close to another, by path and the first of `NEAR` bytes around it. Must not wait:
            what it does about it is done elsewhere.
    """

    _wanted, _max_write, _folder_mode, _sizes_valid_s = _WANTED, _PAGE, 0o555, _VALID_S

    def __init__(
        self,
        descriptor: int,
        files: Files,
        on_failure: Callable[[StrongroomError], None],
        on_near: Callable[[str, int], None] = lambda _path, _offset: None,
    ) -> None:
        self._descriptor = descriptor
        self._files = files
        self._on_failure = on_failure
        self._on_near = on_near
        self._since = int(time.time())
        self._paths = ["", ""]  # by node; the kernel calls the top folder 1
        self._nodes = {"": 1}
        self._handles: dict[int, _Handle] = {}
        self._warm: OrderedDict[int, OpenFile] = OrderedDict()  # with buffers, the one read last at the end
        self._listings: dict[int, list[tuple[str, int]]] = {}
        self._numbers = itertools.count(1)
        self._failed = False
        self._near: Counter[tuple[int, int]] = Counter()  # small reads, by node and place
        self._answers: dict[int, Callable[[int, memoryview], bytes]] = {
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _OPEN: self._open,
            _OPENDIR: self._opendir,
            _READDIR: partial(self._listing, plus=False),
            _READDIRPLUS: partial(self._listing, plus=True),
            _RELEASE: self._release,
            _RELEASEDIR: self._release,
            _STATFS: self._statfs,
            _INIT: self._init,
            _FLUSH: _nothing,
            _DESTROY: _nothing,
        }

    def start(self) -> None:
        """Serve in the background until the view is gone."""
        threading.Thread(target=self.serve, daemon=True, name="fuse").start()

    def serve(self) -> None:
        """Serve on this thread until the view is gone.

        One thread: what it does with the interpreter lock held is more than what it does without. After an answer it
        looks for the next request for a moment before it sleeps: being woken takes longer than a small read.
        """
        request, out = bytearray(self._max_write + _PAGE * 2), memoryview(bytearray(MAX_READ))
        body, awake_until = memoryview(request), 0.0
        os.set_blocking(self._descriptor, False)
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        while True:
            try:
                size = os.readv(self._descriptor, [request])
            except BlockingIOError:
                if time.monotonic() > awake_until:
                    waiting.poll()
                continue
            except OSError as exc:
                if exc.errno in (errno.ENODEV, errno.EBADF):
                    return
                continue  # a request that was taken back
            if size < _REQUEST.size:
                return
            self._answer_one(request, body[_REQUEST.size : size], out)
            awake_until = time.monotonic() + _AWAKE_S

    def _answer_one(self, request: bytearray, body: memoryview, out: memoryview) -> None:
        _, operation, unique, node, *_ = _REQUEST.unpack_from(request)
        if operation in _UNANSWERED:
            return
        error, answer = self._answer(operation, node, body, out)
        try:
            os.writev(self._descriptor, [_REPLY.pack(_REPLY.size + len(answer), error, unique), answer])
        except OSError as exc:
            if exc.errno != errno.ENOENT:  # ENOENT: whoever asked is gone
                _log.error("no answer to the kernel operation=%d error=%s", operation, exc.strerror)

    def _answer(self, operation: int, node: int, body: memoryview, out: memoryview) -> tuple[int, bytes | memoryview]:
        try:
            if operation == _READ:
                return 0, self._read(node, body, out)
            handler = self._answers.get(operation)
            return (-errno.ENOSYS, b"") if handler is None else (0, handler(node, body))
        except _Refusal as exc:
            return -exc.errno, b""
        except OSError as exc:
            if exc.errno == errno.EMFILE and self._is_full():  # the program may close some and go on
                return -errno.ENFILE, b""
            self._fail(UnavailableError(f"a view could not read: {exc.strerror}"))
            return -errno.EIO, b""
        except Exception as exc:  # the kernel waits for an answer
            self._fail(exc)
            return -errno.EIO, b""

    def _is_full(self) -> bool:
        # Whoever serves the sealed files could say the same of a file that it would rather hide.
        try:
            os.close(os.dup(self._descriptor))
        except OSError as exc:
            return exc.errno == errno.EMFILE
        return False

    def _fail(self, exc: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        unforeseen = IntegrityError(f"a view failed: {type(exc).__name__}")  # its text could hold data
        try:
            self._on_failure(exc if isinstance(exc, StrongroomError) else unforeseen)
        except Exception as other:  # the failure is noted by then, and the kernel waits for an answer
            _log.error("the program could not be stopped error=%s", type(other).__name__)

    # --- one method an operation: (node, body) -> answer

    def _init(self, _node: int, body: memoryview) -> bytes:
        major, _, ahead, flags = _INIT_IN.unpack_from(body)
        if major != _MAJOR:
            raise _Refusal(errno.EPROTO)
        ahead, pages, granularity_ns = max(ahead, MAX_READ), MAX_READ // _PAGE, 10**9
        return _INIT_OUT.pack(
            _MAJOR, _MINOR, ahead, flags & self._wanted, 64, 48, self._max_write, granularity_ns, pages, 0, 0
        )  # fmt: skip

    def _lookup(self, node: int, body: memoryview) -> bytes:
        path = self._child(node, body)
        size = self._files.size(path)
        if size is None:
            raise _Refusal(errno.ENOENT)
        return self._entry(path, size)

    def _getattr(self, node: int, _body: memoryview) -> bytes:
        size = self._files.size(self._paths[node])
        if size is None:
            raise _Refusal(errno.ESTALE)
        return _GETATTR_OUT.pack(self._sizes_valid_s, 0, 0) + self._attributes(node, size)

    def _open(self, node: int, _body: memoryview) -> bytes:
        return self._opened(_Handle(file=self._files.open(self._paths[node])), _KEEP_CACHE)

    def _opendir(self, node: int, _body: memoryview) -> bytes:
        if node not in self._listings:
            self._listings[node] = [(".", -1), ("..", -1), *sorted(self._files.names(self._paths[node]).items())]
        return self._opened(_Handle(names=self._listings[node]), _KEEP_CACHE | _CACHE_LISTING)

    def _opened(self, handle: _Handle, flags: int) -> bytes:
        number = next(self._numbers)
        self._handles[number] = handle
        return _OPENED.pack(number, flags, 0)

    def _release(self, _node: int, body: memoryview) -> bytes:
        number = _HANDLE.unpack_from(body)[0]
        handle = self._handles.pop(number, None)
        if handle is not None and handle.file is not None:
            self._warm.pop(number, None)
            handle.file.close()
        return b""

    def _read(self, node: int, body: memoryview, out: memoryview) -> memoryview:
        number, offset, size = _READ_IN.unpack_from(body)
        handle = self._handles[number]
        assert handle.file is not None
        self._warm[number] = handle.file
        self._warm.move_to_end(number)
        if len(self._warm) > _MAX_WARM:
            self._warm.popitem(last=False)[1].shrink()
        if size <= _SMALL < handle.file.size:
            at = (node, offset // NEAR)
            self._near[at] += 1
            if self._near[at] >= 2:
                self._near[at] -= _AGAIN
                self._on_near(self._paths[node], at[1] * NEAR)
        handle.file.seek(offset)
        return out[: handle.file.readinto(out[: min(size, MAX_READ)])]

    def _listing(self, node: int, body: memoryview, *, plus: bool) -> bytes:
        number, offset, limit = _READ_IN.unpack_from(body)
        folder = self._paths[node]
        out = bytearray()
        for at, (name, size) in enumerate(self._handles[number].names[offset:], offset + 1):
            raw = os.fsencode(name)
            entry = bytes(_ENTRY.size + _ATTRIBUTES.size) if plus else b""  # node 0: no attributes
            inner = node
            if name not in (".", ".."):
                path = self._below(folder, name)
                inner = self._node(path)
                entry = self._entry(path, size) if plus else b""
            entry += _NAME.pack(inner, at, len(raw), self._mode(size) >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(out) + len(entry) > limit:
                break
            out += entry
        return bytes(out)

    def _statfs(self, _node: int, _body: memoryview) -> bytes:
        return _STATFS_OUT.pack(0, 0, 0, len(self._nodes), 0, _PAGE, _MAX_NAME, _PAGE, 0)

    # --- names and attributes

    def _child(self, node: int, body: memoryview) -> str:
        name = bytes(body).partition(b"\0")[0]
        if len(name) > _MAX_NAME:
            raise _Refusal(errno.ENAMETOOLONG)
        return self._below(self._paths[node], os.fsdecode(name))

    @staticmethod
    def _below(folder: str, name: str) -> str:
        return f"{folder}/{name}" if folder else name

    def _node(self, path: str) -> int:
        node = self._nodes.get(path)
        if node is None:
            node = self._nodes[path] = len(self._paths)
            self._paths.append(path)
        return node

    def _entry(self, path: str, size: int) -> bytes:
        node = self._node(path)
        return _ENTRY.pack(node, 0, _VALID_S, self._sizes_valid_s, 0, 0) + self._attributes(node, size)

    def _attributes(self, node: int, size: int) -> bytes:
        links, length = (2, 0) if size < 0 else (1, size)
        owner = (os.getuid(), os.getgid())
        times = (self._since,) * 3
        return _ATTRIBUTES.pack(
            node, length, -(-length // 512), *times, 0, 0, 0, self._mode(size), links, *owner, 0, _PAGE, 0
        )  # fmt: skip

    def _mode(self, size: int) -> int:
        return stat.S_IFDIR | self._folder_mode if size < 0 else stat.S_IFREG | 0o444


class WritingServer(FuseServer):
    """Answers the kernel about files that are written once; it keeps nothing of what is written."""

    _wanted, _max_write, _folder_mode, _sizes_valid_s = _WANTED | _BIG_WRITES, MAX_WRITE, 0o755, 0

    def __init__(self, descriptor: int, files: WritableFiles, on_failure: Callable[[StrongroomError], None]) -> None:
        super().__init__(descriptor, files, on_failure)
        self._writable = files
        self._answers |= {
            _CREATE: self._create,
            _WRITE: self._write,
            _FLUSH: self._close,
            _FSYNC: _nothing,  # of what no volume has yet
            _UNLINK: self._unlink,
            _SETATTR: self._setattr,
            _RENAME: self._rename,
        }

    def _create(self, node: int, body: memoryview) -> bytes:
        path = self._child(node, body[_CREATE_IN_BYTES:])
        _told(lambda: self._writable.create(path))
        self._forget(path)
        return self._entry(path, 0) + self._opened(_Handle(writing=True), _DIRECT)

    def _open(self, node: int, _body: memoryview) -> bytes:
        return self._opened(_Handle(file=_told(lambda: self._files.open(self._paths[node]))), _KEEP_CACHE)

    def _opendir(self, node: int, _body: memoryview) -> bytes:
        return self._opened(_Handle(names=[(".", -1), ("..", -1), *sorted(self._files.names("").items())]), 0)

    def _write(self, node: int, body: memoryview) -> bytes:
        number, offset, size = _WRITE_IN.unpack_from(body)
        if not self._handles[number].writing:
            raise _Refusal(errno.EBADF)
        _told(lambda: self._writable.write(self._paths[node], offset, body[_WRITE_IN.size : _WRITE_IN.size + size]))
        return _WRITE_OUT.pack(size, 0)

    def _read(self, node: int, body: memoryview, out: memoryview) -> memoryview:
        if self._handles[_READ_IN.unpack_from(body)[0]].writing:
            raise _Refusal(errno.EBADF)
        return super()._read(node, body, out)

    def _close(self, node: int, body: memoryview) -> bytes:
        # Not at the release, which comes later, when whoever closed it may have looked at it again.
        if self._handles[_HANDLE.unpack_from(body)[0]].writing:
            _told(lambda: self._writable.close(self._paths[node]))
        return b""

    def _setattr(self, node: int, body: memoryview) -> bytes:
        valid, size = _SETATTR_IN.unpack_from(body)
        if valid & _SIZE:
            _told(lambda: self._writable.promise(self._paths[node], size))
        return self._getattr(node, body)

    def _rename(self, node: int, body: memoryview) -> bytes:
        source, target = (
            self._child(node, body[at:]) for at in (_HANDLE.size, body.tobytes().index(0, _HANDLE.size) + 1)
        )
        _told(lambda: self._writable.rename(source, target))
        moved = self._nodes.pop(source)
        self._paths[moved], self._nodes[target] = target, moved
        return b""

    def _unlink(self, node: int, body: memoryview) -> bytes:
        path = self._child(node, body)
        self._writable.remove(path)
        self._forget(path)
        return b""

    def _forget(self, path: str) -> None:
        # Who still has the file of that name open means that one, and the kernel has its pages.
        if (node := self._nodes.pop(path, None)) is not None:
            self._paths[node] = _GONE


def _told(step: Callable[[], _T]) -> _T:
    try:
        return step()
    except OSError as exc:
        raise _Refusal(exc.errno or errno.EIO) from exc


class _Refusal(Exception):  # noqa: N818  # no error of ours: what a program is told that asks for what is not there
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


@dataclass(slots=True, kw_only=True)
class _Handle:
    """What a program holds open: a file, or a folder's listing."""

    file: OpenFile | None = None
    names: Sequence[tuple[str, int]] = ()
    writing: bool = False


def _nothing(_node: int, _body: memoryview) -> bytes:
    return b""
