"""A job's view of one sealed data set while it runs: the manifest, plus what this run changed.

This is where a file is accepted or refused: it must be the one that the head's manifest names, or one that this run
wrote. Nothing is committed before the job has ended well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from strongroom.crypto.header import HEADER_BYTES, PREFIX_BYTES, FileHeader
from strongroom.crypto.keys import KeyRing
from strongroom.crypto.stream import FileSecret, Reader, open_prefix, plaintext_size
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.guest.names import NameTree
from strongroom.guest.opening import open_reader, open_regular
from strongroom.guest.session import ServiceSession
from strongroom.keyagent.protocol import FOLDER, OPEN_FILE
from strongroom.storage import leftovers
from strongroom.storage.dataset import (
    Head,
    Manifest,
    ManifestEntry,
    TamperKind,
    check_path,
    load_manifest,
    remove_stale_manifests,
    tampered,
    write_manifest,
)
from strongroom.storage.files import SealedEntry, begin_file, salt_of
from strongroom.storage.leftovers import KEPT_FOLDER
from strongroom.storage.places import DATASET_FOLDER, LocalPlace

__all__ = ["PATIENCE_S", "SealedVolume"]

PATIENCE_S = 60.0
_SHOWN = 20

_log = logging.getLogger(__name__)


class SealedVolume:
    """One volume of the running job; every method may be called from any thread.

    Args:
        name: The volume's name.
        folder: Where the sealed files are (/sealed/<name>).
        mode: `ro` or `rw`.
        ring: The named key.
        head: The released head.
        run_id: Marks the files that this run writes.
        visible_names: Whether folders may be called `column=value`.
        max_bytes: What this run may write, names and contents; None for any number.
        approval: What it writes waits for the owner, so it is committed once, at the end.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        mode: str,
        ring: KeyRing,
        head: Head,
        run_id: bytes,
        visible_names: bool = False,
        max_bytes: int | None = None,
        approval: bool = False,
    ) -> None:
        self._visible_names = visible_names
        self._max_bytes = max_bytes
        self._spent = 0
        self.approval = approval
        self.held = False
        self.left_out: dict[str, str] = {}
        self.name = name
        self.folder = folder
        self.mode = mode
        self._ring = ring
        self._head = self.released = head
        self._run_id = run_id
        self._committed = load_manifest(str(folder), head, ring)
        self.undecided = False  # a commit was sent and not answered
        self._lock = threading.RLock()
        self._take_committed()

    def _take_committed(self) -> None:
        entries = self._committed.entries
        self._files = {e.path: SealedEntry(size=e.size, salt=e.salt, key_version=e.key_version) for e in entries}
        self._open: dict[str, SealedEntry] = {}
        self._names = NameTree(self._files)  # of both
        self._committed_salts = frozenset(e.salt for e in entries)
        self._unchecked: set[str] = set()  # written since the last commit
        self._changed = False

    def paths(self) -> list[tuple[str, int]]:
        """Return every readable file and its plaintext size."""
        with self._lock:
            return sorted((path, file.size) for path, file in self._files.items())

    @property
    def committed(self) -> Head | None:
        """The head that this run committed last; None if it committed nothing."""
        return self._head if self._head != self.released else None

    def holds(self, path: str) -> bool:
        """Return whether there is a readable file at `path`."""
        with self._lock:
            return path in self._files

    def open(self, path: str, prefix: bytes) -> tuple[FileSecret, int]:
        """Return the file secret and size of the file at `path` that begins with `prefix`.

        Raises:
            IntegrityError: Not the file that belongs there; says how.
        """
        check_path(path)
        if len(prefix) != PREFIX_BYTES:
            raise self._tampered("truncated or extended", path, "it is too short to be a sealed file")
        with self._lock:
            file = self._files.get(path)
        if file is None:
            raise self._tampered("added", path, "the manifest does not list it")
        try:
            header = FileHeader.decode(prefix[:HEADER_BYTES])
        except IntegrityError as exc:
            raise self._tampered("swapped or rolled back", path, f"it is not a sealed file: {exc}") from exc
        if (header.key_name, header.dataset_id.hex()) != (self._ring.name, self._head.dataset):
            raise self._tampered("swapped or rolled back", path, "it belongs to another key or data set")
        if salt_of(prefix) != file.salt:
            raise self._tampered("swapped or rolled back", path, "its salt is not the manifest's")
        return open_prefix(self._ring.version(header.key_version), prefix), file.size

    def reader(self, path: str) -> Reader:
        """Return the file at `path`, open for reading; closing it closes the sealed file.

        Raises:
            IntegrityError: Not the file that belongs there, or not there; says how.
        """
        try:
            return open_reader(self.folder, self.name, path, lambda prefix: self.open(path, prefix))
        except IntegrityError:
            # Whoever changes the folder, or waits for approval, has moved what the last commit names: data-set.md §5.
            kept = f"{KEPT_FOLDER}/{self._files[path].salt.hex()}" if path in self._files else ""
            if not kept or self.mode != "ro" or not (self.folder / kept).is_file():
                raise
            return open_reader(self.folder, self.name, path, lambda prefix: self.open(path, prefix), at=kept)

    def failed(self, reason: str) -> None:
        """Do nothing: whoever runs the job asks its views."""

    def create(self, path: str) -> tuple[bytes, FileSecret]:
        """Return prefix and secret for a new file at `path`; it does not exist before `finish`."""
        self._check_writable(path)
        self._check_names(path)
        prefix, secret = self.begin()
        self.claim(path, prefix)
        return prefix, secret

    def begin(self) -> tuple[bytes, FileSecret]:
        """Return prefix and secret for a new file that has no path yet."""
        return begin_file(self._ring, dataset_id=self._head.dataset_id, run_id=self._run_id)

    def claim(self, path: str, prefix: bytes) -> None:
        """Give the file that begins with `prefix`, from `begin`, its path; it does not exist before `finish`."""
        self._check_writable(path)
        self._check_names(path)
        self.spend(len(path.encode()))  # whoever sees the folder sees names too
        with self._lock:
            self._open[path] = SealedEntry.of(prefix, -1)
            self._names.add(path)

    def spend(self, size: int) -> None:
        """Count what this run gives away, sealed or not committed in the end; never less.

        Raises:
            DeniedError: It is more than a key's policy allows.
        """
        with self._lock:
            self._spent += size
            if self._max_bytes is not None and self._spent > self._max_bytes:
                raise DeniedError(
                    f"volume {self.name}: this run wrote {self._spent} bytes, a key's policy allows {self._max_bytes}",
                    hint="write less, or the owner: `strongroom policy outputs KEY --max-mb N`",
                )

    def leave_out(self, path: str, reason: str) -> None:
        """Note what is no file, for the report, which is the host's to read: no more of its name than shows which."""
        self._check_names(path)
        shown = ascii(path[:100])[1:-1]
        self.spend(len(shown))
        if len(self.left_out) < _SHOWN and shown not in self.left_out:
            self.left_out[shown] = reason
        else:
            self.left_out["..."] = "and others"

    def finish(self, path: str, size: int) -> None:
        """Make the created file at `path` readable; it holds `size` plaintext bytes."""
        self._check_writable(path)
        if size >= 1 << 53:
            raise InputError(f"{path} cannot hold {size} bytes")
        with self._lock:
            file = self._open.pop(path, None)
            if file is None:
                raise InputError(f"{path} was not created")
            self._files[path] = replace(file, size=size)
            self._names.add(path)  # a folder of this name may have gone since it was created
            self._unchecked.add(path)
            self._changed = True

    def abort(self, path: str) -> None:
        """Forget a created file that will not be finished."""
        self._check_writable(path)
        with self._lock:
            if self._open.pop(path, None) is not None and path not in self._files:
                self._names.discard(path)

    def rename(self, source: str, target: str) -> None:
        """Follow the renaming of a file or folder."""
        self._check_writable(source)
        self._check_writable(target)
        with self._lock:
            moves = {path: target + path[len(source) :] for path in self._names.below(source)}
            for moved in moves.values():
                self._check_names(moved)
            for path, moved in moves.items():
                for files in (self._files, self._open):
                    if path in files:
                        files[moved] = files.pop(path)
                self._names.discard(path)
                self._names.add(moved)
                self._unchecked.add(moved)
                self.spend(len(moved.encode()))
            self._changed = True

    def delete(self, path: str) -> None:
        """Follow the deletion of a file or of a folder with all below; the top folder is `""`."""
        self._check_removable(path)
        with self._lock:
            for found in self._at(path):
                self._files.pop(found, None)
                self._open.pop(found, None)
                self._names.discard(found)
            self._changed = True

    def keep(self, path: str) -> dict[str, str]:
        """Return path -> name below `.dataset/kept` of the committed files at and below `path`.

        Whoever is about to remove them moves them there instead, so that a run that fails can be undone.
        """
        self._check_removable(path)
        with self._lock:
            found = {p: self._files[p].salt for p in self._at(path) if p in self._files}
            return {p: salt.hex() for p, salt in sorted(found.items()) if salt in self._committed_salts}

    def _at(self, path: str) -> Sequence[str]:
        # A file that is about to become a folder is still a file.
        return [path] if path in self._files else self._names.below(path)

    def list(self, folder: str) -> dict[str, int]:
        """Return name -> plaintext size of what must be in `folder`; folders and open files have sizes of their own."""
        if folder:
            check_path(folder)
        found: dict[str, int] = {}
        with self._lock:
            for name in sorted(self._names.children(folder)):
                size = self.stat(f"{folder}/{name}" if folder else name)
                assert size is not None
                found[name] = size
        return found

    def stat(self, path: str) -> int | None:
        """Return what `list` of its folder says of `path`, without the work of a listing; None if nothing is there."""
        with self._lock:
            if self._names.is_folder(path):
                return FOLDER
            if path in self._files:
                return self._files[path].size
            return OPEN_FILE if path in self._open else None

    def commit(self, session: ServiceSession, *, running: bool = False) -> Head | None:
        """Check that the folder holds exactly this view, seal its manifest and advance the head; None if unchanged.

        Args:
            session: Where the head is kept.
            running: The program goes on: only what it finished since the last commit is checked, and what it is writing
                stays out.

        Raises:
            IntegrityError: A file is missing, strange or plain; or another run committed first.
        """
        with self._lock:
            if self.mode != "rw" or not self._changed or (running and self.approval):
                return None
            if running:
                for path in self._unchecked & self._files.keys():
                    self._check_file(path)
            else:
                self._check_folder()
            entries = tuple(ManifestEntry.of(path, file) for path, file in self._files.items())
            self._flush()
            manifest = Manifest(dataset=self._head.dataset, entries=entries)
            digest = write_manifest(str(self.folder), manifest, self._ring, self._run_id)
            versions = sorted({e.key_version for e in entries} | {self._ring.current()[0]})
            self.undecided = True
            head = session.commit(self._head.owner, self._head, digest, versions)
            self.undecided = False
            if head is None:
                self.held, self._changed = True, False
                if running:  # approval was asked for after it began
                    raise DeniedError(f"volume {self.name}: what it wrote waits for its owner from now on")
                return None
            self._head = head
            self._committed, self._changed = manifest, False
            self._committed_salts = frozenset(e.salt for e in entries)
            self._unchecked.clear()
            leftovers.forget(LocalPlace(self.folder), manifest)
            remove_stale_manifests(str(self.folder), self._head)
            return self._head

    @contextlib.contextmanager
    def changing(self, session: ServiceSession, patience_s: float = PATIENCE_S) -> Iterator[None]:
        """Hold the folder alone while it is changed in place; what is not committed at the end is undone.

        Raises:
            DeniedError: What this run committed waits for the owner.
            IntegrityError: Another run has committed since this one began.
            UnavailableError: Another run holds the folder for longer than `patience_s`.
        """
        if self.mode != "rw":
            yield
            return
        if self.held:  # its policy changed meanwhile; undoing now would take what the owner looks at
            raise DeniedError(f"volume {self.name}: what was written before waits for its owner")
        place = LocalPlace(self.folder)
        with place.locked(patience_s):
            place.tidy()
            if self._is_stale(place, session):
                raise IntegrityError(
                    f"volume {self.name}: another run committed to this data set meanwhile", hint="run the job again"
                )
            remove_stale_manifests(place, self._head)  # of runs that died around their commits
            if leftovers.was_interrupted(place):
                _log.warning("volume=%s a run before did not end: %s", self.name, self._restore(place))
            leftovers.begin_changes(place)
            try:
                yield
            finally:
                if self.undecided:  # the next run looks which head there is
                    _log.warning("volume=%s the commit was not answered: left as it is", self.name)
                elif self.held:
                    _log.info("volume=%s waits for its owner: left as it is", self.name)
                elif self._changed or self._open or place.names(KEPT_FOLDER):
                    _log.info("volume=%s not committed: %s", self.name, self._restore(place))
                else:
                    leftovers.end_changes(place)

    def _restore(self, place: LocalPlace) -> str:
        done = leftovers.restore(place, self._committed)
        with self._lock:
            self._take_committed()
        return f"{done.put_back} files put back, {done.removed} removed"

    def _is_stale(self, place: LocalPlace, session: ServiceSession) -> bool:
        # Who commits removes the manifest before: if ours alone is there, it is the newest. Otherwise, as when a run
        # died around its commit, only the service can tell.
        ours = {self._head.manifest.removeprefix("sha256:")} if self._head.manifest else set()
        manifests = {name for name in place.names(DATASET_FOLDER) if len(name) == 64}
        if manifests == ours and not leftovers.was_interrupted(place):
            return False
        with session.lock:
            return session.key(self._head.owner, self._head.key).heads.get(self._head.dataset) != self._head

    def _check_folder(self) -> None:
        found: set[str] = set()
        for entry in LocalPlace(self.folder).files():
            if entry.path not in self._files:
                what = f"it is {entry.trouble}" if entry.trouble else "this run did not write it sealed"
                raise self._tampered("added", entry.path, what)
            self._check_file(entry.path)
            found.add(entry.path)
        for path in self._files.keys() - found:
            raise self._tampered("dropped", path, "it is not in the folder any more")

    def _flush(self) -> None:
        # A manifest must not outlive a power cut that the names it lists do not.
        place = LocalPlace(self.folder)
        for path in self._unchecked & self._files.keys():
            place.touched(path)
        place.settle()

    def _check_file(self, path: str) -> None:
        file = self._files[path]
        try:
            with open_regular(self.folder / path) as raw:
                prefix = raw.read(PREFIX_BYTES)
                size = raw.seek(0, os.SEEK_END)
        except InputError as exc:
            raise self._tampered("swapped or rolled back", path, str(exc)) from exc
        if salt_of(prefix) != file.salt:
            raise self._tampered("swapped or rolled back", path, "its salt is not the one written")
        if plaintext_size(size) != file.size:
            raise self._tampered("truncated or extended", path, f"it has {size} bytes")

    def _tampered(self, kind: TamperKind, path: str, what: str) -> IntegrityError:
        # A job may have several volumes with files of the same name.
        return tampered(kind, f"{self.name}/{path}", what)

    def _check_writable(self, path: str) -> None:
        check_path(path)
        if self.mode != "rw":
            raise self._read_only(path)

    def _check_removable(self, path: str) -> None:
        # The top folder has no name of its own to be checked.
        if path:
            self._check_writable(path)
        elif self.mode != "rw":
            raise self._read_only("")

    def _check_names(self, path: str) -> None:
        shown = next((part for part in path.split("/")[:-1] if "=" in part), None)
        if shown and not self._visible_names:
            column = shown.partition("=")[0]
            raise DeniedError(
                f"volume {self.name}: folder names are visible to the host, and `{column}=...` would show values of a "
                f"column: write without partitions, or let the job show them: --volume {self.name}=...:rw:names"
            )

    def _read_only(self, path: str) -> DeniedError:
        return DeniedError(f"{path or '/'} is on volume {self.name}, which the job spec gives read-only")
