"""Staged volumes: opened into enclave memory before the program starts, sealed again after it has ended well.

Those that a program writes to, and all of them where the sandbox has no views (views.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom.crypto.stream import Writer
from strongroom.errors import InputError, UnavailableError
from strongroom.guest.volumes import SealedVolume, open_regular
from strongroom.storage.leftovers import KEPT_FOLDER
from strongroom.storage.places import TEMPORARY, LocalPlace

__all__ = ["StagedVolume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    path: str
    beside: Path
    size: int


class StagedVolume:
    """A sealed volume and its plain copy in enclave memory.

    Args:
        volume: The sealed side.
        place: The plain side, on a memory file system (/work/<name>).
    """

    def __init__(self, volume: SealedVolume, place: Path) -> None:
        self.volume = volume
        self._place = place
        self._seen: dict[str, tuple[int, int, int, int]] = {}

    def open_all(self) -> None:
        """Open every file of the volume into the place.

        Raises:
            IntegrityError: A file is not what the manifest says.
            UnavailableError: Enclave memory is full.
        """
        self._place.mkdir(exist_ok=True)
        for path, _ in self.volume.paths():
            target = self._place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self.volume.reader(path) as reader, open(target, "wb", buffering=0) as out:
                    reader.copy_to(out.write)
            except OSError as exc:
                raise UnavailableError(
                    f"volume {self.volume.name}: {path} does not fit into enclave memory: {exc.strerror}",
                    hint="raise scratch_mb in [sandbox]",
                ) from exc
            if self.volume.mode == "ro":
                target.chmod(0o444)
            self._seen[path] = _identity(target)

    def seal_changes(self) -> None:
        """Seal every new or changed file, and drop those that the program removed.

        Nothing under a final name changes before all of it is sealed.

        Raises:
            InputError: The program left something that is neither a file nor a folder.
            UnavailableError: The disk is full.
        """
        if self.volume.mode != "rw":
            return
        found: set[str] = set()
        sealed: list[_Sealed] = []
        try:
            for path in self._outputs():
                found.add(path)
                if self._seen.get(path) != _identity(self._place / path):
                    sealed.append(self._seal_one(path))
        except BaseException:
            for file in sealed:
                file.beside.unlink(missing_ok=True)
                self.volume.abort(file.path)
            raise
        try:
            self._replace(sealed, sorted(self._seen.keys() - found))
        except OSError as exc:
            raise UnavailableError(f"outputs of {self.volume.name} could not be written: {exc.strerror}") from exc

    def _outputs(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self._place):
            for name in [*names, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
                yield os.path.relpath(os.path.join(folder, name), self._place)

    def _seal_one(self, path: str) -> _Sealed:
        beside = self.volume.folder / f"{TEMPORARY}{os.urandom(8).hex()}"
        what = f"output {self.volume.name}/{path}"
        try:
            source = open_regular(self._place / path)
        except InputError as exc:
            raise InputError(f"{what} cannot be sealed: {exc}", hint="leave files and folders only") from exc
        prefix, secret = self.volume.create(path)
        try:
            with source as raw, open(beside, "xb", buffering=0) as out:
                with Writer(out, prefix, secret) as writer:
                    writer.copy_from(raw)
                os.fsync(out.fileno())
        except OSError as exc:
            beside.unlink(missing_ok=True)
            self.volume.abort(path)
            raise UnavailableError(
                f"{what} could not be written: {exc.strerror}", hint="free disk space, run again"
            ) from exc
        return _Sealed(path=path, beside=beside, size=writer.size)

    def _replace(self, sealed: Sequence[_Sealed], removed: Sequence[str]) -> None:
        place, names = LocalPlace(self.volume.folder), [file.path for file in sealed]
        for path, kept in {p: k for old in (*removed, *names) for p, k in self.volume.keep(old).items()}.items():
            place.move(path, f"{KEPT_FOLDER}/{kept}")
        for path in removed:
            place.remove(path)
            self.volume.delete(path)
            _remove_empty(self.volume.folder, Path(path).parent)
        for file in sealed:
            target = self.volume.folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            file.beside.replace(target)
            self.volume.finish(file.path, file.size)
            place.touched(file.path)
        place.settle()


def _remove_empty(root: Path, folder: Path) -> None:
    # A program may have put a file where a folder was.
    while folder != Path("."):
        try:
            (root / folder).rmdir()
        except OSError:
            return
        folder = folder.parent


def _identity(path: Path) -> tuple[int, int, int, int]:
    info = path.lstat()  # ctime: a program may set mtime back
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino
