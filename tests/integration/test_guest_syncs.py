"""fsync of real programs whose filter asks the guest, with a volume in memory. T331 to T333."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_guest_checkpoints import Shaky, held
from tests.unit.test_guest_volumes import EMPTY, volume

from strongroom.errors import DeniedError, UnavailableError
from strongroom.guest import confine, staging
from strongroom.guest.staging import StagedVolume
from strongroom.guest.syncs import Syncs
from strongroom.storage.dataset import DatasetInfo, write_info


class Machine:
    """One volume, whose programs' fsyncs are answered."""

    def __init__(self, folder: Path, memory: Path) -> None:
        write_info(str(folder / "v"), DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me"))
        self.staged = StagedVolume(volume(folder / "v"), memory / "work")
        self.staged.open_all()
        self.place = memory / "work"
        self.session = Shaky()
        self.failures: list[str] = []
        self.check: Callable[[], None] = lambda: None

    def start(self, program: str, *words: str) -> tuple[subprocess.Popen[str], Syncs]:
        ours, theirs = socket.socketpair()
        syncs = Syncs([self.staged], self.session, self.check, self.failures.append)  # type: ignore[arg-type]
        run = subprocess.Popen(
            [sys.executable, "-c", program, *words], cwd=self.place, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: confine.hand_over_syncs(theirs),  # noqa: PLW1509  # as the guest does
        )  # fmt: skip
        syncs.listen(socket.recv_fds(ours, 1, 1)[1][0])
        ours.close()
        theirs.close()
        return run, syncs

    def run(self, program: str, *words: str) -> str:
        run, syncs = self.start(program, *words)
        said, wrong = run.communicate(timeout=60)
        syncs.stop()
        assert run.returncode == 0, wrong
        return said

    def held(self) -> dict[str, bytes]:
        return held(self.staged, self.session)  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    memory = Path("/dev/shm") / f"syncs-{os.urandom(6).hex()}"  # a memory file system, as the enclave's
    memory.mkdir()
    yield Machine(tmp_path, memory)
    subprocess.run(["rm", "-rf", memory], check=True)


def test_what_a_program_synced_is_committed_when_the_call_returns(machine: Machine) -> None:
    run, syncs = machine.start(
        "import os\n"
        "f = open('a', 'wb'); f.write(b'one'); f.flush(); os.fsync(f.fileno()); print('1', flush=True); input()\n"
        "f.write(b'two'); f.flush(); os.fdatasync(f.fileno()); print('2', flush=True); input()\n"
        "f.write(b'not synced'); f.flush(); print('3', flush=True); input()\n"
    )
    assert run.stdin is not None
    assert run.stdout is not None
    for expected in (b"one", b"onetwo", b"onetwo"):
        run.stdout.readline()
        assert machine.held() == {"a": expected}
        run.stdin.write("\n")
        run.stdin.flush()
    run.communicate(timeout=30)
    syncs.stop()
    assert machine.failures == []
    assert machine.session.commits == 2


def test_a_name_that_is_synced_by_its_folder(machine: Machine) -> None:
    program = (
        "import os\n"
        "open('a', 'w').write('old'); os.sync()\n"
        "f = open('a.new', 'w'); f.write('new'); f.flush(); os.fsync(f.fileno()); os.rename('a.new', 'a')\n"
        "os.makedirs('d', exist_ok=True); g = open('d/b', 'w'); g.write('deep'); g.flush(); os.fsync(g.fileno())\n"
        "if os.sys.argv[1:]: os.fsync(os.open('.', os.O_RDONLY))\n"
    )
    machine.run(program)
    assert machine.held() == {"a": b"old", "a.new": b"new", "d/b": b"deep"}  # no name was synced after the renaming
    machine.run("import os; os.fsync(os.open('.', os.O_RDONLY))")
    assert machine.held() == {"a": b"new", "d/b": b"deep"}
    machine.run(program, "names too")
    assert machine.held() == {"a": b"new", "d/b": b"deep"}


def test_a_file_whose_folder_is_moved_while_it_is_looked_for_is_not_taken_for_committed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.place / "a").mkdir()
    (machine.place / "a/file").write_bytes(b"new")
    inode, listed = (machine.place / "a/file").stat().st_ino, staging.walk

    def moving(place: Path, without: Collection[str] = ()) -> Iterator[staging.Found]:
        for found in listed(place, without):
            yield found
            if found.path == "a" and (place / "a").exists():  # seen, and not listed yet
                (place / "a").rename(place / "b")

    monkeypatch.setattr(staging, "walk", moving)
    with pytest.raises(UnavailableError, match="moved meanwhile"):
        machine.staged.sync({inode}, machine.session)  # type: ignore[arg-type]
    assert machine.staged.sync({inode}, machine.session) == set()  # type: ignore[arg-type]
    assert machine.held() == {"b/file": b"new"}


def test_nothing_that_was_synced_is_lost_to_a_renaming(machine: Machine) -> None:
    # A log that is rotated, and a file that became a folder: what was there before goes on under its new name.
    machine.run(
        "import os\n"
        "def put(path, text):\n"
        "    f = open(path, 'w'); f.write(text); f.flush(); os.fsync(f.fileno()); return f\n"
        "f = put('log', 'first'); os.rename('log', 'log.1'); g = put('log', 'second')\n"
        "h = put('x', 'file'); os.rename('x', 'y'); os.mkdir('x'); i = put('x/z', 'below')\n"
        "j = put('p', 'moved'); os.rename('p', 'q'); os.fsync(j.fileno())\n"
    )
    assert machine.held() == {"log.1": b"first", "log": b"second", "y": b"file", "x/z": b"below", "q": b"moved"}


def test_a_checkpoint_takes_a_synced_file_that_was_renamed_and_is_open(machine: Machine) -> None:
    run, syncs = machine.start(
        "import os\n"
        "f = open('a.new', 'w'); f.write('synced'); f.flush(); os.fsync(f.fileno()); os.rename('a.new', 'a')\n"
        "print(flush=True); input()\n"
    )
    assert run.stdout is not None
    run.stdout.readline()
    machine.staged.checkpoint(machine.session)  # type: ignore[arg-type]
    assert machine.held() == {"a": b"synced"}
    run.communicate("\n", timeout=30)
    syncs.stop()


def test_mapped_pages_and_all_there_is(machine: Machine) -> None:
    machine.run(
        "import ctypes, mmap, os\n"
        "f = open('m', 'w+b'); f.truncate(8192); m = mmap.mmap(f.fileno(), 0); f.close(); m[0]; os.sync()\n"
        "other = open('o', 'w'); other.write('open'); other.flush()\n"
        "m[:4] = b'page'; m.flush(); m[4096:4100] = b'more'; m.flush(4096, 4096)\n"
    )
    found = machine.held()
    assert (found["m"][:4], found["m"][4096:4100], set(found)) == (b"page", b"more", {"m"})
    machine.run("import os; os.sync()")
    assert set(machine.held()) == {"m", "o"}
    machine.run(
        "import ctypes; f = open('o', 'a'); f.write('ed'); f.flush(); assert ctypes.CDLL(None).syncfs(f.fileno()) == 0"
    )
    assert machine.held()["o"] == b"opened"


def test_any_descriptor_of_a_file_syncs_what_others_wrote(machine: Machine) -> None:
    machine.run(
        "import os, socket, subprocess, sys\n"
        "def write(name):\n"
        "    f = os.open(name, os.O_WRONLY | os.O_CREAT); os.write(f, name.encode()); return f\n"
        "write('read only'); os.fsync(os.open('read only', os.O_RDONLY))\n"
        "os.fsync(os.dup(write('copy')))\n"
        "f = write('by number'); os.fsync(os.open(f'/proc/self/fd/{f}', os.O_RDONLY))\n"
        "write('by root'); os.fsync(os.open(f'/proc/self/root{os.getcwd()}/by root', os.O_RDONLY))\n"
        "f = write('child'); code = f'import os; os.fsync({f})'\n"
        "subprocess.run([sys.executable, '-c', code], pass_fds=[f], check=True)\n"
        "write('stranger')\n"
        "code = \"import os; os.fsync(os.open('stranger', os.O_RDONLY))\"\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
        "ours, theirs = socket.socketpair(); socket.send_fds(ours, [b'x'], [write('sent')])\n"
        "os.fsync(socket.recv_fds(theirs, 1, 1)[1][0])\n"
        "write('first name'); os.link('first name', '../outside'); os.fsync(os.open('../outside', os.O_RDONLY))\n"
        "f = write('old name'); os.rename('old name', 'new name'); os.fsync(f)\n"
        "write('nobody synced')\n"
    )
    names = ("read only", "copy", "by number", "by root", "child", "stranger", "sent", "first name")
    assert machine.held() == {**{name: name.encode() for name in names}, "new name": b"old name"}
    assert machine.failures == []


def test_other_files_and_bad_descriptors_answer_as_ever(machine: Machine) -> None:
    machine.run(
        "import errno, os, socket, tempfile\n"
        "f = open('mine', 'w'); f.write('x'); f.flush()\n"
        "files = [tempfile.TemporaryFile(), tempfile.TemporaryFile(dir='.')]; [os.fsync(f.fileno()) for f in files]\n"
        "os.fsync(os.open('..', os.O_RDONLY)); os.fsync(os.memfd_create('m'))\n"
        "gone = open('gone', 'w'); os.unlink('gone'); os.fsync(gone.fileno())\n"
        "pair = socket.socketpair()\n"
        "for fd, expected in ((999, errno.EBADF), (os.pipe()[0], errno.EINVAL), (pair[0].fileno(), errno.EINVAL)):\n"
        "    try: os.fsync(fd)\n"
        "    except OSError as exc: assert exc.errno == expected, exc\n"
        "    else: raise SystemExit(f'{fd} was synced')\n"
    )
    assert machine.session.commits == 0
    assert machine.failures == []


def test_threads_and_children_sync_at_once(machine: Machine) -> None:
    machine.run(
        "import os, subprocess, sys, threading\n"
        "def put(n):\n"
        "    with open(f'{n}', 'w') as f:\n"
        "        for i in range(5): f.write(str(i)); f.flush(); os.fsync(f.fileno())\n"
        "threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]\n"
        'code = \'import os; f = open("child", "w"); f.write("c"); f.flush(); os.fsync(f.fileno()); os._exit(0)\'\n'
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
        "[t.join() for t in threads]\n"
    )
    assert machine.held() == {**{str(n): b"01234" for n in range(8)}, "child": b"c"}
    assert machine.session.commits < 41


def test_sqlite_finds_every_transaction_that_was_committed(machine: Machine) -> None:
    program = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect('t.db', isolation_level=None)\n"
        "db.execute(f'pragma journal_mode={sys.argv[1]}'); db.execute('pragma synchronous=extra')\n"
        "db.execute('create table if not exists t (n)')\n"
        "for n in range(10): db.execute('insert into t values (?)', (n,)); print(n, flush=True)\n"
        "db.execute('begin'); db.execute('insert into t values (99)')\n"
        "print('open', flush=True); input()\n"
    )
    for mode in ("delete", "wal"):
        run, syncs = machine.start(program, mode)
        assert run.stdout is not None
        while run.stdout.readline() != "open\n":
            pass
        found = machine.held()  # as another machine would, after this one died
        again = machine.place.parent / mode
        again.mkdir()
        for path, content in found.items():
            (again / path).write_bytes(content)
        run.kill()
        run.communicate(timeout=30)
        syncs.stop()
        count = "import sqlite3; print(sqlite3.connect('t.db').execute('select count(*) from t').fetchone()[0])"
        assert subprocess.check_output([sys.executable, "-c", count], cwd=again, text=True) == "10\n"
        machine.run("import glob, os; [os.unlink(p) for p in glob.glob('t.db*')]; os.sync()")


def test_T331_a_full_disk_is_told_and_loses_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, sys\n"
        "f = open('a', 'w'); f.write(sys.argv[1]); f.flush()\n"
        "try: os.fsync(f.fileno()); print(0)\n"
        "except OSError as exc: print(exc.errno)\n"
    )
    assert machine.run(program, "first") == "0\n"
    write = os.fsync

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)  # of the guest: its sealed files reach the disk no more
        assert machine.run(program, "second") == f"{errno.ENOSPC}\n"
    assert machine.held() == {"a": b"first"}
    assert (machine.failures, os.fsync) == ([], write)
    assert machine.run(program, "third") == "0\n"
    assert machine.held() == {"a": b"third"}


@pytest.mark.parametrize("why", ["denied", "undecided", "the job has failed"])
def test_a_commit_that_cannot_be_ends_the_job(machine: Machine, why: str) -> None:
    def failed() -> None:
        raise UnavailableError("away") if why == "undecided" else DeniedError("an input was altered")

    if why == "the job has failed":
        machine.check = failed
    else:
        machine.session.away = UnavailableError("away") if why == "undecided" else DeniedError("no more")
    program = (
        "import os\n"
        "f = open('a', 'w'); f.write('x'); f.flush()\n"
        "for _ in range(3):\n"
        "    try: os.fsync(f.fileno()); print(0)\n"
        "    except OSError as exc: print(exc.errno)\n"
    )
    assert machine.run(program) == f"{errno.EIO}\n" * 3
    assert len(machine.failures) == 1
    assert machine.session.commits == 0


def test_a_file_that_no_data_set_can_hold_is_not_said_to_be_safe(machine: Machine) -> None:
    said = machine.run(
        "import os\n"
        "os.mkdir('k=1'); f = open('k=1/a', 'w'); f.write('x'); f.flush()\n"
        "try: os.fsync(f.fileno()); print(0)\n"
        "except OSError as exc: print(exc.errno)\n"
    )
    assert said == f"{errno.EIO}\n"
    assert machine.failures == []


def test_T332_a_descriptor_that_is_exchanged_during_the_call_leads_nowhere(machine: Machine) -> None:
    machine.run(
        "import os, threading, time\n"
        "f = os.open('a', os.O_RDWR | os.O_CREAT); os.write(f, b'mine'); end = time.monotonic() + 0.5\n"
        "def swap():\n"
        "    while time.monotonic() < end:\n"
        "        for path in ('/proc/self/environ', '/etc/passwd', '/', 'a'):\n"
        "            other = os.open(path, os.O_RDONLY); os.dup2(other, f); os.close(other)\n"
        "def rename():\n"
        "    while time.monotonic() < end:\n"
        "        os.symlink('/etc/passwd', 'l'); os.rename('l', 'b')\n"
        "        os.rename('a', 'c'); os.symlink('/etc/passwd', 'a')\n"
        "        os.unlink('a'); os.rename('c', 'a'); os.unlink('b')\n"
        "threads = [threading.Thread(target=t) for t in (swap, rename)]\n"
        "[t.start() for t in threads]\n"
        "while time.monotonic() < end:\n"
        "    try: os.fsync(f)\n"
        "    except OSError: pass\n"
        "[t.join() for t in threads]\n"
        "os.sync()\n"
    )
    assert machine.held() == {"a": b"mine"}
    assert machine.failures == []


def test_T333_who_is_killed_in_the_call_holds_nobody_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = machine.session.commit
    begun: list[int] = []

    def commit(*words: object) -> object:
        begun.append(1)
        time.sleep(0.3)
        return slow(*words)

    monkeypatch.setattr(machine.session, "commit", commit)
    program = (
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None); signal.siginterrupt(signal.SIGUSR1, True)\n"
        "f = open('a', 'w'); f.write('x'); f.flush(); os.fsync(f.fileno()); print('done', flush=True)\n"
    )
    run, syncs = machine.start(program)
    _until(lambda: begun)
    run.kill()
    began = time.monotonic()
    run.communicate(timeout=10)
    assert time.monotonic() - began < 0.25  # death does not wait for the guest
    syncs.stop()
    begun.clear()
    run, syncs = machine.start(program.replace("'x'", "'y'"))
    _until(lambda: begun)
    run.send_signal(signal.SIGUSR1)  # a signal that is no death does not cut the call short
    assert run.communicate(timeout=10)[0] == "done\n"
    syncs.stop()
    assert machine.held() == {"a": b"y"}
    assert machine.failures == []


def _until(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
