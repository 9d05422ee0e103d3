"""A place behind an fsspec URL: object stores, HDFS, memory.

Trusts the remote side for nothing but delivery. There is no lock and no fsync: a file is written under a temporary
name, its size is compared, then it is moved. Leftovers of a killed run are removed by the next run, so two runs must
not seal into one remote folder at the same time; the commit of the head decides between them anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from strongroom._stores import open_store, replace_file
from strongroom.crypto.stream import RawSource, RawTarget
from strongroom.errors import StrongroomError, UnavailableError
from strongroom.storage.places import DATASET_FOLDER, TEMPORARY, FileStat, wrapped_os_errors

__all__ = ["RemotePlace"]


@contextmanager
def _wrapped(what: str) -> Iterator[None]:
    # Every store brings its own exceptions; OSError keeps its meaning, the rest may pass by itself.
    with wrapped_os_errors(what):
        try:
            yield
        except (OSError, StrongroomError):
            raise
        except Exception as exc:
            raise UnavailableError(f"{what} could not be read or written: {type(exc).__name__}") from exc


class _Counting:
    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.written = 0

    def write(self, data: memoryview, /) -> int:
        self._raw.write(bytes(data))  # some stores keep what they are given
        self.written += len(data)
        return len(data)


class RemotePlace:
    """A folder behind an fsspec URL."""

    def __init__(self, url: str, *, single: bool = True) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = open_store(self.url)
        self._only = self._root.rsplit("/", 1)[-1] if single and self._is("file") else None
        if self._only:
            self._root = self._root.rsplit("/", 1)[0]

    def _is(self, kind: str, path: str = "") -> bool:
        # fsspec's own isfile() takes a store that does not answer for "no".
        with _wrapped(self.url):
            try:
                return bool(self._fs.info(self._at(path))["type"] == kind)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def is_empty(self) -> bool:
        """Return whether there is nothing at all below, or no such folder yet."""
        with _wrapped(self.url):
            try:
                found = self._fs.info(self._at(""))
                return bool(found["type"] == "directory" and not self._fs.ls(self._at(""), detail=True))
            except FileNotFoundError:
                return True

    def holds_folder(self, path: str) -> bool:
        """Return whether there is a folder at `path`."""
        return self._is("directory", path)

    def files(self) -> Iterator[FileStat]:
        """Yield every file below, `.dataset` folders and temporary files left out."""
        for path, info in self._find(self._root + (f"/{self._only}" if self._only else "")):
            parts = path.split("/")
            if DATASET_FOLDER not in parts[:-1] and not parts[-1].startswith(TEMPORARY):
                yield self._describe(path, info)

    def _find(self, root: str) -> list[tuple[str, dict[str, Any]]]:
        with _wrapped(self.url):
            if not self._fs.exists(root):
                return []
            found: dict[str, dict[str, Any]] = self._fs.find(root, detail=True)
        return [(name[len(self._root) + 1 :], info) for name, info in found.items()]

    def _describe(self, path: str, info: dict[str, Any]) -> FileStat:
        link = bool(info.get("islink")) or info.get("type") == "link"
        identity = f"{self.url}:{self._fs.ukey(self._at(path))}"
        return FileStat(
            path=path, size=int(info["size"] or 0), identity=identity, trouble="a symbolic link" if link else ""
        )

    def stat(self, path: str) -> FileStat | None:
        """Return one file, or None if nothing has this name."""
        with _wrapped(self._name(path)):
            try:
                return self._describe(path, self._fs.info(self._at(path)))
            except FileNotFoundError:
                return None

    @contextmanager
    def read(self, path: str) -> Iterator[RawSource]:
        """Open one file for reading."""
        with _wrapped(self._name(path)), self._fs.open(self._at(path), "rb") as raw:
            yield raw

    @contextmanager
    def create(self, path: str) -> Iterator[RawTarget]:
        """Write under a temporary name, compare the size, then move to `path`."""
        final = self._at(path)
        parent = final.rsplit("/", 1)[0]
        temporary = f"{parent}/{TEMPORARY}{secrets.token_hex(8)}"
        with _wrapped(self._name(path)):
            self._fs.makedirs(parent, exist_ok=True)
            try:
                with self._fs.open(temporary, "wb") as raw:
                    counting = _Counting(raw)
                    yield counting
                arrived = int(self._fs.size(temporary) or 0)
                if arrived != counting.written:
                    raise UnavailableError(f"{self._name(path)} arrived with {arrived} of {counting.written} bytes")
                replace_file(self._fs, temporary, final)
            except BaseException:
                if self._fs.exists(temporary):
                    self._fs.rm_file(temporary)
                raise

    def remove(self, path: str) -> None:
        """Remove one file; none there is no error."""
        with _wrapped(self._name(path)):
            if self._fs.exists(self._at(path)):
                self._fs.rm_file(self._at(path))

    def names(self, folder: str) -> list[str]:
        """Return the file names in one folder, temporary ones left out; none if it is not there."""
        skipped = len(folder) + 1 if folder else 0
        rest = [path[skipped:] for path, _ in self._find(self._at(folder))]
        return sorted(name for name in rest if "/" not in name and not name.startswith(TEMPORARY))

    def tidy(self) -> int:
        """Remove temporary files and return how many that was."""
        left = [path for path, _ in self._find(self._root) if path.rsplit("/", 1)[-1].startswith(TEMPORARY)]
        for path in left:
            self.remove(path)
        return len(left)

    def settle(self) -> None:
        """Do nothing: a store keeps what it has accepted."""

    def touched(self, path: str) -> None:
        """Do nothing."""

    @contextmanager
    def locked(self) -> Iterator[list[int]]:
        """Lock nothing: stores have no locks."""
        yield []

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"

    def _name(self, path: str) -> str:
        return f"{self.url}/{path}"
