"""The program's process under a LibOS: what it inherits, and how its start and end are seen."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from strongroom.errors import InputError
from strongroom.guest.spawned import SpawnedWorkload
from strongroom.guest.workload import Started

SHOW = """
import os, sys
given, back = map(int, sys.argv[1:])
held = {int(n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)}
said = [os.read(given, 9).decode(), os.getcwd(), os.environ.get('HOME'), os.environ.get('SECRET'), sys.stdin.read()]
os.write(back, repr([*said, sorted(held)]).encode())
"""


def document(*command: str) -> dict[str, object]:
    return {"command": list(command), "arguments": [], "environment": {"HOME": "/work"}, "limits": {}}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand for /work; nothing may fork."""

    def fork(*_words: object, **_named: object) -> NoReturn:
        raise OSError(errno.ENOSYS, "no fork")

    chdir, before = os.chdir, os.getcwd()
    monkeypatch.setattr(os, "chdir", lambda path: chdir(tmp_path) if path == "/work" else chdir(path))
    for place, name in ((os, "fork"), (subprocess, "_fork_exec")):
        monkeypatch.setattr(place, name, fork)
    monkeypatch.setattr("strongroom.guest.workload.signal.signal", lambda *_: None)
    monkeypatch.setenv("SECRET", "of the guest")
    yield tmp_path
    chdir(before)


def test_a_program_gets_what_it_was_handed_and_no_more(work: Path) -> None:
    inherited = {int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
    inherited = {n for n in inherited if os.get_inheritable(n)}  # of whatever runs the tests
    (theirs, ours), (back, they_send) = os.pipe(), os.pipe()
    os.write(ours, b"volumes")
    handed = (theirs, they_send)
    before = (sys.executable, "-c", SHOW, str(theirs), str(they_send))
    assert SpawnedWorkload(document(), before=before, handed=handed).run() == 0
    said = os.read(back, 999).decode()
    assert said == repr(["volumes", str(work), "/work", None, "", sorted({0, 1, 2, *handed, *inherited})])
    assert os.read(back, 1) == b"", "the guest holds the other end no longer"
    with pytest.raises(BrokenPipeError):
        os.write(ours, b"x")
    os.close(ours)
    os.close(back)


def test_a_program_that_is_not_there(work: Path) -> None:
    with pytest.raises(InputError, match=r"/opt/none could not be started: .*No such file"):
        SpawnedWorkload(document("/opt/none")).run()


@pytest.mark.parametrize(("program", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -PIPE $$", 128 + 13)])
def test_its_end_is_the_jobs(work: Path, program: str, code: int) -> None:
    assert SpawnedWorkload(document("/bin/sh", "-c", program)).run() == code  # SIGPIPE ends it, though not the guest


@pytest.mark.parametrize("started", [False, True])
def test_a_signal_that_comes_as_the_program_starts_reaches_it(
    work: Path, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    handlers: dict[int, Callable[[int, object], None]] = {}
    monkeypatch.setattr("strongroom.guest.workload.signal.signal", handlers.__setitem__)

    class Stopped(SpawnedWorkload):
        def _start(self, confined: Callable[[], None]) -> Started:
            found = super()._start(confined) if started else None
            handlers[signal.SIGTERM](signal.SIGTERM, None)
            return found or super()._start(confined)

    assert Stopped(document("/bin/sleep", "60")).run() == 128 + signal.SIGTERM


def test_a_signal_that_reached_the_program_is_not_sent_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Callable[[int, object], None]] = {}
    monkeypatch.setattr("strongroom.guest.workload.signal.signal", handlers.__setitem__)
    sent: list[int] = []
    monkeypatch.setattr("strongroom.guest.workload.os.kill", lambda _pid, number: sent.append(number))

    class Timer(threading.Timer):
        def start(self) -> None:  # when the program runs, before its start has returned
            handlers[signal.SIGINT](signal.SIGINT, None)

    monkeypatch.setattr("strongroom.guest.workload.threading.Timer", Timer)
    SpawnedWorkload(document("/bin/true")).run()
    assert sent == [signal.SIGINT]
