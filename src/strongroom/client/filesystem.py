"""fsspec protocol `sealed`: an owner's programs use sealed data sets by name, with any library that takes fsspec URLs.

    pandas.read_csv("sealed:///data/sales/orders.csv")
    fsspec.open("sealed::s3://bucket/sales/part-0.parquet")
    frame.to_parquet("sealed:///data/sales/new.parquet")

The path is where the sealed file lies; the data set is the folder around it that has a `.dataset`. Keys come from the
trust service of the workspace, released to its owner, and every release is in the audit log. Each process sees a data
set as it was when it first opened a file of it, or as it is now once that is gone.

A file is sealed as it is written, never in place, and committed when it is closed (`written.py`); within
`with fs.transaction:` all at its end. Stores are read only: `strongroom data seal` writes there.

Inside an enclave nobody needs it: volumes are plain folders there. Such URLs mean them there (models/volumes.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import shutil
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.chained import ChainedFileSystem
from fsspec.transaction import Transaction

from strongroom._stores import is_url
from strongroom.client.owner import OwnerClient
from strongroom.client.workspace import Workspace
from strongroom.client.written import TextFile, WrittenFile
from strongroom.config import Settings
from strongroom.crypto.keys import KeyRing
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.storage.changes import NewFile, change_files
from strongroom.storage.dataset import Head, Manifest, load_manifest, read_info
from strongroom.storage.files import sealed_by
from strongroom.storage.places import LocalPlace, Place, place
from strongroom.storage.reading import reading

__all__ = ["SealedFileSystem"]

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _DataSet:
    """A data set as this process sees it."""

    folder: str
    at: Place
    ring: KeyRing
    head: Head
    manifest: Manifest

    @property
    def place(self) -> LocalPlace:
        """Return its folder on this machine."""
        assert isinstance(self.at, LocalPlace)
        return self.at


class _Transaction(Transaction):  # type: ignore[misc]  # fsspec has no types
    """Commits all its files at once, one commit a data set."""

    def complete(self, commit: bool = True) -> None:
        """End it; without `commit`, or if a file is still open, nothing of it is kept."""
        fs = self.fs
        assert fs is not None
        files: list[WrittenFile] = [file for file in self.files if not file.failed]
        self.files.clear()
        try:
            if still := [file.name for file in files if commit and not file.closed]:
                raise InputError(f"{still[0]} is still open at the end of the transaction", hint="close it before")
            for folder in {file.folder: None for file in files if commit}:
                fs._change(folder, new=[file.file for file in files if file.folder == folder])
        finally:
            for file in files:
                file.discard()
            fs._intrans, fs._transaction = False, None
            self.fs: SealedFileSystem | None = None


class SealedFileSystem(ChainedFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Reads and writes sealed data sets of the workspace's owner.

    Args:
        fo: What a chained URL wraps; only its protocol matters, paths come with each call.
        target_protocol: Where the sealed files are; None for this machine.
        target_options: Only the default ones: stores take theirs from the environment and their own files.
        workspace: A workspace's folder; by default the current folder's, or that of STRONGROOM_WORKSPACE.
    """

    protocol: ClassVar[str] = "sealed"
    cachable = True
    transaction_type = _Transaction

    def __init__(
        self,
        fo: str = "",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        workspace: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if target_options:
            raise InputError("options of the store below are not taken", hint="set them in its own environment")
        self._prefix = "" if target_protocol in (None, "file", "local") else f"{target_protocol}://"
        self._workspace = workspace
        self._turn = threading.Lock()
        self._process = 0
        self._client: OwnerClient | None = None
        self._sets: dict[str, _DataSet] = {}

    @classmethod
    def _strip_protocol(cls, path: str | list[str]) -> str | list[str]:
        if isinstance(path, list):
            return [str(cls._strip_protocol(one)) for one in path]
        bare = os.fspath(path).removeprefix("sealed://").removeprefix("sealed::")
        return bare if is_url(bare) else bare.removeprefix("file://").rstrip("/")

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:  # fsspec's
        """List a folder of a data set."""
        path = str(self._strip_protocol(path))
        found, inner = self._find(path)
        entry = found.manifest.find(inner)
        infos = [_file(path, entry.size)] if entry else list(_children(path, inner, found.manifest).values())
        if not infos and inner:
            raise FileNotFoundError(path)
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Return name, size and type of a file or folder."""
        path = str(self._strip_protocol(path))
        found, inner = self._find(path)
        entry = found.manifest.find(inner)
        if entry is not None:
            return _file(path, entry.size)
        if inner and not any(e.path.startswith(f"{inner}/") for e in found.manifest.entries):
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
        """Open a file; to write it, see the rules of this module."""
        if "r" not in mode and options.get("compression"):  # fsspec's wrapper never closes the file below it
            raise InputError(
                "a file that is compressed as it is written is opened by fsspec.open(URL, compression=...)"
            )
        if "b" in mode:
            return super().open(path, mode, *args, **options)
        text = {name: options.pop(name) for name in ("encoding", "errors", "newline") if name in options}
        return TextFile(super().open(path, mode.replace("t", "") + "b", *args, **options), **text)

    def _open(
        self, path: str, mode: str = "rb", *, autocommit: bool = True, **_options: Any
    ) -> io.BufferedReader | WrittenFile:
        if mode in ("wb", "w", "xb", "x"):
            if mode[0] == "x" and self.exists(path):
                raise FileExistsError(path)
            found, inner = self._writable(path)
            new = NewFile(found.place, found.ring, found.head.dataset, inner)
            commit = partial(self._change, found.folder, new=[new]) if autocommit else None
            return WrittenFile(new, found.folder, commit)
        if mode not in ("rb", "r"):
            raise InputError(f"a sealed file is not opened by {mode!r}", hint="it is written whole: 'wb'")
        path = str(self._strip_protocol(path))
        found, inner = self._find(path)
        if found.manifest.find(inner) is None:
            raise FileNotFoundError(path)
        try:
            return io.BufferedReader(_Open(found, inner), _BUFFER_BYTES)
        except IntegrityError:
            with self._turn:
                if self._owner().current(found.head.dataset) == found.head:
                    raise
            self.invalidate_cache()  # not tampered with: a job or its owner committed meanwhile
            return self._open(path, mode)

    def rm_file(self, path: str) -> None:
        """Remove one file."""
        self.rm(path)

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, or folders with `recursive`; one commit for each data set."""
        self._check_alone("rm")
        found = [self._writable(name) for name in self.expand_path(path, recursive=recursive, maxdepth=maxdepth)]
        folders = [inner for at, inner in found if at.manifest.find(inner) is None]
        if folders and not recursive and all(self.info(f"{at.folder}/{inner}") for at, inner in found):
            raise IsADirectoryError(f"{folders[0] or path} is a folder: recursive=True")
        for folder in {at.folder: None for at, _ in found}:
            gone = [inner for at, inner in found if at.folder == folder and inner not in folders]
            self._change(folder, removed=gone)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_options: Any) -> None:
        """Rename a file, or a folder, inside a data set; what has the new name is replaced."""
        self._check_alone("mv")
        (found, old), (target, new) = self._writable(path1), self._writable(path2)
        if found.folder != target.folder:
            raise InputError(f"{path1} and {path2} are in two data sets", hint="copy it, then remove it")
        if found.manifest.find(old) is not None:
            moved = {old: posixpath.join(new, posixpath.basename(old)) if self.isdir(path2) else new}
        else:
            below = [e.path for e in found.manifest.entries if e.path.startswith(f"{old}/")]
            moved = {path: posixpath.join(new, path[len(old) + 1 :]) for path in below}
        if not moved:
            raise FileNotFoundError(path1)
        self._change(found.folder, moved=moved)

    def cp_file(self, path1: str, path2: str, **_options: Any) -> None:
        """Seal a file anew under another name, in this data set or another."""
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            shutil.copyfileobj(source, target, _BUFFER_BYTES)

    def _check_alone(self, what: str) -> None:
        if self._intrans:
            raise InputError(f"{what} within a transaction: it would not wait for its end", hint="before or after it")

    def _writable(self, path: str) -> tuple[_DataSet, str]:
        found, inner = self._find(str(self._strip_protocol(path)))
        if not isinstance(found.at, LocalPlace):
            raise InputError(f"{path} lies in a store, which is read only here", hint="`strongroom data seal`")
        return found, inner

    def _change(self, folder: str, **changes: Any) -> None:
        with self._turn:
            found = self._sets[folder] if folder in self._sets else self._load(folder)
            head, manifest = change_files(found.place, found.ring, self._owner(), found.head.dataset, **changes)
            self._sets[folder] = replace(found, head=head, manifest=manifest)

    def invalidate_cache(self, path: str | None = None) -> None:
        """See data sets as they are now, at the next call."""
        with self._turn:
            self._sets.clear()
        super().invalidate_cache(path)

    # --- which data set

    def _find(self, path: str) -> tuple[_DataSet, str]:
        if self._process != os.getpid():
            # A forked process must not share its parent's connection, nor wait for a lock that nobody there gives up.
            self._process, self._turn, self._client, self._sets = os.getpid(), threading.Lock(), None, {}
        with self._turn:
            # The outermost data set: one that lies in another's folder was put there by whoever stores the files.
            parts = path.split("/")
            for end in range(1, len(parts) + 1):
                folder = "/".join(parts[:end])
                if folder and (folder in self._sets or self._is_set(folder)):
                    if folder not in self._sets:
                        self._sets[folder] = self._load(folder)
                    return self._sets[folder], "/".join(parts[end:])
        raise InputError(f"{path} is in no sealed data set", hint="`strongroom data seal SOURCE TARGET`")

    def _is_set(self, folder: str) -> bool:
        with contextlib.suppress(InputError):
            return read_info(place(self._prefix + folder, single=False)) is not None
        return False

    def _load(self, folder: str) -> _DataSet:
        at = place(self._prefix + folder, single=False)
        info = read_info(at)
        assert info is not None
        client = self._owner()
        if info.owner != client.owner:
            raise DeniedError(f"{folder} belongs to another owner", hint="its owner and the jobs they allow open it")
        ring, head = client.key_ring(info.key), client.current(info.dataset)
        return _DataSet(folder=folder, at=at, ring=ring, head=head, manifest=load_manifest(at, head, ring))

    def _owner(self) -> OwnerClient:
        if self._client is None:
            named = Path(self._workspace) if self._workspace else Settings.from_environment().workspace
            self._client = OwnerClient(Workspace.find(named))
        return self._client


class _Open(io.RawIOBase):
    """One open file; closing it closes the sealed one."""

    def __init__(self, found: _DataSet, path: str) -> None:
        super().__init__()
        self._name = f"{found.at.url}/{path}"
        self._held = contextlib.ExitStack()
        self._reader = self._held.enter_context(reading(found.at, found.manifest, found.ring, path))

    def readinto(self, buffer: Any, /) -> int:
        with sealed_by(self._name):
            return self._reader.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()


def _file(path: str, size: int) -> dict[str, Any]:
    return {"name": path, "size": size, "type": "file"}


def _children(path: str, inner: str, manifest: Manifest) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in manifest.entries:
        below = entry.path.removeprefix(f"{inner}/") if inner else entry.path
        if inner and below == entry.path:
            continue
        name, slash, _ = below.partition("/")
        full = posixpath.join(path, name)
        found[name] = {"name": full, "size": 0, "type": "directory"} if slash else _file(full, entry.size)
    return found
