"""Opens and verifies a whole data set.

Trusts the head and the key ring; trusts nothing in the folder. A reader sees every problem of the listing before the
first file is opened, and plaintext appears under its name only after all of its chunks have been verified.
"""

from __future__ import annotations

from strongroom.crypto.keys import KeyRing
from strongroom.errors import InputError
from strongroom.storage.dataset import Head, load_manifest
from strongroom.storage.leftovers import check_settled
from strongroom.storage.places import Location, place
from strongroom.storage.pool import run_tasks
from strongroom.storage.tree_run import (
    OnProgress,
    Run,
    TreeResult,
    check_apart,
    listing_problems,
    reading_task,
    refuse,
    result,
    versions_of,
)
from strongroom.storage.worker import Kind, Setting, Task

__all__ = ["open_tree", "verify_tree"]


def open_tree(
    source: Location,
    target: Location,
    ring: KeyRing,
    head: Head,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    progress: OnProgress | None = None,
    waiting: bool = False,
) -> TreeResult:
    """Open every file that `head` lists into `target`; each appears only after all its chunks have been verified.

    With `waiting`, `head` is one that its owner has yet to approve, so the folder is as a job left it.

    Raises:
        InputError: A file is there with another content and `overwrite` is not set.
        IntegrityError: The folder is not what `head` names.
    """
    here, there = place(source), place(target)
    check_apart(here, there)
    if not waiting:
        check_settled(here)
    manifest = load_manifest(here, head, ring)
    refuse(listing_problems(here, manifest))
    there.tidy()
    tasks: list[Task] = []
    for entry in manifest.entries:
        existing = None if overwrite else there.stat(entry.path)
        if existing is not None and (existing.trouble or existing.size != entry.size):
            raise InputError(
                f"{there.url}/{entry.path} is already there with another content",
                hint="open into an empty folder, or allow overwriting",
            )
        kind: Kind = "open" if existing is None else "compare"
        tasks.append(reading_task(kind, entry))
    setting = Setting(source=here, target=there, ring=ring, dataset_id=head.dataset_id)
    run = Run(tasks, progress, on_done=lambda done: there.touched(done.task.path) if done.task.kind == "open" else None)
    run_tasks(tasks, setting, run, versions=versions_of(manifest), workers=workers)
    there.settle()
    written = sum(task.kind == "open" for task in tasks)
    return result(head, manifest, written=written, kept=len(tasks) - written)


def verify_tree(
    source: Location,
    ring: KeyRing,
    head: Head,
    *,
    workers: int | None = None,
    progress: OnProgress | None = None,
    waiting: bool = False,
) -> TreeResult:
    """Open every chunk of every file that `head` lists, and write nothing; `waiting` as for `open_tree`.

    Raises:
        IntegrityError: Names every file that is not as committed; `details["problems"]` lists path, class, message.
    """
    here = place(source)
    if not waiting:
        check_settled(here)
    manifest = load_manifest(here, head, ring)
    problems = listing_problems(here, manifest)
    known_bad = {problem.details["path"] for problem in problems}
    tasks = [reading_task("verify", entry) for entry in manifest.entries if entry.path not in known_bad]
    setting = Setting(source=here, target=here, ring=ring, dataset_id=head.dataset_id)
    run = Run(tasks, progress, first_error_ends=False)
    run_tasks(tasks, setting, run, versions=versions_of(manifest), workers=workers)
    refuse(problems + run.problems)
    return result(head, manifest, written=len(tasks), kept=0)
