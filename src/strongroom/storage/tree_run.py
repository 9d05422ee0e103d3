"""What sealing and reading a tree have in common: counting, progress, and the refusals of data-set.md §4."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strongroom.crypto.stream import sealed_size
from strongroom.errors import InputError, IntegrityError, StrongroomError
from strongroom.storage.dataset import Head, Manifest, ManifestEntry, tampered
from strongroom.storage.places import LocalPlace, Place
from strongroom.storage.pool import Done, Event, Failed, Moved
from strongroom.storage.worker import Kind, Task

__all__ = [
    "OnProgress",
    "Progress",
    "Run",
    "TreeResult",
    "check_apart",
    "listed",
    "listing_problems",
    "reading_task",
    "refuse",
    "result",
    "versions_of",
]

_SHOWN = 20
_PUT_BACK = "put the files back from a copy; to go on with an older copy of all: `strongroom data accept-epoch`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; bytes are plaintext."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeResult:
    """What a run did.

    Attributes:
        head: After the run.
        files: In the data set.
        size_bytes: Plaintext of all of them.
        written: Files sealed, opened, verified or resealed by this run.
        kept: Files that an earlier run had finished.
    """

    head: Head
    files: int
    size_bytes: int
    written: int
    kept: int


OnProgress = Callable[[Progress], None]


class Run:
    """Counts what happens, reports progress, collects results and problems."""

    def __init__(
        self,
        tasks: Sequence[Task],
        on_progress: OnProgress | None,
        *,
        on_done: Callable[[Done], None] | None = None,
        first_error_ends: bool = True,
    ) -> None:
        self._on_progress = on_progress
        self._on_done = on_done
        self._first_error_ends = first_error_ends
        self._files_total = len(tasks)
        self._bytes_total = sum(task.size for task in tasks)
        self._files = self._bytes = 0
        self.problems: list[StrongroomError] = []

    def __call__(self, event: Event) -> None:
        """Take note of `event`; raises what failed, if the first error ends the run."""
        if isinstance(event, Moved):
            self._bytes += event.size
        else:
            self._files += 1
        if isinstance(event, Failed):
            if self._first_error_ends:
                raise event.error
            self.problems.append(event.error)
        if isinstance(event, Done) and self._on_done is not None:
            self._on_done(event)
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    files_done=self._files,
                    files_total=self._files_total,
                    bytes_done=self._bytes,
                    bytes_total=self._bytes_total,
                )
            )


def result(head: Head, manifest: Manifest, *, written: int, kept: int) -> TreeResult:
    """Return what a run did with `manifest`."""
    size = sum(entry.size for entry in manifest.entries)
    return TreeResult(head=head, files=len(manifest.entries), size_bytes=size, written=written, kept=kept)


def check_apart(here: Place, there: Place) -> None:
    """Refuse a source and a target that lie in each other."""
    if isinstance(here, LocalPlace) and isinstance(there, LocalPlace):
        if os.path.isfile(there.url):
            raise InputError(f"{there.url} is a file", hint="name a folder")
        one, other = os.path.realpath(here.url), os.path.realpath(there.url)
        if os.path.commonpath([one, other]) in (one, other):
            raise InputError(f"{here.url} and {there.url} lie in each other", hint="choose separate folders")
    elif here.url == there.url:
        raise InputError(f"{here.url} is both source and target")


def listed(messages: Sequence[str]) -> str:
    """Return the first messages, and how many more there are."""
    shown = sorted(messages)[:_SHOWN]
    more = len(messages) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def listing_problems(here: Place, manifest: Manifest) -> list[StrongroomError]:
    """Return what the folder's listing alone tells (data-set.md §4)."""
    problems: list[StrongroomError] = []
    missing = {entry.path for entry in manifest.entries}
    for file in here.files():
        entry = manifest.find(file.path)
        missing.discard(file.path)
        if entry is None:
            problems.append(tampered("added", file.path, "the manifest does not list it"))
        elif file.trouble:
            problems.append(tampered("swapped or rolled back", file.path, f"it is {file.trouble}"))
        elif file.size != sealed_size(entry.size):
            size = f"{file.size} sealed bytes, expected {sealed_size(entry.size)}"
            problems.append(tampered("truncated or extended", file.path, size))
    problems += [tampered("dropped", path, "the manifest lists it, the folder does not hold it") for path in missing]
    return problems


def refuse(problems: Sequence[StrongroomError]) -> None:
    """Raise the one problem, or one error that names them all."""
    if not problems:
        return
    # A file that cannot be read is no reason to go back to an older state.
    altered = all(isinstance(problem, IntegrityError) for problem in problems)
    hint = _PUT_BACK if altered else next((p.hint for p in problems if p.hint), "")
    found = [
        {"path": str(p.details.get("path", "")), "class": str(p.details.get("class", p.code)), "message": str(p)}
        for p in sorted(problems, key=str)
    ]
    if len(problems) == 1:
        problems[0].details["problems"] = found
        problems[0].hint = problems[0].hint or hint
        raise problems[0]
    said = f"{len(problems)} problems: {listed([str(p) for p in problems])}"
    raise IntegrityError(said, hint=hint, details={"problems": found})


def reading_task(kind: Kind, entry: ManifestEntry) -> Task:
    """Return what is to be done with the file that `entry` lists."""
    return Task(kind=kind, path=entry.path, size=entry.size, salt=entry.salt.hex())


def versions_of(manifest: Manifest) -> set[int]:
    """Return the key versions that reading `manifest` needs."""
    return {entry.key_version for entry in manifest.entries}
