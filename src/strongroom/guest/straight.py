"""Files that a program writes straight into their sealed form, with no plain copy in enclave memory.

What is written to /work/.sealed/<volume>/<name>, from the first byte to the last, is sealed as it comes and can be read
back from there. A link in a volume to such a file puts it there when the volume is sealed; a file that no link names by
then is dropped. `strongroom.models` saves large models so: lying in enclave memory, they would be written twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from strongroom.crypto.keys import FileSecret
from strongroom.crypto.stream import Reader, Writer
from strongroom.errors import DeniedError, StrongroomError
from strongroom.guest.fuse import WritingServer, hold, mount
from strongroom.guest.opening import read_sealed
from strongroom.guest.volumes import SealedVolume
from strongroom.storage.dataset import MAX_PATH_BYTES, tampered
from strongroom.storage.places import TEMPORARY

__all__ = ["STRAIGHT_FOLDER", "Found", "StraightFile", "StraightFolder", "walk"]

STRAIGHT_FOLDER = ".sealed"
"""Beside the volumes' places."""

_ELSEWHERE = (Path("/tmp"), Path("/dev/shm"))  # noqa: S108  # of the enclave: links may lie there for a while
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_FILES = 1000
_NAME_BYTES = 256
"""What a file's coming and going tells the host, as bytes of output."""


@dataclass(frozen=True, slots=True)
class Found:
    """What `walk` found.

    Attributes:
        path: Below the folder it began in.
        inode: Its number.
        is_folder: Whether it is a folder.
        link: Where it leads, if it is a link.
    """

    path: str
    inode: int
    is_folder: bool
    link: str | None


def walk(place: str | os.PathLike[str], without: Collection[str] = ()) -> Iterator[Found]:
    """Yield everything below `place` that is still there, never looking where a link leads, nor at these names in it.

    That may be a view of this process: killed while it waits for itself, it would never end. `os.walk` looks. Programs
    choose how deep folders lie in folders: there is no call and no descriptor for each.

    Raises:
        OSError: A folder cannot be listed, or its path is longer than a file's: what is in it is not known to be gone.
    """
    top = os.open(place, _FOLDER)
    listed, last, waiting = top, "", [""]
    try:
        while waiting:
            at = waiting.pop()
            try:
                found = _open_below(listed, at.removeprefix(last)) if at.startswith(last) else _open_below(top, at)
            except (FileNotFoundError, NotADirectoryError):  # gone, or a link now
                continue
            if listed != top:
                os.close(listed)
            listed, last = found, at
            with os.scandir(listed) as entries:
                for entry in entries:
                    if not at and entry.name in without:
                        continue
                    path = f"{at}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if len(os.fsencode(path)) > MAX_PATH_BYTES:
                            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                        yield Found(path, entry.inode(), True, None)
                        waiting.append(f"{path}/")
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        link = os.readlink(entry.name, dir_fd=listed) if entry.is_symlink() else None
                        yield Found(path, entry.inode(), False, link)
    finally:
        for folder in {listed, top}:
            os.close(folder)


def _open_below(folder: int, path: str) -> int:
    # One name at a time: of a longer path, a link in its middle would be followed.
    at = os.dup(folder)
    for name in path.split("/")[:-1]:
        try:
            below = os.open(name, _FOLDER, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


class StraightFile:
    """One file, beside the volume's own: held open, so that it is read wherever it is moved to.

    Attributes:
        volume: Under whose key it is.
        beside: Where it was written.
        prefix: Its first bytes.
        closing: Whether it was closed, by whoever writes it or by a child that had it open too.
        finished: Whether it is whole.
        missed: How often no link to it was found since there was one; None before.
        placed: Whether a volume has taken it.
    """

    def __init__(self, volume: SealedVolume) -> None:
        self.volume = volume
        self.beside = volume.folder / f"{TEMPORARY}{os.urandom(8).hex()}"
        self._secret: FileSecret | None = None
        self._writer: Writer | None = None
        self._size = self._promised = 0
        self._failed: OSError | None = None
        self._turn = threading.Lock()
        self.closing = self.finished = self.placed = False
        self.missed: int | None = None
        volume.spend(_NAME_BYTES)
        self._raw = open(self.beside, "x+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._raw, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever tidies up leaves it alone
            self.prefix, self._secret = volume.begin()
            self._writer = Writer(self._raw, self.prefix, self._secret)
        except BaseException:
            self.drop()
            raise

    @property
    def size(self) -> int:
        """Plaintext bytes so far."""
        return max(self._size, self._promised)

    def promise(self, size: int) -> None:
        """Hear how long it will be: some programs say so first."""
        if self.finished or size < self._size:
            raise OSError(errno.EPERM, "what is written stays")
        self._promised = size

    def write(self, offset: int, data: memoryview) -> None:
        """Take the bytes at `offset`, which follow those before; OSError if they do not, or there is no room."""
        with self._turn:
            if self._writer is None or offset != self._size:
                raise OSError(errno.ESPIPE, "it is written from the first byte to the last")
            self.closing = False
            if self._failed is None:
                try:
                    self.volume.spend(len(data))
                    self._size += self._writer.write(data)
                except DeniedError as exc:
                    self._failed = OSError(errno.EDQUOT, str(exc))
                except OSError as exc:
                    self._failed = exc
            if self._failed is not None:  # again: the kernel tells of the first time only how much was taken before
                raise self._failed

    def finish(self) -> None:
        """Take the file as it is, if it was closed; not written to any more."""
        with self._turn:
            if self._writer is None or not self.closing:
                return
            if self._failed is not None:
                raise self._failed
            if self._size < self._promised:
                raise OSError(errno.EIO, "it is shorter than it was to be")
            self._writer.close()
            os.fsync(self._raw.fileno())
            self._writer, self.finished = None, True

    def reader(self) -> Reader:
        """Open it for reading."""
        assert self._secret is not None
        secret, name = self._secret, f"{self.volume.name}/.sealed"  # no name of the program's choice

        def ask(prefix: bytes) -> tuple[FileSecret, int]:
            if prefix != self.prefix:
                raise tampered("swapped or rolled back", name, "it does not begin as it was written")
            return secret, self.size

        with self._turn:
            if self._raw.closed:
                raise OSError(errno.ESTALE, "it was removed")
            raw = io.FileIO(f"/proc/self/fd/{self._raw.fileno()}")  # not `dup`: each reader has a place of its own
        return read_sealed(raw, name, ask)

    def drop(self) -> None:
        """Remove it, unless a volume has taken it, and give up what it holds."""
        with self._turn:
            if self._writer is not None:
                self._writer.abort()
            if not self.placed:
                self.beside.unlink(missing_ok=True)
            self._raw.close()


class StraightFolder:
    """The files of one volume, as the FUSE server asks for them.

    Args:
        name: The volume's name.
        top: Where the folders of all volumes are (/work/.sealed).
        views: Names beside `top` where nobody can put a link.
    """

    def __init__(self, name: str, top: Path, views: Collection[str]) -> None:
        self.name = name
        self.place = top / name
        if not top.exists():
            top.mkdir()
            hold(top)
        self.place.mkdir()
        self._unlinkable = {top.name, *views}
        self._descriptor = mount(self.place, writable=True)
        self._files: dict[str, StraightFile] = {}
        self.failure: StrongroomError | None = None

    def serve(self, volume: SealedVolume, on_failure: Callable[[str], None]) -> None:
        """Take files for `volume` from now on; tell why if one is not what was written, which is in `failure` too."""
        self._volume = volume

        def failed(error: StrongroomError) -> None:
            self.failure = self.failure or error
            on_failure(str(error))

        WritingServer(self._descriptor, self, failed).start()

    def find(self, link: str) -> StraightFile | None:
        """Return the whole file that a link with this text names, if it is one of these."""
        path = Path(link)
        if path.parent == self.place:
            self._settle(path.name)
            file = self._files.get(path.name)
            return file if file is not None and file.finished else None
        return None

    def end(self) -> None:
        """Drop what no volume has taken."""
        for name in list(self._files):
            self.remove(name)

    def size(self, path: str) -> int | None:
        """Return a file's size so far, -1 for the folder, None if nothing is there."""
        if not path:
            return -1
        self._settle(path)
        file = self._files.get(path)
        return None if file is None else file.size

    def names(self, _folder: str) -> dict[str, int]:
        """Return name -> size."""
        return {name: file.size for name, file in self._files.items()}

    def open(self, path: str) -> Reader:
        """Open a whole file."""
        self._settle(path)
        file = self._file(path)
        if not file.finished:
            raise OSError(errno.EBUSY, "it is being written")
        return file.reader()

    def create(self, path: str) -> None:
        """Begin a file."""
        with contextlib.suppress(OSError):  # not everything was looked at
            self._drop_unlinked()
        if len(self._files) >= _MAX_FILES:
            raise OSError(errno.ENFILE, "too many files are written straight into their sealed form")
        try:
            self._files[path] = StraightFile(self._volume)
        except DeniedError as exc:
            raise OSError(errno.EDQUOT, str(exc)) from exc

    def _file(self, path: str) -> StraightFile:
        if path not in self._files:
            raise OSError(errno.ESTALE, "it was removed")
        return self._files[path]

    def _drop_unlinked(self) -> None:
        # A program that saves a model after each epoch and keeps the last few must not fill the disk. Twice, as a link
        # that is renamed while one looks is seen nowhere.
        places = ((self.place.parent.parent, self._unlinkable), *((place, ()) for place in _ELSEWHERE))
        links = {
            Path(os.path.normpath(place.joinpath(found.path, "..", found.link)))
            for place, without in places
            for found in walk(place, without)
            if found.link
        }
        for name, file in list(self._files.items()):
            if self.place / name in links:
                file.missed = 0
            elif file.missed is not None:
                file.missed += 1
                if file.missed > 1:
                    self.remove(name)

    def write(self, path: str, offset: int, data: memoryview) -> None:
        """Take the bytes that follow those before."""
        self._file(path).write(offset, data)

    def close(self, path: str) -> None:
        """Take the file as it is, unless more comes: a child that begins closes what it has open too."""
        self._file(path).closing = True

    def _settle(self, path: str) -> None:
        file = self._files.get(path)
        if file is not None:
            try:
                file.finish()
            except OSError:
                self.remove(path)

    def promise(self, path: str, size: int) -> None:
        """Hear how long the file will be."""
        self._file(path).promise(size)

    def rename(self, source: str, target: str) -> None:
        """Give a file a name that no other has."""
        if target in self._files:
            raise OSError(errno.EEXIST, "it is written once")
        self._files[target] = self._file(source)
        del self._files[source]

    def remove(self, path: str) -> None:
        """Forget a file."""
        if (file := self._files.pop(path, None)) is not None:
            file.drop()
