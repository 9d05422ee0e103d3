"""Changes of single files of a data set by its owner: written, renamed, removed; all at once or not at all.

A file is sealed beside its place as it is written. Only when all are whole, what the last commit names is moved out of
the way (leftovers.py), the new files take their names, and the head is advanced: whoever dies in between has lost
nothing, `strongroom data restore` puts it back. Rules of docs/formats/data-set.md §5.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from types import MappingProxyType

from strongroom.crypto.keys import KeyRing
from strongroom.crypto.stream import Writer
from strongroom.errors import StrongroomError, UnavailableError
from strongroom.storage import leftovers
from strongroom.storage.dataset import (
    Head,
    HeadStore,
    Manifest,
    ManifestEntry,
    check_path,
    load_manifest,
    remove_stale_manifests,
    write_manifest,
)
from strongroom.storage.files import OWNER_RUN, SealedEntry, begin_file
from strongroom.storage.places import LocalPlace

__all__ = ["NewFile", "change_files"]


class NewFile:
    """A file that is sealed as it is written; whole after `close`, in its place after `change_files`.

    Args:
        at: The data set's folder.
        ring: Its current version seals.
        dataset: Id of the data set.
        path: In the data set.
    """

    def __init__(self, at: LocalPlace, ring: KeyRing, dataset: str, path: str) -> None:
        self.path = check_path(path)
        self._prefix, secret = begin_file(ring, dataset_id=bytes.fromhex(dataset))
        with contextlib.ExitStack() as begun:
            self._writer = Writer(begun.enter_context(at.create(path)), self._prefix, secret)
            self._held = begun.pop_all()

    def write(self, data: bytes | memoryview, /) -> int:
        """Seal all of `data` and return its length."""
        return self._writer.write(data)

    def close(self) -> None:
        """Seal the last chunk."""
        self._writer.close()

    @property
    def size(self) -> int:
        """Plaintext bytes so far."""
        return self._writer.size

    @property
    def entry(self) -> ManifestEntry:
        """Return what the manifest will say of it."""
        return ManifestEntry.of(self.path, SealedEntry.of(self._prefix, self.size))

    def put(self) -> None:
        """Give the whole file its name."""
        self._held.close()

    def discard(self) -> None:
        """Leave nothing of it, unless it has its name."""
        self._writer.abort()
        self._held.__exit__(GeneratorExit, GeneratorExit(), None)


def change_files(
    at: LocalPlace,
    ring: KeyRing,
    heads: HeadStore,
    dataset: str,
    *,
    new: Sequence[NewFile] = (),
    removed: Sequence[str] = (),
    moved: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Head, Manifest]:
    """Make the changes and commit them; return head and manifest.

    Args:
        at: The data set's folder.
        ring: Opens and seals its manifest.
        heads: Who keeps the head.
        dataset: Its id.
        new: Whole files; each takes the place of what is there.
        removed: Paths that are removed.
        moved: Old path -> new path; what is there is replaced.

    Raises:
        FileNotFoundError: There is no such file to remove or move.
        InputError: A name that a data set cannot hold, or a file where a folder is.
        IntegrityError: Someone else committed, or the data set was altered.
        UnavailableError: Another run is writing there, or the service does not answer.
    """
    with contextlib.ExitStack() as held:
        for file in new:
            held.callback(file.discard)  # what has its name stays
        held.enter_context(at.locked())
        leftovers.check_settled(at)
        head = heads.current(dataset)
        old = load_manifest(at, head, ring)
        manifest, arriving = _changed(old, new, removed, moved)
        if manifest == old:
            return head, old
        leftovers.begin_changes(at)
        asked = False
        try:
            _move(at, old, manifest, arriving)
            for file in new:
                file.put()
            at.settle()
            digest = write_manifest(at, manifest, ring, OWNER_RUN)
            versions = sorted({ring.current()[0], *(entry.key_version for entry in manifest.entries)})
            asked = True
            head = heads.commit(head, digest, versions)
        except BaseException as exc:
            refused = isinstance(exc, StrongroomError) and not isinstance(exc, UnavailableError)
            if asked and not refused:  # the head may have moved: whoever restores looks which there is
                raise UnavailableError(
                    f"{at.url}: the trust service did not answer whether it committed",
                    hint=f"strongroom data restore {at.url}",
                ) from exc
            leftovers.restore(at, old)
            raise
        leftovers.end_changes(at)
        remove_stale_manifests(at, head)
        return head, manifest


def _changed(
    old: Manifest, new: Sequence[NewFile], removed: Sequence[str], moved: Mapping[str, str]
) -> tuple[Manifest, list[ManifestEntry]]:
    """Return the manifest after the changes, and the entries of files that were moved."""
    entries = {entry.path: entry for entry in old.entries}
    missing = next((path for path in (*removed, *moved) if path not in entries), None)
    if missing is not None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), missing)
    arriving = [replace(entries[path], path=target) for path, target in moved.items()]
    for path in (*removed, *moved):
        entries.pop(path, None)
    entries |= {entry.path: entry for entry in (*arriving, *(file.entry for file in new))}
    return Manifest(dataset=old.dataset, entries=tuple(entries.values())), arriving


def _move(at: LocalPlace, old: Manifest, new: Manifest, arriving: Sequence[ManifestEntry]) -> None:
    for entry in old.entries:
        if new.find(entry.path) != entry:
            at.move(entry.path, f"{leftovers.KEPT_FOLDER}/{entry.salt.hex()}")
            with contextlib.suppress(OSError):  # its name shows, and a file may get it
                for folder in PurePath(entry.path).parents[:-1]:
                    (at.root / folder).rmdir()
    for entry in arriving:
        if new.find(entry.path) == entry:
            at.move(f"{leftovers.KEPT_FOLDER}/{entry.salt.hex()}", entry.path)
