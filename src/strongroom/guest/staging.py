"""Staged volumes: opened into enclave memory before the program starts, sealed again after it has ended well.

Those that a program writes to, and all of them where the sandbox has no views (views.py). A job may ask for
checkpoints: what is whole by then is sealed and committed while the program runs, and the next run goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom._unix import WrittenEarly, flush_files, make_folders
from strongroom.crypto.keys import FileSecret
from strongroom.crypto.stream import RawSource, Writer, sealed_size
from strongroom.errors import DeniedError, InputError, StrongroomError, UnavailableError
from strongroom.guest.scratch import (
    Identity,
    digest,
    follow,
    freeze,
    identity,
    is_frozen,
    leads_to,
    look,
    open_plain,
    put_plain,
)
from strongroom.guest.session import ServiceSession
from strongroom.guest.straight import STRAIGHT_FOLDER, Found, StraightFile, walk
from strongroom.guest.volumes import SealedVolume
from strongroom.keyagent.protocol import FOLDER
from strongroom.storage.leftovers import KEPT_FOLDER
from strongroom.storage.places import TEMPORARY, LocalPlace

__all__ = ["StagedVolume"]

_log = logging.getLogger(__name__)

_TICK_NS = 50_000_000
"""A file that changed later than this ago may change again without its times showing it."""

_LARGE = 16 << 20
"""From here on the disk is asked for its room before it is written to."""

_Source = tuple[Identity, bytes]
"""Of a file that was sealed or opened: what the file system said (size -1: not to be relied on), and its SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    path: str
    beside: Path
    size: int
    source: _Source
    straight: StraightFile | None = None


class StagedVolume:
    """A sealed volume and its plain copy in enclave memory.

    Args:
        volume: The sealed side.
        place: The plain side, on a memory file system (/work/<name>).
        find_straight: Returns the sealed file that a link to this path stands for.
        holes: See `put_plain`.
    """

    def __init__(
        self,
        volume: SealedVolume,
        place: Path,
        find_straight: Callable[[str], StraightFile | None] = lambda _link: None,
        *,
        holes: bool = True,
    ) -> None:
        self.volume = volume
        self.place = place
        self._find_straight = find_straight
        self._holes = holes
        self._seen: dict[str, _Source] = {}
        self._alone = threading.Lock()  # checkpoints and fsyncs come from threads of their own

    def open_all(self) -> None:
        """Open every file of the volume into the place.

        Raises:
            IntegrityError: A file is not what the manifest says.
            UnavailableError: Enclave memory is full.
        """
        self.place.mkdir(exist_ok=True)
        for path, _ in self.volume.paths():
            target = self.place / path
            make_folders(target.parent)
            try:
                with self.volume.reader(path) as reader:
                    put_plain(reader, target, holes=self._holes)
            except OSError as exc:
                raise UnavailableError(
                    f"volume {self.volume.name}: {path} does not fit into enclave memory: {exc.strerror}",
                    hint="raise scratch_mb in [sandbox]",
                ) from exc
            if self.volume.mode == "ro":
                target.chmod(0o444)
            if self.volume.mode == "rw":
                with open(target, "rb", buffering=0) as written:
                    self._seen[path] = identity(target.lstat()), digest(written)

    def checkpoint(self, session: ServiceSession, check: Callable[[], None] = lambda: None) -> None:
        """Seal and commit what is whole while the program runs: files that nobody has open for writing.

        Any other file stays as it was at the last commit, or out of it. If a folder came, went or was renamed
        meanwhile, nothing is committed: what is in a folder that is put in its place whole stays together.

        Args:
            session: Where the head is kept.
            check: Raises if the job may not commit, asked again after everything is sealed.

        Raises:
            StrongroomError: Nothing was committed; `SealedVolume.undecided` says whether that is sure.
        """
        if self.volume.mode != "rw" or self.volume.approval:
            return
        check()
        with self._alone, self.volume.changing(session):
            folders = self._folders()
            sealed, found = self._seal_new(running=True)
            removed = sorted(self._seen.keys() - found)
            with self._kept_whole(sealed):
                gone = {self._seen[path][0][3] for path in removed}
                if folders != self._folders() or any(i in gone for p, i in self._inodes().items() if p not in found):
                    raise UnavailableError("folders were moved while it was taken")
                check()
            if sealed or removed:
                self._replace(sealed, removed)
                self.volume.commit(session)
            self._seen = {p: i for p, i in self._seen.items() if p in found} | {f.path: f.source for f in sealed}

    def sync(
        self, wanted: Collection[int] | None, session: ServiceSession, check: Callable[[], None] = lambda: None
    ) -> set[int]:
        """Seal and commit files as they are now, whoever has them open; return those that cannot be sealed.

        Links to such a file come along. Names that it had at the last commit and has no more go; where its name was
        another file's, that one comes along under the name that it has now: nothing that was committed is lost to a
        renaming.

        Args:
            wanted: Inode numbers, of any files; None for all that there are.
            session: Where the head is kept.
            check: As for `checkpoint`.

        Raises:
            StrongroomError: As `checkpoint`; UnavailableError also if files were moved meanwhile.
        """
        check()
        with self._alone:
            found = list(self._walk())
            files = [f for f in found if not f.is_folder]
            now = {f.path: f.inode for f in files}
            had = {path: identity[3] for path, (identity, _) in self._seen.items()}
            all_of = {*now.values(), *had.values()} if wanted is None else set(wanted)
            all_of |= {f.inode for f in files if f.link and self._leads_to(f.path) in all_of}
            while more := {j for p, i in now.items() if i in all_of for j in self._replaced(p, had)} - all_of:
                all_of |= more
            here = {p: i for p, i in now.items() if i in all_of}
            removed = sorted(p for p, i in had.items() if i in all_of and p not in now)
            if not here and not removed:
                # What lies in a folder that was moved while it was looked for was not seen.
                if any((i := self._lstat(f.path)) is None or i.st_ino != f.inode for f in found if f.is_folder):
                    raise UnavailableError("files were moved meanwhile")
                return set()
            with self.volume.changing(session):
                sealed, left = self._seal_as_is(here)
                removed = [path for path in removed if had[path] not in left]
                with self._kept_whole(sealed):
                    again = self._inodes()
                    if here != {p: i for p, i in again.items() if i in all_of} or again.keys() & removed:
                        raise UnavailableError("files were moved meanwhile")
                    check()
                if sealed or removed:
                    self._replace(sealed, removed)
                    self.volume.commit(session, running=True)
            self._seen = {p: s for p, s in self._seen.items() if p not in removed} | {f.path: f.source for f in sealed}
        return left

    def links_to(self, straight: str) -> set[int]:
        """Return the inode numbers of links that lead to a file outside, which `sync` takes as what it stands for."""
        return {found.inode for found in self._walk() if found.link and self._outside(found.path) == straight}

    def _seal_as_is(self, here: Mapping[str, int]) -> tuple[list[_Sealed], set[int]]:
        sealed: list[_Sealed] = []
        left = set()
        with self._kept_whole(sealed):
            for path, inode in here.items():
                with contextlib.suppress(OSError, InputError):  # moved: the caller finds that
                    if self._is_same(path, running=False):
                        continue
                file = self._seal_path(path, sealed, running=True, as_is=True)
                if file is None:
                    left.add(inode)
                    continue
                sealed.append(file)
                if file.source[0][3] != inode:
                    raise UnavailableError("files were moved meanwhile")
            self._flush(sealed)
        return sealed, left

    def seal_changes(self, left_out: Collection[str] = ()) -> None:
        """Seal every new or changed file, and drop those that the program removed; it has ended.

        Nothing under a final name changes before all of it is sealed. A link to a file of the volume is sealed as a
        copy of that. Any other link, or pipe, is left out, and the volume says so: a name that was a file at the last
        commit stays that.

        Args:
            left_out: Paths of such, where the program's process has files of its own.

        Raises:
            DeniedError: A name shows more than the job may.
            InputError: The program left a file whose name no data set may hold, or that cannot be read.
            UnavailableError: The disk is full.
        """
        if self.volume.mode == "rw":
            for path in left_out:  # first, as it may be refused
                self.volume.leave_out(path, "neither a file, nor a folder, nor a link to a file of the volume")
            sealed, found = self._seal_new(running=False)
            for path in left_out:
                found |= {old for old in self._seen if old == path or old.startswith(f"{path}/")}
            self._replace(sealed, sorted(self._seen.keys() - found))

    def _seal_new(self, *, running: bool) -> tuple[list[_Sealed], set[str]]:
        found: set[str] = set()
        sealed: list[_Sealed] = []
        had = {path: identity[3] for path, (identity, _) in self._seen.items()}
        known = set(had.values())
        with self._kept_whole(sealed):
            for path in self._outputs():
                try:
                    same = self._is_same(path, running=running)
                    # What was committed under another name would be lost with that, were it left out.
                    inode = (self.place / path).lstat().st_ino
                    moved = running and inode in known and had.get(path) != inode
                except OSError:  # it was there a moment ago
                    if not running:
                        raise
                    continue
                found.add(path)
                file = None if same else self._seal_path(path, sealed, running=running, as_is=moved)
                if file is not None:
                    sealed.append(file)
                elif not same:
                    # What cannot be sealed stays under its old name, or below it where there was a folder.
                    found |= {old for old, i in had.items() if (moved and i == inode) or old.startswith(f"{path}/")}
            self._flush(sealed)
        return sealed, found

    def _is_same(self, path: str, *, running: bool) -> bool:
        info = (self.place / path).lstat()
        known, content = self._seen.get(path, ((-1, 0, 0, 0), b""))
        if (straight := self._straight(path)) is not None:
            return (known, content) == (identity(info), straight.prefix)
        try:
            now = look(self.place, path)
            if known != now or running:
                return known == now
            # A page that was read before it is written through a mapping changes no time.
            with open_plain(self.place, path) as raw:
                return digest(raw) == content
        except (InputError, FileNotFoundError):  # a link to no file
            return False

    def _folders(self) -> dict[str, int]:
        return {"": self.place.lstat().st_ino} | {f.path: f.inode for f in self._walk() if f.is_folder}

    def _leads_to(self, path: str) -> int | None:
        try:
            return leads_to(self.place, path)[3]
        except (InputError, OSError):  # to no file
            return None

    def _replaced(self, path: str, had: Mapping[str, int]) -> set[int]:
        # What the last commit has where a file is now: under its name, as a file where its folders are, or below it.
        names = {path, *map(str, Path(path).parents)} & had.keys()
        if self.volume.stat(path) == FOLDER:
            names |= {p for p in had if p.startswith(f"{path}/")}
        return {had[name] for name in names}

    def _inodes(self) -> dict[str, int]:
        return {f.path: f.inode for f in self._walk() if not f.is_folder}

    def _outputs(self) -> Iterator[str]:
        for found in self._walk():
            if not found.is_folder:
                yield found.path

    def _walk(self) -> Iterator[Found]:
        try:
            yield from walk(self.place)
        except OSError as exc:  # what is in there is not gone, so nothing can be said of the whole
            hint = "nest them less deep" if exc.errno == errno.ENAMETOOLONG else "leave folders readable"
            raise UnavailableError(
                f"a folder of volume {self.volume.name} cannot be listed: {exc.strerror}", hint=hint
            ) from exc

    def _seal_path(self, path: str, sealed: Sequence[_Sealed], *, running: bool, as_is: bool = False) -> _Sealed | None:
        info = self._lstat(path)  # before it is read: another may take its place
        straight = self._straight(path)
        if straight is None or info is None:
            return self._seal_one(path, running=running, as_is=as_is)
        copied = straight.placed or any(file.straight is straight for file in sealed)
        try:
            return self._place_straight(path, straight, (identity(info), straight.prefix), copied=copied)
        except InputError:
            if running:  # a name that no data set may hold: at the end it must be gone
                return None
            raise

    def _lstat(self, path: str) -> os.stat_result | None:
        try:
            return (self.place / path).lstat()
        except OSError:  # gone
            return None

    def _seal_one(self, path: str, *, running: bool, as_is: bool = False) -> _Sealed | None:
        beside, what, name = self._new_beside(), self._shown(path), self._lstat(path)
        try:
            source = open_plain(self.place, path)
        except (InputError, OSError) as exc:
            if not running:
                self._leave_out(path, what, exc)
            return None
        with source as raw:
            if running and not freeze(raw) and not as_is:
                return None
            info, looked_ns = os.fstat(raw.fileno()), time.time_ns()
            try:
                prefix, secret = self.volume.create(path)
            except (InputError, DeniedError):
                if running:  # a name that no data set may hold: at the end it must be gone
                    return None
                raise
            with self._writing(what, (path, beside)):
                self.volume.spend(info.st_size)
                self._check_room(info.st_size)
                counted = _Counted(raw, what, info.st_size, running=running, may_grow=as_is)
                size = _write(beside, prefix, secret, counted)
            if running and not as_is and not is_frozen(raw):
                self._drop(path, beside)
                return None
        settled = not running or (looked_ns if as_is else time.time_ns()) - info.st_ctime_ns > _TICK_NS
        _, written, changed, number = identity(info)
        if name is not None and stat.S_ISLNK(name.st_mode):
            number = name.st_ino
        known = (info.st_size if settled else -1, written, changed, number)
        return _Sealed(path=path, beside=beside, size=size, source=(known, counted.digest.digest()))

    def _leave_out(self, path: str, what: str, exc: InputError | OSError) -> None:
        if Path(self._outside(path)).is_relative_to(self.place.parent / STRAIGHT_FOLDER):
            raise InputError(f"{what} cannot be sealed: it was not written whole", hint="save it again") from exc
        if isinstance(exc, OSError):
            raise InputError(f"{what} cannot be sealed: {exc.strerror}", hint="leave files readable") from exc
        self.volume.leave_out(path, str(exc))

    def _straight(self, path: str) -> StraightFile | None:
        outside = self._outside(path)
        return self._find_straight(outside) if outside else None

    def _outside(self, path: str) -> str:
        try:
            return follow(self.place, path)[1] if (self.place / path).is_symlink() else ""
        except (InputError, OSError):
            return ""

    def _place_straight(self, path: str, file: StraightFile, known: _Source, *, copied: bool) -> _Sealed:
        if file.volume is self.volume and not copied:
            self.volume.claim(path, file.prefix)
            return _Sealed(path=path, beside=file.beside, size=file.size, source=known, straight=file)
        beside = self._new_beside()
        prefix, secret = self.volume.create(path)
        with self._writing(self._shown(path), (path, beside)), file.reader() as source:
            self.volume.spend(file.size)
            self._check_room(file.size)
            size = _write(beside, prefix, secret, source)
        return _Sealed(path=path, beside=beside, size=size, source=known)

    def _new_beside(self) -> Path:
        return self.volume.folder / f"{TEMPORARY}{os.urandom(8).hex()}"

    def _check_room(self, size: int) -> None:
        # A file that is mostly holes may be larger than any disk: others have theirs on this one. Where there are no
        # holes no file is larger than enclave memory, and what a LibOS says of a disk may be a constant.
        if size <= _LARGE or not self._holes:
            return
        try:
            disk = os.statvfs(self.volume.folder)
        except OSError:  # it does not say
            return
        left = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and sealed_size(size) > left:
            raise OSError(errno.ENOSPC, f"it has {size} bytes, holes are sealed as zeros, the disk has {left} left")

    def _shown(self, path: str) -> str:
        return f"output {self.volume.name}/{ascii(path[:100])[1:-1]}"  # to the host: no more of it than names a file

    @contextlib.contextmanager
    def _writing(self, what: str, begun: tuple[str, Path] | None = None) -> Iterator[None]:
        # What a failure leaves half written goes.
        try:
            yield
        except (OSError, StrongroomError) as exc:
            if begun is not None:
                self._drop(*begun)
            if isinstance(exc, StrongroomError):
                raise
            raise UnavailableError(
                f"{what} could not be written: {exc.strerror}", hint="free disk space, run again"
            ) from exc

    @contextlib.contextmanager
    def _kept_whole(self, sealed: Sequence[_Sealed]) -> Iterator[None]:
        # All of them, or none.
        try:
            yield
        except BaseException:
            for file in sealed:
                self._drop(file.path, None if file.straight else file.beside)
            raise

    def _drop(self, path: str, beside: Path | None) -> None:
        if beside is not None:
            beside.unlink(missing_ok=True)
        self.volume.abort(path)

    def _flush(self, sealed: Sequence[_Sealed]) -> None:
        with self._writing(f"outputs of {self.volume.name}"):
            flush_files([file.beside for file in sealed if file.straight is None])

    def _replace(self, sealed: Sequence[_Sealed], removed: Sequence[str]) -> None:
        with self._writing(f"outputs of {self.volume.name}"):
            self._move_in(sealed, removed)

    def _move_in(self, sealed: Sequence[_Sealed], removed: Sequence[str]) -> None:
        place, names = LocalPlace(self.volume.folder), [file.path for file in sealed]
        for path, kept in {p: k for old in (*removed, *names) for p, k in self.volume.keep(old).items()}.items():
            place.move(path, f"{KEPT_FOLDER}/{kept}")
        for path in removed:
            place.remove(path)
            self.volume.delete(path)
            _remove_empty(self.volume.folder, Path(path).parent)
        for file in sealed:
            target = self.volume.folder / file.path
            make_folders(target.parent)
            file.beside.replace(target)
            if file.straight is not None:
                file.straight.placed = True
            self.volume.finish(file.path, file.size)
            place.touched(file.path)
        place.settle()


def _write(beside: Path, prefix: bytes, secret: FileSecret, source: RawSource) -> int:
    # Flushed with the others.
    with open(beside, "xb", buffering=0) as out, Writer(WrittenEarly(out), prefix, secret) as writer:
        writer.copy_from(source)
    return writer.size


class _Counted:
    """A file that ends where it was counted, before more of it is sealed; one that has more by then is refused."""

    def __init__(self, raw: io.FileIO, what: str, counted: int, *, running: bool, may_grow: bool) -> None:
        self._raw, self._what, self._counted = raw, what, counted
        self._running, self._may_grow = running, may_grow
        self.seek, self.tell = raw.seek, raw.tell
        self.digest = hashlib.sha256()

    def readinto(self, buffer: memoryview, /) -> int | None:
        left = self._counted - self._raw.tell()
        if left <= 0 and not self._may_grow and self._raw.read(1):
            raise UnavailableError(f"{self._what} grew while it was sealed: expected {self._counted} bytes, got more")
        got = self._raw.readinto(buffer[: max(left, 0)])
        if self._running:
            self.digest.update(buffer[: got or 0])
        return got


def _remove_empty(root: Path, folder: Path) -> None:
    # A program may have put a file where a folder was.
    while folder != Path("."):
        try:
            (root / folder).rmdir()
        except OSError:
            return
        folder = folder.parent
