"""Seals a folder into a data set, and moves a data set to a newer key version.

Trusts the source, the head and the key ring; trusts nothing in the sealed folder.

Rules:
    1. Nothing is committed before every file is whole, on disk, under its final name.
    2. Work is skipped only on an authentic note of an earlier run (`journal`).

Files that replace listed ones are renamed into place one by one: between the first rename and the commit, readers of
the old head refuse the replaced files. The same command, run again, finishes the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from strongroom.crypto.keys import KeyRing
from strongroom.errors import InputError, StrongroomError
from strongroom.storage.dataset import (
    DatasetInfo,
    Head,
    HeadStore,
    Manifest,
    ManifestEntry,
    check_path,
    load_manifest,
    read_info,
    remove_stale_manifests,
    tampered,
    write_info,
    write_manifest,
)
from strongroom.storage.files import OWNER_RUN, Expected, open_sealed
from strongroom.storage.journal import Journal
from strongroom.storage.leftovers import check_settled
from strongroom.storage.places import FileStat, LocalPlace, Location, Place, place
from strongroom.storage.pool import Done, run_tasks
from strongroom.storage.tree_run import (
    OnProgress,
    Run,
    TreeResult,
    check_apart,
    listed,
    listing_problems,
    reading_task,
    refuse,
    result,
    versions_of,
)
from strongroom.storage.worker import Setting, Task

__all__ = ["reseal_tree", "seal_tree"]


def seal_tree(
    source: Location,
    target: Location,
    ring: KeyRing,
    heads: HeadStore,
    *,
    info: DatasetInfo,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> TreeResult:
    """Seal every file of `source` into the data set in `target` and commit a head that lists them.

    Files that the data set already lists stay, or are replaced where the source has the same name. Run again after
    an interruption, it seals only what is missing. If nothing changed, the head stays.

    Args:
        source: A folder or one file; symbolic links and special files are refused.
        target: An empty or new folder, or the data set `info`.
        ring: Its current version seals.
        heads: Who keeps the head.
        info: The data set.
        workers: Processes; None for one a core.
        progress: Called often.

    Raises:
        InputError: A file is not allowed, or `target` holds something else.
        IntegrityError: The data set was altered, or someone else committed.
        UnavailableError: No space, or another run is writing there.
    """
    here, there = place(source), place(target)
    check_apart(here, there)
    found = _scan_source(here)
    _prepare_target(there, info, _checked_head(heads.current(info.dataset), info, ring))
    with there.locked() as hold:
        head = _checked_head(heads.current(info.dataset), info, ring)
        check_settled(there)
        there.tidy()
        committed = load_manifest(there, head, ring)
        setting = Setting(source=here, target=there, ring=ring, dataset_id=info.dataset_id)
        _clear_orphans(there, setting, committed, {file.path for file in found})
        journal = Journal(there, info.dataset, ring)
        old = _resealed_before(committed, setting, journal)
        kept = _already_sealed(found, setting, journal) if journal else {}
        tasks = [Task(kind="seal", path=f.path, size=f.size, identity=f.identity) for f in found if f.path not in kept]
        sealed = _run_writing(tasks, setting, journal, progress=progress, workers=workers, hold=hold)
        entries = {entry.path: entry for entry in old.entries} | kept | sealed
        manifest = Manifest(dataset=info.dataset, entries=tuple(entries.values()))
        head = _commit(setting, heads, head, old=committed, new=manifest)
        identities = {file.path: file.identity for file in found}
        journal.replace(
            [
                journal.sealed(e.path, identities[e.path], e.salt, e.key_version)
                for e in (*kept.values(), *sealed.values())
            ]
        )
    return result(head, manifest, written=len(sealed), kept=len(kept))


def _run_writing(
    tasks: Sequence[Task],
    setting: Setting,
    journal: Journal,
    *,
    progress: OnProgress | None,
    workers: int | None,
    hold: Sequence[int],
    versions: Iterable[int] = (),
) -> dict[str, ManifestEntry]:
    """Do sealing or resealing tasks, note each in the journal, return the new entries."""
    written: dict[str, ManifestEntry] = {}

    def note(done: Done) -> None:
        task, entry = done.task, done.entry
        written[task.path] = ManifestEntry.of(task.path, entry)
        setting.target.touched(task.path)
        if task.kind == "seal":
            journal.add(journal.sealed(task.path, task.identity, entry.salt, entry.key_version))

    try:
        run = Run(tasks, progress, on_done=note)
        run_tasks(tasks, setting, run, versions=versions, workers=workers, hold=hold)
    finally:
        journal.flush()
    return written


def _commit(setting: Setting, heads: HeadStore, head: Head, *, old: Manifest, new: Manifest) -> Head:
    if new == old:
        return head
    there = setting.target
    there.settle()
    versions = sorted({setting.ring.current()[0], *(entry.key_version for entry in new.entries)})
    head = heads.commit(head, write_manifest(there, new, setting.ring, OWNER_RUN), versions)
    remove_stale_manifests(there, head)
    return head


def _scan_source(here: Place) -> list[FileStat]:
    """Return the files to seal, or refuse with every name that a data set cannot hold."""
    found, refused = [], []
    for file in here.files():
        try:
            check_path(file.path)
            if file.trouble:
                raise InputError(f"{file.path} is {file.trouble}")
            found.append(file)
        except InputError as exc:
            refused.append(str(exc))
    if refused:
        raise InputError(
            listed(refused),
            hint="a data set holds regular files only: remove, rename or copy these",
            details={"refused": refused},
        )
    return found


def _checked_head(head: Head, info: DatasetInfo, ring: KeyRing) -> Head:
    if (head.dataset, head.key, head.owner) != (info.dataset, info.key, info.owner) or ring.name != head.key:
        raise InputError(
            f"data set {info.dataset} is kept for key {head.key} of owner {head.owner}, "
            f"asked for key {info.key} ({ring.name} held) of owner {info.owner}"
        )
    return head


def _prepare_target(there: Place, info: DatasetInfo, head: Head) -> None:
    known = read_info(there)
    if known is None:
        if isinstance(there, LocalPlace) and not os.path.isdir(there.root):
            empty = True
        else:
            empty = next(iter(there.files()), None) is None and not there.names(".dataset")
        if not empty:
            raise InputError(f"{there.url} is not empty and not a data set", hint="choose a new folder")
        if head.epoch:
            raise tampered("rolled back", there.url, f"the folder is empty, its head is at epoch {head.epoch}")
        write_info(there, info)
    elif known != info:
        raise InputError(f"{there.url} is data set {known.dataset} of key {known.key}, expected {info.dataset}")


def _clear_orphans(there: Place, setting: Setting, old: Manifest, wanted: set[str]) -> None:
    """Remove files that an interrupted run of ours sealed and that the source lost since; refuse any other."""
    for file in list(there.files()):
        if old.find(file.path) is not None or file.path in wanted:
            continue
        try:
            if file.trouble:
                raise InputError(f"it is {file.trouble}")
            with there.read(file.path) as raw:
                open_sealed(raw, setting.ring, Expected(dataset_id=setting.dataset_id, run_id=OWNER_RUN))
        except StrongroomError as exc:
            raise InputError(
                f"{there.url} holds {file.path}, which is not of this data set: {exc}", hint="move it away"
            ) from exc
        there.remove(file.path)


def _already_sealed(found: Sequence[FileStat], setting: Setting, journal: Journal) -> dict[str, ManifestEntry]:
    """Return the files that an earlier run sealed from the same source, under the version that is current now."""
    kept = {}
    version = setting.ring.current()[0]
    for file in found:
        entry = _whole(file.path, setting)
        if entry is None or entry.size != file.size or entry.key_version != version:
            continue
        if journal.holds(journal.sealed(file.path, file.identity, entry.salt, entry.key_version)):
            kept[file.path] = entry
    return kept


def _whole(path: str, setting: Setting) -> ManifestEntry | None:
    """Return what is sealed at `path` if prefix, size and final chunk hold; None otherwise."""
    found = setting.target.stat(path)
    if found is None or found.trouble:
        return None
    try:
        with setting.target.read(path) as raw:
            entry = open_sealed(raw, setting.ring, Expected(dataset_id=setting.dataset_id)).entry
    except StrongroomError:
        return None
    return ManifestEntry.of(path, entry)


def reseal_tree(
    folder: Location,
    ring: KeyRing,
    heads: HeadStore,
    *,
    dataset: str | None = None,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> TreeResult:
    """Move every file of a data set, and its manifest, to the ring's current key version.

    Run again after an interruption, it goes on where it stopped.

    Args:
        folder: The data set.
        ring: Holds the current version and every version that files are under.
        heads: Who keeps the head.
        dataset: The id that `folder` must have; None takes the folder's word for it.
        workers: Processes; None for one a core.
        progress: Called often.

    Raises:
        IntegrityError: The data set was altered, or someone else committed.
        DeniedError: A version is not held.
    """
    at = place(folder)
    info = read_info(at)
    if info is None or dataset not in (None, info.dataset):
        raise InputError(f"{at.url} is not {'a data set' if dataset is None else f'data set {dataset}'}")
    with at.locked() as hold:
        head = _checked_head(heads.current(info.dataset), info, ring)
        check_settled(at)
        at.tidy()
        old = load_manifest(at, head, ring)
        setting = Setting(source=at, target=at, ring=ring, dataset_id=info.dataset_id)
        journal = Journal(at, info.dataset, ring)
        present = _resealed_before(old, setting, journal)
        refuse(listing_problems(at, present))
        version = ring.current()[0]
        stale = [entry for entry in present.entries if entry.key_version != version]
        salts = {entry.path: entry.salt.hex() for entry in old.entries}
        tasks = [replace(reading_task("reseal", entry), committed=salts[entry.path]) for entry in stale]
        sealed = _run_writing(
            tasks, setting, journal, progress=progress, workers=workers, hold=hold, versions=versions_of(present)
        )
        entries = {entry.path: entry for entry in present.entries} | sealed
        manifest = Manifest(dataset=info.dataset, entries=tuple(entries.values()))
        head = _commit(setting, heads, head, old=old, new=manifest)
        journal.replace([])
    return result(head, manifest, written=len(sealed), kept=len(manifest.entries) - len(sealed))


def _resealed_before(old: Manifest, setting: Setting, journal: Journal) -> Manifest:
    """Return `old` with the entries that an interrupted run has already resealed."""
    return Manifest(dataset=old.dataset, entries=tuple(_newer(entry, setting, journal) for entry in old.entries))


def _newer(entry: ManifestEntry, setting: Setting, journal: Journal) -> ManifestEntry:
    now = _whole(entry.path, setting) if journal else None
    if now is None or now.salt == entry.salt or now.size != entry.size:
        return entry
    noted = journal.holds(journal.resealed(entry.path, entry.salt, now.salt, now.key_version))
    return now if noted else entry
