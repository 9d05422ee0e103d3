"""fsspec protocol `sealed`: an owner's programs read sealed data sets by name, with any library that takes fsspec URLs.

    pandas.read_csv("sealed:///data/sales/orders.csv")
    fsspec.open("sealed::s3://bucket/sales/part-0.parquet")

The path is where the sealed file lies; the data set is the folder around it that has a `.dataset`. Keys come from the
trust service of the workspace, released to its owner, and every release is in the audit log. Each process sees a data
set as it was when it first opened a file of it, or as it is now once that is gone. Writing is `strongroom data seal`.

Inside an enclave nobody needs it: volumes are plain folders there.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.chained import ChainedFileSystem

from strongroom._stores import is_url
from strongroom.client.owner import OwnerClient
from strongroom.client.workspace import Workspace
from strongroom.config import Settings
from strongroom.crypto.keys import KeyRing
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.storage.dataset import Head, Manifest, load_manifest, read_info
from strongroom.storage.files import sealed_by
from strongroom.storage.places import Place, place
from strongroom.storage.reading import reading

__all__ = ["SealedFileSystem"]

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _DataSet:
    """A data set as this process sees it."""

    at: Place
    ring: KeyRing
    head: Head
    manifest: Manifest


class SealedFileSystem(ChainedFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Reads sealed data sets of the workspace's owner.

    Args:
        fo: What a chained URL wraps; only its protocol matters, paths come with each call.
        target_protocol: Where the sealed files are; None for this machine.
        target_options: Only the default ones: stores take theirs from the environment and their own files.
        workspace: A workspace's folder; by default the current folder's, or that of STRONGROOM_WORKSPACE.
    """

    protocol: ClassVar[str] = "sealed"
    cachable = True

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

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> io.BufferedReader:
        if mode not in ("rb", "r"):
            raise InputError(f"sealed data sets are not written by {mode!r}", hint="`strongroom data seal`")
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
        return _DataSet(at=at, ring=ring, head=head, manifest=load_manifest(at, head, ring))

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
