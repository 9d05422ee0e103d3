"""Where files are: a local folder, or an fsspec URL behind the same six methods.

Trusts the local kernel; trusts no name and no link in a folder. `OSError` becomes our errors here and nowhere else.

Rules:
    1. A file appears under its name whole or not at all: temporary name, flush, fsync, rename, fsync of the folder.
    2. A temporary file is locked while its writer lives, so a leftover is told from work in progress.
    3. Symbolic links and special files are refused by name, never followed.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from strongroom._unix import flush_folder, lock_alone, make_folders
from strongroom.crypto.raw import RawSource, RawTarget
from strongroom.errors import InputError, StrongroomError, UnavailableError

__all__ = ["DATASET_FOLDER", "TEMPORARY", "FileStat", "LocalPlace", "Location", "Place", "place", "wrapped_os_errors"]

Location = str | os.PathLike[str]

TEMPORARY = ".~strongroom-"
DATASET_FOLDER = ".dataset"

_WRONG = {
    errno.ENOENT: ("does not exist", "check the path"),
    errno.EACCES: ("may not be read or written by this user", "check the permissions"),
    errno.EPERM: ("may not be read or written by this user", "check the permissions"),
    errno.EROFS: ("is on a read-only file system", "choose another folder"),
    errno.ENOTDIR: ("runs through something that is not a folder", "check the path"),
    errno.EISDIR: ("is a folder", "name a file"),
    errno.EEXIST: ("runs through something that is not a folder", "check the path"),
    errno.ENAMETOOLONG: ("has a name that this file system cannot hold", "use shorter names"),
    errno.EILSEQ: ("has a name that this file system cannot hold", "rename the file"),
    errno.ELOOP: ("is a symbolic link", "name the file that it points to"),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _os_error(exc: OSError, what: str) -> StrongroomError:
    number = exc.errno or 0
    if number in _FULL:
        return UnavailableError(
            f"no space is left while writing {what}",
            hint="free some space and run the same command again; finished files are kept",
        )
    if number in _WRONG:
        said, hint = _WRONG[number]
        return InputError(f"{what} {said}", hint=hint)
    reason = os.strerror(number) if number else type(exc).__name__
    return UnavailableError(f"{what} could not be read or written: {reason}", hint="check the disk and try again")


@contextmanager
def wrapped_os_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into one sentence about `what`."""
    try:
        yield
    except OSError as exc:
        raise _os_error(exc, what) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """One file of a place.

    Attributes:
        path: Relative, `/`-separated.
        size: Bytes.
        identity: Changes when the file's content may have changed (local: device, inode, size, mtime, ctime).
        trouble: What the entry is, if it is not a regular file ("a symbolic link"), else "".
    """

    path: str
    size: int
    identity: str = ""
    trouble: str = ""


class Place(Protocol):
    """A folder of files."""

    url: str

    def files(self) -> Iterator[FileStat]:
        """Yield every file below, `.dataset` folders and temporary files left out."""
        ...

    def stat(self, path: str) -> FileStat | None:
        """Return one file, or None if nothing has this name."""
        ...

    def is_empty(self) -> bool:
        """Return whether there is nothing at all below, or no such folder yet."""
        ...

    def holds_folder(self, path: str) -> bool:
        """Return whether there is a folder at `path`."""
        ...

    def read(self, path: str) -> AbstractContextManager[RawSource]:
        """Open one file for reading; a symbolic link is refused."""
        ...

    def create(self, path: str) -> AbstractContextManager[RawTarget]:
        """Open a temporary file that becomes `path` when the block ends without an exception."""
        ...

    def remove(self, path: str) -> None:
        """Remove one file; none there is no error."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the file names in one folder, temporary ones left out; none if it is not there."""
        ...

    def tidy(self) -> int:
        """Remove what killed runs left below and return how many files that was."""
        ...

    def settle(self) -> None:
        """Make finished renames survive a power cut."""
        ...

    def touched(self, path: str) -> None:
        """Note that another process put `path` here, for `settle`."""
        ...

    def locked(self) -> AbstractContextManager[list[int]]:
        """Keep other runs from writing here, where the place can; yields descriptors for worker processes."""
        ...


def place(location: Location | Place, *, single: bool = True) -> Place:
    """Return the place at a local path or an fsspec URL such as `s3://bucket/orders`; a place stays what it is.

    Args:
        location: Path, URL or place.
        single: Whether a location that is a file is the place of that one file.
    """
    if not isinstance(location, str | os.PathLike):
        return location
    text = os.fspath(location)
    scheme, colon, _ = text.partition("://")
    if colon and scheme.isascii() and scheme.replace("+", "").isalnum() and scheme != "file":
        from strongroom.storage.remote import RemotePlace  # noqa: PLC0415 - local work never loads fsspec

        return RemotePlace(text, single=single)
    return LocalPlace(text.removeprefix("file://") if colon else text, single=single)


class LocalPlace:
    """A folder of this machine, or one file seen as a folder that holds only it."""

    def __init__(self, root: Location, *, single: bool = True) -> None:
        path = Path(os.path.abspath(os.fspath(root)))  # not resolve(): links stay visible to the checks
        self._only = path.name if single and path.is_file() and not path.is_symlink() else None
        self.root = path.parent if self._only else path
        self.url = str(path)
        self._touched: set[Path] = set()

    def files(self) -> Iterator[FileStat]:
        """Yield every file below, in no order; links and special files come with their trouble."""
        with wrapped_os_errors(self.url):
            if self._only:
                yield self._describe(self._only, os.lstat(self.root / self._only))
                return
            yield from self._walk(skip_hidden=True)

    def _walk(self, *, skip_hidden: bool) -> Iterator[FileStat]:
        waiting = [""]
        while waiting:
            at = waiting.pop()
            with os.scandir(self.root / at) as entries:
                for entry in entries:
                    path = f"{at}/{entry.name}" if at else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name != DATASET_FOLDER or not skip_hidden:
                            waiting.append(path)
                    elif not (skip_hidden and entry.name.startswith(TEMPORARY)):
                        yield self._describe(path, entry.stat(follow_symlinks=False))

    @staticmethod
    def _describe(path: str, found: os.stat_result) -> FileStat:
        trouble = ""
        if stat.S_ISLNK(found.st_mode):
            trouble = "a symbolic link"
        elif not stat.S_ISREG(found.st_mode):
            trouble = "not a regular file"
        identity = f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"
        return FileStat(path=path, size=found.st_size, identity=identity, trouble=trouble)

    def stat(self, path: str) -> FileStat | None:
        """Return one file, or None if nothing has this name."""
        with wrapped_os_errors(self._name(path)):
            try:
                return self._describe(path, os.lstat(self.root / path))
            except FileNotFoundError:
                return None

    def is_empty(self) -> bool:
        """Return whether there is nothing at all below, or no such folder yet."""
        with wrapped_os_errors(self.url):
            return not os.path.lexists(self.root) or (self.root.is_dir() and not os.listdir(self.root))

    def holds_folder(self, path: str) -> bool:
        """Return whether there is a folder at `path`."""
        return (self.root / path).is_dir()

    @contextmanager
    def read(self, path: str) -> Iterator[RawSource]:
        """Open one file for reading; symbolic links and special files are refused."""
        with wrapped_os_errors(self._name(path)):
            self._check_parents(path)
            handle = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with io.FileIO(handle, "r") as raw:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise InputError(f"{self._name(path)} is not a regular file")
                yield raw

    @contextmanager
    def create(self, path: str) -> Iterator[RawTarget]:
        """Open a temporary file beside `path` that takes its name when the block ends without an exception."""
        final, process = self.root / path, os.getpid()
        with wrapped_os_errors(self._name(path)):
            self._check_parents(path)
            make_folders(final.parent)
            temporary = final.parent / (TEMPORARY + secrets.token_hex(8))
            with _locked_file(temporary) as raw:
                try:
                    yield raw
                    os.fsync(raw.fileno())
                    os.rename(temporary, final)
                except BaseException:
                    if process == os.getpid():  # not a forked child's to remove
                        temporary.unlink(missing_ok=True)
                    raise
        self._touched.add(final.parent)

    def _check_parents(self, path: str) -> None:
        # A link inside the folder would lead reads and writes out of it.
        at = self.root
        for part in path.split("/")[:-1]:
            at = at / part
            if at.is_symlink():
                raise InputError(f"{at} is a symbolic link", hint="sealed folders and their targets hold no links")

    def move(self, path: str, target: str) -> None:
        """Rename one file inside the folder."""
        with wrapped_os_errors(self._name(target)):
            self._check_parents(path)
            self._check_parents(target)
            make_folders((self.root / target).parent)
            os.rename(self.root / path, self.root / target)
        self.touched(target)

    def remove(self, path: str) -> None:
        """Remove one file; none there is no error."""
        with wrapped_os_errors(self._name(path)):
            (self.root / path).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """Return the file names in one folder, temporary ones left out; none if it is not there."""
        with wrapped_os_errors(self._name(folder)):
            try:
                with os.scandir(self.root / folder) as entries:
                    return sorted(e.name for e in entries if e.is_file() and not e.name.startswith(TEMPORARY))
            except FileNotFoundError:
                return []

    def tidy(self) -> int:
        """Remove temporary files whose writer is gone and return how many that was."""
        if self._only or not self.root.is_dir():
            return 0
        with wrapped_os_errors(self.url):
            paths = [self.root / found.path for found in self._walk(skip_hidden=False)]
            return sum(remove_leftover(path) for path in paths if path.name.startswith(TEMPORARY))

    def settle(self) -> None:
        """Flush the folders that received files."""
        for folder in sorted(self._touched):
            with wrapped_os_errors(str(folder)):
                for at in (folder, *folder.parents):
                    if at.is_dir():  # one that is gone again has no names to keep
                        flush_folder(at)
                    if at == self.root:
                        break
        self._touched.clear()

    def touched(self, path: str) -> None:
        """Note that another process put `path` here, for `settle`."""
        self._touched.add((self.root / path).parent)

    @contextmanager
    def locked(self, wait_s: float = 5.0) -> Iterator[list[int]]:
        """Hold the `.dataset` folder alone; yields the descriptors that worker processes must keep open.

        Raises:
            UnavailableError: Another run holds it for longer than `wait_s` (a killed run's workers end within that).
        """
        folder = self.root / DATASET_FOLDER
        with wrapped_os_errors(str(folder)):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            lock_alone(handle, str(self.root), wait_s)
            yield [handle]
        finally:
            os.close(handle)

    def _name(self, path: str) -> str:
        return str(self.root / path)


def remove_leftover(path: Path) -> bool:
    """Remove a temporary file if nobody holds its lock; return whether it was removed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:  # locked: its writer lives
        return False
    finally:
        os.close(handle)
    return True


@contextmanager
def _locked_file(path: Path) -> Iterator[io.FileIO]:
    with io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "r+") as raw:
        fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
        if os.fstat(raw.fileno()).st_nlink == 0:  # a tidying run was faster than the lock
            raise BlockingIOError(errno.EAGAIN, "taken for a leftover")
        yield raw
