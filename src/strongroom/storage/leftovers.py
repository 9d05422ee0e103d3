"""Undoing a run that changed a sealed folder in place and did not come to its commit.

A Spark job deletes and replaces files while it runs. What the last commit names is then moved to `.dataset/kept/<salt>`
instead of being removed, so that a run that fails, or dies with its machine, loses nothing. The kept folder exists from
the run's start to its end: where there is one and nobody holds the data set, a run died (docs/formats/data-set.md §5).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from strongroom._unix import flush_folder
from strongroom.crypto.header import HEADER_BYTES, MAGIC, PREFIX_BYTES, FileHeader
from strongroom.errors import InputError, StrongroomError, UnavailableError
from strongroom.storage.dataset import Manifest
from strongroom.storage.files import read_prefix, salt_of
from strongroom.storage.places import DATASET_FOLDER, FileStat, LocalPlace, Place, wrapped_os_errors

__all__ = [
    "KEPT_FOLDER",
    "Restored",
    "begin_changes",
    "check_settled",
    "end_changes",
    "forget",
    "restore",
    "was_interrupted",
]

KEPT_FOLDER = f"{DATASET_FOLDER}/kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What `restore` did.

    Attributes:
        put_back: Committed files that are in their place again.
        removed: Files of the run that did not commit.
    """

    put_back: int
    removed: int


def begin_changes(place: LocalPlace) -> None:
    """Note that a run changes the folder from now on; the caller holds the data set (`LocalPlace.locked`)."""
    with wrapped_os_errors(place.url):
        (place.root / KEPT_FOLDER).mkdir(exist_ok=True)
        flush_folder(place.root / DATASET_FOLDER)


def check_settled(place: Place) -> None:
    """Refuse a folder that a job is changing, or changed without coming to its end.

    Raises:
        UnavailableError: Says how to go on.
    """
    if was_interrupted(place):
        raise UnavailableError(
            f"a job is changing {place.url}, or did not end",
            hint=f"wait for the job, or undo it: strongroom data restore {place.url}",
        )


def was_interrupted(place: Place) -> bool:
    """Return whether a run began to change the folder and did not end."""
    return place.holds_folder(KEPT_FOLDER)


def forget(place: LocalPlace, manifest: Manifest) -> None:
    """Remove kept files that a new commit does not name: a stream that runs for weeks must not keep all it deleted."""
    named = {entry.salt.hex() for entry in manifest.entries}
    for name in place.names(KEPT_FOLDER):
        if name not in named:
            place.remove(f"{KEPT_FOLDER}/{name}")


def end_changes(place: LocalPlace) -> None:
    """Forget what was kept, after a commit."""
    kept = place.root / KEPT_FOLDER
    with wrapped_os_errors(place.url):
        if kept.is_dir():
            for name in os.listdir(kept):
                (kept / name).unlink()
            kept.rmdir()


def restore(place: LocalPlace, manifest: Manifest) -> Restored:
    """Make the folder again what `manifest` says, and forget what was kept.

    Removed are sealed files of this data set that `manifest` does not name, files that a writer had only begun, and
    what lies where a kept file belongs. Any other strange file stays, and a committed one that is nowhere stays
    missing: reading refuses both.

    Raises:
        InputError: A kept file's place is taken by a folder with strange files; nothing kept is lost.
    """
    begin_changes(place)
    missing = {entry.salt: entry.path for entry in manifest.entries}
    strange: dict[str, bytes | None] = {}
    for found in list(place.files()):
        salt = None if found.trouble else _salt(place, found, manifest.dataset)
        entry = manifest.find(found.path)
        if entry is not None and entry.salt == salt:
            del missing[salt]
        else:
            strange[found.path] = salt
    kept = set(place.names(KEPT_FOLDER))
    removed = 0
    for path, salt in strange.items():
        entry = manifest.find(path)
        if salt in missing and salt.hex() not in kept:  # renamed by the run
            place.move(path, f"{KEPT_FOLDER}/{salt.hex()}")
            kept.add(salt.hex())
        elif salt is not None or (entry is not None and entry.salt.hex() in kept):
            place.remove(path)
            removed += 1
    with wrapped_os_errors(place.url):
        _remove_empty_folders(place.root)
    back = {salt.hex(): path for salt, path in missing.items() if salt.hex() in kept}
    for name, path in back.items():
        if place.stat(path) is not None:
            raise InputError(f"{place.url}/{path} is in the way of a kept file", hint="move it away and try again")
        place.move(f"{KEPT_FOLDER}/{name}", path)
    place.settle()
    end_changes(place)
    return Restored(put_back=len(back), removed=removed)


def _salt(place: LocalPlace, found: FileStat, dataset: str) -> bytes | None:
    """Return the salt of a sealed file of the data set; empty for one that was only begun, None for any other file."""
    try:
        with place.read(found.path) as raw:
            prefix = read_prefix(raw)
        if len(prefix) < PREFIX_BYTES:
            return b"" if MAGIC.startswith(prefix[: len(MAGIC)]) else None
        header = FileHeader.decode(prefix[:HEADER_BYTES])
    except StrongroomError:
        return None
    return salt_of(prefix) if header.dataset_id.hex() == dataset else None


def _remove_empty_folders(root: Path) -> None:
    folders = [os.fspath(root)]
    for folder in folders:  # which grow
        with os.scandir(folder) as entries:
            folders += [e.path for e in entries if e.is_dir(follow_symlinks=False) and e.name != DATASET_FOLDER]
    for folder in reversed(folders[1:]):
        if not os.listdir(folder):
            os.rmdir(folder)
