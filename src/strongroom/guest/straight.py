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
import itertools
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from strongroom.crypto.keys import FileSecret
from strongroom.crypto.stream import Reader, Writer
from strongroom.errors import DeniedError, StrongroomError
from strongroom.guest.fuse import WritingServer, mount
from strongroom.guest.volumes import SealedVolume, read_sealed
from strongroom.storage.dataset import tampered
from strongroom.storage.places import TEMPORARY

__all__ = ["StraightFile", "StraightFolder", "walk"]

_TEMPORARY = Path("/tmp")  # noqa: S108  # of the enclave


def walk(place: str | os.PathLike[str], without: Collection[str] = ()) -> Iterator[os.DirEntry[str]]:
    """Yield everything below `place`, never looking where a link leads, nor at these names in it.

    That may be a view of this process: killed while it waits for itself, it would never end. `os.walk` looks.
    """
    with contextlib.suppress(OSError), os.scandir(place) as entries:  # gone meanwhile
        for entry in entries:
            if entry.name in without:
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)


class StraightFile:
    """One file, beside the volume's own: held open, so that it is read wherever it is moved to.

    Attributes:
        volume: Under whose key it is.
        beside: Where it was written.
        prefix: Its first bytes.
        finished: Whether it is whole.
        linked: Whether a volume has had a link to it.
        placed: Whether a volume has taken it.
    """

    def __init__(self, volume: SealedVolume, name: str) -> None:
        self.volume = volume
        self._name = name
        self.beside = volume.folder / f"{TEMPORARY}{os.urandom(8).hex()}"
        self._raw = open(self.beside, "x+b", buffering=0)  # noqa: SIM115
        self._secret: FileSecret | None = None
        self._promised = 0
        self._failed: OSError | None = None
        self.finished = self.linked = self.placed = False
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
        return self._writer.size if self.finished else max(self._writer.size, self._promised)

    def promise(self, size: int) -> None:
        """Hear how long it will be: some programs say so first."""
        if self.finished or size < self._writer.size:
            raise OSError(errno.EPERM, "what is written stays")
        self._promised = size

    def write(self, offset: int, data: memoryview) -> None:
        """Take the bytes at `offset`, which follow those before; OSError if they do not, or there is no room."""
        if self.finished or offset != self._writer.size:
            raise OSError(errno.ESPIPE, "it is written from the first byte to the last")
        if self._failed is None:
            try:
                self.volume.spend(len(data))
                self._writer.write(data)
            except DeniedError as exc:
                self._failed = OSError(errno.EDQUOT, str(exc))
            except OSError as exc:
                self._failed = exc
        if self._failed is not None:  # again: the kernel tells of the first time only how much was taken before
            raise self._failed

    def finish(self) -> None:
        """Take the file as it is; not written to any more."""
        if not self.finished:
            if self._failed is not None:
                raise self._failed
            if self._writer.size < self._promised:
                raise OSError(errno.EIO, "it is shorter than it was to be")
            self._writer.close()
            os.fsync(self._raw.fileno())
            self.finished = True

    def reader(self) -> Reader:
        """Open it for reading."""
        assert self._secret is not None
        secret, name = self._secret, f"{self.volume.name}/{self._name}"

        def ask(prefix: bytes) -> tuple[FileSecret, int]:
            if prefix != self.prefix:
                raise tampered("swapped or rolled back", name, "it does not begin as it was written")
            return secret, self.size

        # Not `dup`: each reader has a place of its own.
        return read_sealed(io.FileIO(f"/proc/self/fd/{self._raw.fileno()}"), name, ask)

    def drop(self) -> None:
        """Remove it, unless a volume has taken it, and give up what it holds."""
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
        self.place.mkdir(parents=True)
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
        file = self._files.get(path.name) if path.parent == self.place else None
        return file if file is not None and file.finished else None

    def end(self) -> None:
        """Drop what no volume has taken."""
        for name in list(self._files):
            self.remove(name)

    def size(self, path: str) -> int | None:
        """Return a file's size so far, -1 for the folder, None if nothing is there."""
        if not path:
            return -1
        file = self._files.get(path)
        return None if file is None else file.size

    def names(self, _folder: str) -> dict[str, int]:
        """Return name -> size."""
        return {name: file.size for name, file in self._files.items()}

    def open(self, path: str) -> Reader:
        """Open a whole file."""
        file = self._file(path)
        if not file.finished:
            raise OSError(errno.EBUSY, "it is being written")
        return file.reader()

    def create(self, path: str) -> None:
        """Begin a file."""
        self._drop_unlinked()
        self._files[path] = StraightFile(self._volume, path)

    def _file(self, path: str) -> StraightFile:
        if path not in self._files:
            raise OSError(errno.ESTALE, "it was removed")
        return self._files[path]

    def _drop_unlinked(self) -> None:
        # A program that saves a model after each epoch and keeps the last few must not fill the disk.
        links: set[str] = set()
        for entry in itertools.chain(walk(self.place.parent.parent, self._unlinkable), walk(_TEMPORARY)):
            if entry.is_symlink():
                with contextlib.suppress(OSError):  # gone meanwhile
                    links.add(os.readlink(entry.path))
        for name, file in list(self._files.items()):
            if str(self.place / name) in links:
                file.linked = True
            elif file.linked:
                self.remove(name)

    def write(self, path: str, offset: int, data: memoryview) -> None:
        """Take the bytes that follow those before."""
        self._file(path).write(offset, data)

    def finish(self, path: str) -> None:
        """Take the file as it is."""
        try:
            self._file(path).finish()
        except OSError:
            self.remove(path)
            raise

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
