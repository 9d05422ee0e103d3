"""A folder of a store as a FUSE file system: the process that serves one mount.

It is on the untrusted side, like a disk: what it serves is sealed, and the guest checks every byte of it. It runs
while the other end of its standard input is held open, then takes the mount away, whoever still uses it.

What a program finds there that a disk does not have (data-set.md §6):
    1. A file is written once, from its beginning to its end; other writes fail with EOPNOTSUPP.
    2. It is complete in the store when `close` or `fsync` has returned.
    3. Owners, permissions and times are what the mounting process makes of them; setting them does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
import sys
import threading
from datetime import datetime
from typing import Any, NoReturn

import mfusepy

from strongroom._stores import check_folders, open_store, replace_file
from strongroom.errors import InputError, StrongroomError, UnavailableError
from strongroom.jobs.targets.mounts import detach
from strongroom.jobs.targets.store_files import ReadFile, WrittenFile, as_os_errors

__all__ = ["StoreView", "main"]

_BLOCK = 128 << 10
_RELEASE_S = 1.0
_SPACE = 1 << 50  # bytes: what a store has left is for it to say when it is full


class StoreView(mfusepy.Operations):  # type: ignore[misc]
    """The operations that the kernel asks for; any of them from any thread.

    Args:
        store: An fsspec file system with folders.
        root: The folder's path in it.
        ready: Called once the mount is there.
    """

    use_ns = True
    flag_nullpath_ok = True  # a file that is removed while it is open has no path

    def __init__(self, store: Any, root: str, ready: Any = lambda: None) -> None:
        self._store = store
        self._root = root
        self._ready = ready
        self._numbers = itertools.count(1)
        self._open: dict[int, ReadFile | WrittenFile] = {}
        self._writing: dict[str, WrittenFile] = {}  # by path in the store
        self._released = threading.Condition()
        self._owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}

    def _at(self, path: str) -> str:
        return self._root + path if path != "/" else self._root or "/"

    def _add(self, file: ReadFile | WrittenFile) -> int:
        number = next(self._numbers)
        self._open[number] = file
        return number

    def init(self, path: str) -> None:
        """Say that the mount is there."""
        self._ready()

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        """Return kind, size and time of a file or folder."""
        with as_os_errors():
            file = self._open.get(fh or 0) if path is None else self._writing.get(self._at(path))
            if isinstance(file, WrittenFile):
                return self._attributes({"type": "file", "size": file.size})
            if path is None:
                raise OSError(errno.ENOENT, "removed")
            return self._attributes(self._store.info(self._at(path)))

    def _attributes(self, info: dict[str, Any]) -> dict[str, Any]:
        folder = info["type"] == "directory"
        size = 0 if folder else int(info["size"] or 0)
        when = _time_ns(info)
        return {
            **self._owner,
            "st_mode": stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644,
            "st_nlink": 2 if folder else 1,
            "st_size": size,
            "st_blocks": (size + 511) // 512,
            "st_atime": when,
            "st_mtime": when,
            "st_ctime": when,
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        """Return the names in a folder."""
        with as_os_errors():
            folder = self._at(path).rstrip("/") + "/"
            found = {str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in self._store.ls(folder, detail=True)}
            # Some stores list a file once it is complete.
            begun = {p[len(folder) :] for p in list(self._writing) if p.startswith(folder)}
            return [".", "..", *sorted(found | {name for name in begun if "/" not in name})]

    def open(self, path: str, flags: int) -> int:
        """Open a file to read it, or to write it anew or on."""
        with as_os_errors():
            at = self._at(path)
            if flags & os.O_ACCMODE == os.O_RDONLY:
                return self._add(ReadFile(self._store.open(at, "rb")))
            with self._released:  # the kernel says that a file was let go a moment after its `close` has returned
                if not self._released.wait_for(lambda: at not in self._writing, _RELEASE_S):
                    raise OSError(errno.EBUSY, "being written")
            file = self._writing[at] = WrittenFile(self._store, at, int(self._store.info(at)["size"] or 0))
            return self._add(file)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """Make a new file and open it for writing."""
        with as_os_errors():
            file = WrittenFile(self._store, self._at(path))
            file.start()
            self._writing[file.path] = file
            return self._add(file)

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        """Return bytes of a file that is open for reading."""
        with as_os_errors():
            file = self._open[fh]
            if isinstance(file, WrittenFile):
                raise OSError(errno.EOPNOTSUPP, "a store's file is readable once it is complete")
            return file.read(size, offset)

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        """Append to a file that is open for writing."""
        with as_os_errors():
            file = self._open[fh]
            if isinstance(file, ReadFile):
                raise OSError(errno.EBADF, "open for reading")
            return file.write(data, offset)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        """Make a file empty; another length cannot be had."""
        with as_os_errors():
            file = self._open.get(fh or 0) if path is None else self._writing.get(self._at(path))
            if isinstance(file, WrittenFile):
                size = file.size
            elif path is not None:
                size = int(self._store.info(self._at(path))["size"] or 0)
            else:
                raise OSError(errno.EBADF, "not open for writing")
            if length not in (0, size):
                raise OSError(errno.EOPNOTSUPP, "a store's files are written once")
            if size and not length:
                emptied = file if isinstance(file, WrittenFile) else WrittenFile(self._store, self._at(str(path)))
                emptied.start()
                if emptied is not file:
                    emptied.close()
            return 0

    def flush(self, path: str | None, fh: int) -> int:
        """Complete a file: `close` waits for this."""
        with as_os_errors():
            self._open[fh].finish()
            return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        """Complete a file."""
        return self.flush(path, fh)

    def release(self, path: str | None, fh: int) -> int:
        """Forget an open file."""
        with as_os_errors():
            file = self._open.pop(fh)
            try:
                file.close()
            finally:
                with self._released:
                    if isinstance(file, WrittenFile) and self._writing.get(file.path) is file:
                        del self._writing[file.path]
                    self._released.notify_all()
            return 0

    def rename(self, old: str, new: str) -> int:
        """Rename a file or folder; a file at the new name is replaced."""
        with as_os_errors():
            source, target = self._at(old), self._at(new)
            moved = {p: f for p, f in list(self._writing.items()) if p == source or p.startswith(source + "/")}
            for file in moved.values():
                file.finish()
            replace_file(self._store, source, target)
            for path, file in moved.items():
                del self._writing[path]
                file.path = target + path[len(source) :]
                self._writing[file.path] = file
            return 0

    def unlink(self, path: str) -> int:
        """Remove a file."""
        with as_os_errors():
            at = self._at(path)
            file = self._writing.pop(at, None)
            if file is not None:
                file.discard()
            self._store.rm_file(at)
            return 0

    def mkdir(self, path: str, mode: int) -> int:
        """Make a folder."""
        with as_os_errors():
            self._store.mkdir(self._at(path), create_parents=False)
            return 0

    def rmdir(self, path: str) -> int:
        """Remove an empty folder."""
        with as_os_errors():
            self._store.rmdir(self._at(path))
            return 0

    def fsyncdir(self, *_asked: object) -> int:
        """Do nothing: a store keeps the names that it has accepted, and no owners, permissions and times."""
        return 0

    chmod = chown = utimens = fsyncdir

    def statfs(self, path: str) -> dict[str, int]:
        """Return that there is room."""
        free = _SPACE // _BLOCK
        return {
            "f_bsize": _BLOCK,
            "f_frsize": _BLOCK,
            "f_blocks": free,
            "f_bfree": free,
            "f_bavail": free,
            "f_namemax": 255,
        }


def _time_ns(info: dict[str, Any]) -> int:
    if "modification_time" in info:  # HDFS: milliseconds
        return int(info["modification_time"]) * 1_000_000
    found = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
    return int((found.timestamp() if isinstance(found, datetime) else float(found)) * 1e9)


def main() -> NoReturn:
    """Serve `URL FOLDER ro|rw` until standard input ends; say on standard output how it began."""
    url, folder, mode = sys.argv[-3:]
    status = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**said: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            status.write(json.dumps(said))
            status.close()

    try:
        _serve(url, folder, mode, lambda: say(ready=True))
    except StrongroomError as exc:
        say(code=exc.code, message=str(exc), hint=exc.hint)
    except Exception as exc:
        say(code=UnavailableError.code, message=f"{url} cannot be mounted: {exc}", hint="check the store and /dev/fuse")
    os._exit(1)


def _serve(url: str, folder: str, mode: str, ready: Any) -> None:
    store, root = open_store(url)
    if mode == "rw":
        check_folders(url)
    try:
        with as_os_errors():
            kind = store.info(root or "/")["type"]
    except OSError as exc:
        raise UnavailableError(f"{url} could not be read: {os.strerror(exc.errno or errno.EIO)}") from exc
    if kind != "directory":
        raise InputError(f"{url} is not a folder")
    threading.Thread(target=_end_with_input, args=(folder,), daemon=True).start()
    view = StoreView(store, root, ready)
    options = {"ro": True} if mode == "ro" else {}
    mfusepy.FUSE(view, folder, foreground=True, big_writes=True, hard_remove=True, fsname="strongroom", **options)


def _end_with_input(folder: str) -> NoReturn:
    while os.read(0, 4096):
        pass
    detach(folder)
    os._exit(0)
