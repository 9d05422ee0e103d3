"""HDFS for fsspec, by hdfs-native: as its own class, with POSIX errors, names as they are, and a rename that replaces.

hdfs-native 0.14's fsspec class takes paths for URLs, so that `a#1` and `a#2` are one file to it, and its errors have no
numbers. A name with `:` does not exist in HDFS.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator
from typing import Any

from hdfs_native.fsspec import HdfsFileSystem

__all__ = ["Hdfs"]

_JAVA_ERRORS = {
    "AccessControlException": errno.EACCES,
    "InvalidPathException": errno.EILSEQ,
    "PathIsNotEmptyDirectoryException": errno.ENOTEMPTY,
    "ParentNotDirectoryException": errno.ENOTDIR,
    "QuotaExceededException": errno.EDQUOT,
    "SafeModeException": errno.EROFS,
}
# Its default of 15, with pauses that grow, is minutes of silence when the NameNode is down; 3 are 8 s.
_SETTINGS = {"dfs.client.failover.max.attempts": "3"}
# A client that goes away waits for its threads, which a forked process does not have: it would wait for ever.
_clients: list[Any] = []


@contextlib.contextmanager
def _posix(path: str) -> Iterator[None]:
    """Give errors the number that an `OSError` has."""
    try:
        yield
    except (OSError, RuntimeError) as exc:
        if isinstance(exc, OSError) and exc.errno:
            raise
        raise _error(exc, path) from exc


def _error(exc: Exception, path: str) -> OSError:
    text = str(exc)
    number = errno.EIO
    if isinstance(exc, FileNotFoundError):
        # The NameNode says so of a folder that is opened as a file, too.
        number = errno.EISDIR if "not a file" in text.partition("\n")[0] else errno.ENOENT
    elif isinstance(exc, FileExistsError):
        number = errno.ENOTDIR if "not a directory" in text else errno.EEXIST
    elif found := re.search(r"os error (\d+)", text):
        number = int(found[1])
    else:
        number = next((n for name, n in _JAVA_ERRORS.items() if name in text), number)
    return OSError(number, os.strerror(number), path)


class _Reader(io.RawIOBase):
    """A file that is open for reading; hdfs-native's own has no `readinto`, and panics at the end of the file."""

    def __init__(self, raw: Any, path: str) -> None:
        self._raw = raw
        self._path = path
        self._at = 0
        self.size = len(raw)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), max(self.size - self._at, 0))
        if wanted:
            with _posix(self._path):
                buffer[:wanted] = self._raw.read_range(self._at, wanted)
        self._at += wanted
        return wanted


class _Writer(io.RawIOBase):
    """A file that is open for writing; complete when `close` has returned."""

    def __init__(self, raw: Any, path: str) -> None:
        self._raw = raw
        self._path = path

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        with _posix(self._path):
            return int(self._raw.write(data))

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _posix(self._path):
                self._raw.close()


class Hdfs(HdfsFileSystem):
    """HDFS behind fsspec; `mv` replaces what is there, in one step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**_SETTINGS, **options})
        _clients.append(self.client)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        text = str(path)
        if "://" in text:
            text = "/" + text.partition("://")[2].partition("/")[2]
        return text.rstrip("/") or "/"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return what the NameNode says of a file or folder."""
        with _posix(path):
            found: dict[str, Any] = super().info(path, **options)
            return found

    def ukey(self, path: str) -> str:
        """Return what changes when the content does; the time of the last reading does not count."""
        info = self.info(path)
        return f"{info['size']}:{info['modification_time']}"

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """Return what lies in a folder."""
        with _posix(path):
            found: list[Any] = super().ls(path, detail, **options)
            return found

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Make a folder."""
        with _posix(path):
            super().mkdir(path, create_parents, **options)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        """Rename; a file or empty folder at the new name is replaced."""
        with _posix(path1):
            super().mv(path1, path2, **{**options, "overwrite": True})

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove a file or folder."""
        with _posix(path):
            super().rm(path, recursive, maxdepth)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        with _posix(path):
            super().rmdir(path)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # type: ignore[override]
        with _posix(path):
            raw = super()._open(path, mode, **options)
        return (_Reader if mode == "rb" else _Writer)(raw, path)
