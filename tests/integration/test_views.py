# ruff: noqa: E501  # programs
"""A read-only volume behaves as a read-only file system: what programs do with files works, or fails as they expect."""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="this machine has no /dev/fuse")

BIG, FILES = 3 * 1024 * 1024 + 12_345, 2_000
PROBE = r"""
import ctypes, errno, fcntl, hashlib, json, mmap, os, pty, shutil, stat, sys, tempfile, time
found, base = {}, "/work/v/"

def attempt(name, function):
    try:
        found[name] = function()
    except OSError as exc:
        found[name] = errno.errorcode[exc.errno]

big = open(base + "big.bin", "rb").read()
found["sha"] = hashlib.sha256(big).hexdigest()
with open(base + "big.bin", "rb") as file:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as shared, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
        found["mapped"] = shared[:] == big and shared[777_777:777_900] == big[777_777:777_900]
        private[0:4] = b"over"
        found["private mapping"] = private[0:4] == b"over" and shared[0:4] == big[0:4]
    found["beyond"] = [len(os.pread(file.fileno(), 10, len(big) - 3)), len(os.pread(file.fileno(), 10, len(big) + 9))]
    found["seek end"] = file.seek(0, 2)
direct = os.open(base + "big.bin", os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 16)
found["direct"] = os.preadv(direct, [page], 1 << 20) == 1 << 16 and page[:] == big[1 << 20:(1 << 20) + (1 << 16)]
attempt("fsync", lambda: os.fsync(direct))
out = os.open("/work/copy", os.O_CREAT | os.O_WRONLY)
attempt("sendfile", lambda: os.sendfile(out, direct, 0, 100_000))
attempt("copy_file_range", lambda: os.copy_file_range(direct, out, 1000, 0))
found["empty"] = open(base + "empty", "rb").read().decode()
info = os.stat(base + "big.bin")
found["stat"] = [info.st_size, stat.filemode(info.st_mode), info.st_nlink, info.st_uid == os.getuid(), abs(info.st_mtime - time.time()) < 600]
found["folder"] = stat.filemode(os.stat(base).st_mode)
found["walk"] = sorted(os.path.relpath(os.path.join(d, n), base) for d, _, names in os.walk(base) for n in names if "many" not in d)
found["scan"] = sorted((e.name, e.is_dir(), e.stat().st_size) for e in os.scandir(base))
started = time.monotonic()
names = os.listdir(base + "many/deep")
found["many"] = [len(names), len(set(names)), sum(e.stat().st_size for e in os.scandir(base + "many/deep"))]
found["odd names"] = open(base + "many/ä b\u20ac.txt").read()
for name, function in {
    "missing": lambda: open(base + "nothing"), "missing below": lambda: open(base + "nothing/at/all"),
    "file as folder": lambda: open(base + "empty/x"), "folder as file": lambda: open(base + "many").read(),
    "list a file": lambda: os.listdir(base + "empty"), "long name": lambda: open(base + "n" * 300),
    "write": lambda: open(base + "big.bin", "r+b"), "append": lambda: open(base + "big.bin", "ab"), "create": lambda: open(base + "new", "w"),
    "truncate": lambda: os.truncate(base + "big.bin", 0), "unlink": lambda: os.unlink(base + "empty"), "rename": lambda: os.rename(base + "empty", base + "x"),
    "rename out": lambda: os.rename(base + "empty", "/work/x"), "rename in": lambda: os.rename("/work/copy", base + "x"),
    "link": lambda: os.link(base + "empty", base + "x"), "symlink": lambda: os.symlink("empty", base + "x"), "mkdir": lambda: os.mkdir(base + "x"),
    "rmdir": lambda: os.rmdir(base + "many"), "chmod": lambda: os.chmod(base + "empty", 0o777), "chown": lambda: os.chown(base + "empty", os.getuid(), -1),
    "utime": lambda: os.utime(base + "empty"), "mkfifo": lambda: os.mkfifo(base + "x"), "setxattr": lambda: os.setxattr(base + "empty", "user.x", b"x"),
    "getxattr": lambda: os.getxattr(base + "empty", "user.x"), "readlink": lambda: os.readlink(base + "empty"),
    "temporary": lambda: tempfile.TemporaryFile(dir=base), "rmtree": lambda: shutil.rmtree(base + "many"),
}.items():
    attempt(name, function)
found["access"] = [os.access(base + "empty", m) for m in (os.R_OK, os.W_OK, os.X_OK)]
space = os.statvfs(base)
found["statvfs"] = [space.f_bavail, space.f_namemax, bool(space.f_flag & os.ST_RDONLY)]
with open(base + "big.bin") as locked:
    attempt("flock", lambda: fcntl.flock(locked, fcntl.LOCK_SH))
held = [open(base + "big.bin", "rb", buffering=0) for _ in range(900)]
found["held"] = len({file.read(100) for file in held})
leader, follower = pty.openpty()
os.write(leader, b"typed\n")
found["terminal"] = os.read(follower, 100).decode()
print(json.dumps(found))
"""
SCATTERED = r"""
import ctypes, hashlib, mmap, os, random, threading, time
size = os.path.getsize("/work/v/scattered")
def pages(offset, length):  # how many the kernel holds
    with open("/work/v/scattered", "rb") as file, mmap.mmap(file.fileno(), length, offset=offset, access=mmap.ACCESS_COPY) as area:
        found, at = (ctypes.c_ubyte * (length // 4096))(), ctypes.c_char.from_buffer(area)
        assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(at)), ctypes.c_size_t(length), found)
        del at
        return sum(byte & 1 for byte in found)
file, got, first = os.open("/work/v/scattered", os.O_RDONLY), {}, 1 << 20
os.pread(file, 4096, 0)
alone = pages(0, 1 << 20)
for offset in (first, first + 800_000):
    os.pread(file, 4096, offset)
ends = time.monotonic() + 20
while pages(first, 1 << 20) < 256 and time.monotonic() < ends:
    time.sleep(0.01)
print(alone < 128, pages(first, 1 << 20))
def here_and_there(number):
    rng = random.Random(number)
    for _ in range(3000):
        offset = rng.randrange(size)
        got[offset] = os.pread(file, rng.choice((1, 4096, 5000, 200_000)), offset)
readers = [threading.Thread(target=here_and_there, args=(n,)) for n in range(4)]
for reader in readers: reader.start()
for reader in readers: reader.join()
whole = open("/work/v/scattered", "rb").read()
print(len(whole) == size, all(whole[at:at + len(part)] == part and part for at, part in got.items()), hashlib.sha256(whole).hexdigest())
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("views"))
    yield made
    stop_service(made.workspace)


@pytest.fixture(scope="module")
def found(shell: Enclave) -> dict[str, Any]:
    files = {"empty": "", "many/ä b\u20ac.txt": "odd"} | {f"many/deep/{n:05}": "x" * (n % 7) for n in range(FILES)}
    plain = shell.folder / "v.plain"
    plain.mkdir()
    for name in ("big.bin", "scattered"):
        (plain / name).write_bytes(os.urandom(BIG))
    shell.seal("v", files)
    (shell.folder / "probe.py").write_text(PROBE)
    done = shell.run("run", "--approve", "--unsafe-accept-simulated", "--volume", "v=v", "--", "python", "probe.py")
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_reading_in_every_way(found: dict[str, Any], shell: Enclave) -> None:
    assert found["sha"] == hashlib.sha256((shell.folder / "v.plain/big.bin").read_bytes()).hexdigest()
    assert found["mapped"] is True
    assert found["private mapping"] is True
    assert found["direct"] is True
    assert found["beyond"] == [3, 0]
    assert found["seek end"] == BIG
    assert found["sendfile"] == 100_000
    assert found["copy_file_range"] in (1000, "EXDEV", "EINVAL")  # programs fall back to reading
    assert found["empty"] == ""
    assert found["held"] == 1


def test_names_and_attributes(found: dict[str, Any]) -> None:
    assert found["stat"] == [BIG, "-r--r--r--", 1, True, True]
    assert found["folder"] == "dr-xr-xr-x"
    assert found["walk"] == ["big.bin", "empty", "scattered"]
    assert found["scan"] == [["big.bin", False, BIG], ["empty", False, 0], ["many", True, 0], ["scattered", False, BIG]]
    assert found["many"] == [FILES, FILES, sum(n % 7 for n in range(FILES))]
    assert found["odd names"] == "odd"
    assert found["access"] == [True, False, False]
    assert found["statvfs"] == [0, 255, True]


@pytest.mark.parametrize(
    ("names", "errno"),
    [
        (("missing", "missing below"), "ENOENT"),
        (("file as folder", "list a file"), "ENOTDIR"),
        (("folder as file",), "EISDIR"),
        (("long name",), "ENAMETOOLONG"),
        (("readlink",), "EINVAL"),
        (("getxattr",), "ENOTSUP"),
        (
            (
                "write", "append", "create", "truncate", "unlink", "rename", "link", "symlink", "mkdir", "rmdir", "chmod", "chown",
                "utime", "mkfifo", "setxattr", "temporary", "rmtree",
            ),
            "EROFS",
        ),
        (("rename out", "rename in"), "EXDEV"),
    ],
)  # fmt: skip
def test_errors_are_those_that_programs_expect(found: dict[str, Any], names: tuple[str, ...], errno: str) -> None:
    assert {name: found[name] for name in names} == dict.fromkeys(names, errno)


def test_locks_and_terminals(found: dict[str, Any]) -> None:
    assert found["flock"] is None
    assert found["fsync"] is None
    assert found["terminal"] == "typed\n"


def test_small_reads_close_together_are_read_around(found: dict[str, Any], shell: Enclave) -> None:
    # A page read alone brings no other; the second within a megabyte brings the megabyte; readers side by side get theirs.
    (shell.folder / "scattered.py").write_text(SCATTERED)
    done = shell.run("run", "--approve", "--unsafe-accept-simulated", "--volume", "v=v", "--", "python", "scattered.py")
    sha = hashlib.sha256((shell.folder / "v.plain/scattered").read_bytes()).hexdigest()
    assert done.stdout.splitlines() == ["True 256", f"True True {sha}"]


def test_a_volume_larger_than_enclave_memory(shell: Enclave) -> None:
    plain = shell.folder / "large.plain"
    plain.mkdir()
    with (plain / "zeros").open("wb") as file:
        file.truncate(200 << 20)
    shell.run("data", "seal", "large.plain", "large", "--key", "sales")
    program = "print(sum(len(b) for b in iter(lambda f=open('/work/large/zeros', 'rb'): f.read(1 << 20), b'')))"
    done = shell.run(
        "run", "--approve", "--unsafe-accept-simulated", "--scratch-mb", "16", "--volume", "large=large", "--", "python", "-c", program
    )  # fmt: skip
    assert done.stdout == f"{200 << 20}\n"
