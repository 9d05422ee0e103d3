from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from strongroom import _unix
from strongroom._unix import flush_files, write_whole
from strongroom.attest.simulated.platform import load_seed
from strongroom.crypto.https import _is_ended
from strongroom.errors import IntegrityError
from strongroom.kms.roots.registry import RootFolder


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_a_new_root_key_is_on_the_disk_with_its_name(tmp_path: Path, flushed: list[str]) -> None:
    root, _ = RootFolder(tmp_path).create("keyfile", {})
    files = [str(tmp_path / f"root-{root.id}.{kind}") for kind in ("key", "json")]
    assert flushed == [*files, str(tmp_path)]


def test_flushing_waits_for_no_pipe_follows_no_link_and_forgets_no_error(tmp_path: Path, flushed: list[str]) -> None:
    files = [tmp_path / f"{number}" for number in range(20)]
    for file in files:
        file.write_bytes(b"x")
    flush_files(files)
    assert sorted(flushed) == sorted(map(str, files))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("0")
    for odd in ("pipe", "link", "nothing"):
        with pytest.raises(OSError, match=odd if odd != "pipe" else "Invalid"):
            flush_files([*files, tmp_path / odd])


def test_a_file_is_written_whole_and_is_on_the_disk_before_it_has_its_name(tmp_path: Path, flushed: list[str]) -> None:
    path = tmp_path / "pin.json"
    write_whole(path, "one", 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one", 0o600)
    assert [str(Path(name).parent) for name in flushed] == [str(tmp_path), str(tmp_path.parent)]
    assert path.name in flushed[0]
    assert flushed[0] != str(path)
    path.chmod(0o400)
    with pytest.raises(TypeError):
        write_whole(path, None)  # type: ignore[arg-type]
    assert path.read_text() == "one"
    write_whole(path, b"two")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"two", ["pin.json"])


def test_T371_a_pipe_device_or_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")  # never the device itself: root would replace it
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "null", "folder"):
        before = (tmp_path / name).lstat()
        with pytest.raises(OSError, match="not a regular file") as refused:
            write_whole(tmp_path / name, "text")
        assert refused.value.filename == str(tmp_path / name)
        assert (tmp_path / name).lstat() == before
    with pytest.raises(FileNotFoundError) as missing:
        write_whole(tmp_path / "nowhere/x", "text")
    assert missing.value.filename == str(tmp_path / "nowhere/x"), "not the one beside it"
    assert sorted(os.listdir(tmp_path)) == ["folder", "null", "pipe"]


def test_the_seed_is_made_whole_and_once(tmp_path: Path, flushed: list[str]) -> None:
    path = tmp_path / "platform" / "seed"
    seeds: set[bytes] = set()
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        seeds.add(load_seed(path))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seeds) == 1
    assert len(seeds.pop()) == 32
    assert os.listdir(path.parent) == ["seed"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path.parent) in flushed
    path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="0 bytes"):
        load_seed(path)


def test_a_protected_process_leaves_no_dump_and_no_open_file(tmp_path: Path) -> None:
    program = (
        "import ctypes, os, resource; from strongroom._unix import protect_process; protect_process();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["0", "1", "1", "0o77"]


def test_a_connection_with_a_high_descriptor_is_looked_at() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        low, peer = socket.socketpair()
        with socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD, 1500)) as high:
            assert not _is_ended(high)
            peer.close()
            assert _is_ended(high)
        low.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_is_written_early_is_the_same_and_the_disk_is_asked_once_for_each_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Kernel:
        def sync_file_range(self, _handle: int, begin: ctypes.c_int64, length: ctypes.c_int64, flags: int) -> int:
            assert flags == 2  # begin to write: waits for nothing
            asked.append((begin.value, length.value))
            return -1  # a kernel that knows no such call

    monkeypatch.setattr(_unix, "_libc", Kernel())
    monkeypatch.setattr(_unix, "_EARLY_BYTES", 100)
    parts = [os.urandom(size) for size in (10, 89, 1, 99, 250, 30)]
    with open(tmp_path / "f", "xb", buffering=0) as raw:
        early = _unix.WrittenEarly(raw)
        assert [early.write(memoryview(part)) for part in parts] == [len(part) for part in parts]
    assert (tmp_path / "f").read_bytes() == b"".join(parts)
    assert asked == [(0, 100), (100, 349)]
