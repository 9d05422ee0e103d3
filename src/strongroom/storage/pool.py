"""Runs the tasks of a tree on every core: in processes for local files, in threads for small and for remote ones."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import cast

from strongroom.errors import StrongroomError, UnavailableError, from_code
from strongroom.storage.files import SealedEntry
from strongroom.storage.places import LocalPlace
from strongroom.storage.worker import Setting, Task, as_message, perform, receive, send

__all__ = ["Done", "Event", "Failed", "Moved", "run_tasks"]

# A process costs about 0.15 s of one core before its first file.
_BYTES_WORTH_A_PROCESS = 32 << 20
# A small file's time is its fsync's, and the disk's journal writes for all who wait in one go.
_SMALL_BYTES, _SMALL_AT_A_TIME, _WRITING = 32 << 10, 16, ("seal", "open", "reseal")
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from strongroom.storage.worker import main; main()"


@dataclass(frozen=True, slots=True)
class Moved:
    """So many more plaintext bytes are through."""

    size: int


@dataclass(frozen=True, slots=True)
class Done:
    """A task is finished."""

    task: Task
    entry: SealedEntry


@dataclass(frozen=True, slots=True)
class Failed:
    """A task ended with an error."""

    task: Task
    error: StrongroomError


Event = Moved | Done | Failed
Tell = Callable[[Event], None]
_Work = Callable[[Task, Tell], None]


def run_tasks(
    tasks: Iterable[Task],
    setting: Setting,
    tell: Tell,
    *,
    versions: Iterable[int],
    workers: int | None = None,
    hold: Sequence[int] = (),
) -> None:
    """Do the tasks, largest file first, in no order of paths; `tell` hears what happens, in the caller's thread.

    An exception from `tell` stops the work; files in progress then leave nothing behind.

    Args:
        tasks: What to do.
        setting: What they share.
        tell: Called with each event.
        versions: Key versions that the tasks need.
        workers: At most so many at a time; None for one a core, and more of remote files and of small ones to write.
        hold: File descriptors that stay open while a worker process lives (the lock of the folder).
    """
    waiting = deque(sorted(tasks, key=lambda task: -task.size))
    cores = len(os.sched_getaffinity(0))
    if not isinstance(setting.source, LocalPlace) or not isinstance(setting.target, LocalPlace):
        _in_threads(waiting, setting, tell, count=workers or 4 * cores)
        return
    small = deque(task for task in waiting if task.size <= _SMALL_BYTES and task.kind in _WRITING)
    large = deque(task for task in waiting if task.size > _SMALL_BYTES or task.kind not in _WRITING)
    wanted = workers or min(cores, 1 + sum(task.size for task in large) // _BYTES_WORTH_A_PROCESS)
    if (count := min(wanted, len(large))) > 1:
        _in_processes(large, setting, tell, versions=versions, count=count, hold=hold)
    else:
        _in_threads(large, setting, tell, count=1)
    _in_threads(small, setting, tell, count=workers or _SMALL_AT_A_TIME)


def _in_threads(waiting: deque[Task], setting: Setting, tell: Tell, *, count: int) -> None:
    if (count := min(count, len(waiting))) > 1:
        _side_by_side(waiting, [lambda task, say: _one(task, setting, say)] * count, tell, lambda: None)
    else:
        for task in waiting:
            _one(task, setting, tell)


def _one(task: Task, setting: Setting, tell: Tell) -> None:
    try:
        entry = perform(task, setting, lambda size: tell(Moved(size)))
    except StrongroomError as exc:
        tell(Failed(task, exc))
    else:
        tell(Done(task, entry))


class _Stopped(BaseException):
    """Ends a thread whose work nobody waits for any more."""


def _side_by_side(waiting: deque[Task], works: Sequence[_Work], tell: Tell, stop: Callable[[], None]) -> None:
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    stopping = threading.Event()

    def say(event: Event) -> None:
        if stopping.is_set():
            raise _Stopped
        events.put(event)

    def serve(work: _Work) -> None:
        try:
            while not stopping.is_set() and (task := _next(waiting)) is not None:
                work(task, say)
            events.put(None)
        except BaseException as exc:
            events.put(exc)

    threads: list[threading.Thread] = []
    try:
        for work in works:
            thread = threading.Thread(target=serve, args=(work,), daemon=True)
            thread.start()
            threads.append(thread)
        running = len(threads)
        while running:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                running -= 1
            else:
                tell(event)
    finally:
        stopping.set()
        stop()
        for thread in threads:
            thread.join()


def _next(waiting: deque[Task]) -> Task | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _in_processes(
    waiting: deque[Task], setting: Setting, tell: Tell, *, versions: Iterable[int], count: int, hold: Sequence[int]
) -> None:
    children = [_start(hold) for _ in range(count)]

    def stop() -> None:
        for child in children:
            child.terminate()

    try:
        hello = _hello(setting, versions)
        for child in children:
            send(cast(FileIO, child.stdin), hello)
        _side_by_side(waiting, [_caller(child) for child in children], tell, stop)
    finally:
        stop()
        for child in children:
            with contextlib.suppress(OSError):
                cast(FileIO, child.stdin).close()
            cast(FileIO, child.stdout).close()
            child.wait()


def _start(hold: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=tuple(hold),
    )


def _hello(setting: Setting, versions: Iterable[int]) -> dict[str, object]:
    keys: dict[str, str] = {}
    for number in sorted({*versions, setting.ring.current()[0]}):
        with setting.ring.version(number) as raw:
            keys[str(number)] = raw.hex()
    return {
        "source": setting.source.url,
        "target": setting.target.url,
        "key": setting.ring.name,
        "current": setting.ring.current()[0],
        "versions": keys,
        "dataset": setting.dataset_id.hex(),
    }


def _caller(child: subprocess.Popen[bytes]) -> _Work:
    pipe_in, pipe_out = cast(FileIO, child.stdin), cast(FileIO, child.stdout)

    def call(task: Task, tell: Tell) -> None:
        try:
            send(pipe_in, as_message(task))
            while (answer := receive(pipe_out)) is not None:
                if "bytes" in answer:
                    tell(Moved(cast(int, answer["bytes"])))
                    continue
                tell(_outcome(task, answer))
                return
        except (OSError, ValueError) as exc:
            raise UnavailableError("a worker process ended early", hint="run the same command again") from exc
        raise UnavailableError("a worker process ended early", hint="run the same command again")

    return call


def _outcome(task: Task, answer: dict[str, object]) -> Event:
    if "code" in answer:
        details = cast(dict[str, object], answer["details"])
        error = from_code(str(answer["code"]), str(answer["message"]), hint=str(answer["hint"]), details=details)
        return Failed(task, error)
    entry = SealedEntry(
        size=cast(int, answer["size"]),
        salt=bytes.fromhex(str(answer["salt"])),
        key_version=cast(int, answer["key_version"]),
    )
    return Done(task, entry)
