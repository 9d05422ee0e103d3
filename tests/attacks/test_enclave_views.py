# programs
"""The host against a volume that a program reads piece by piece. T198, T199 of docs/threat-model.md."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, error, make_enclave

from strongroom.crypto.header import PREFIX_BYTES
from strongroom.crypto.stream import SEALED_CHUNK_BYTES

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="this machine has no /dev/fuse")

BYTES = 40 << 20
READER = """
import os, sys, time
path = '/work/big/data.bin'
with open(path, 'rb', buffering=0) as file:
    first = file.read(1 << 20)
    print('READY', len(first), flush=True)
    time.sleep(float(sys.argv[1]))
    try:
        while file.read(1 << 20):
            pass
        print('READ ALL', flush=True)
    except OSError as exc:
        print('ERRNO', exc.errno, flush=True)
open('/work/out/result', 'w').write('made of what was read')
"""
KILLED = """
import os, signal, sys, time
from pathlib import Path
from strongroom.guest import confine, fuse, views
confine.READABLE = ('/',)  # this Python is not where an enclave's is
place, size = Path(sys.argv[1]), 4 << 20
class Slow:
    size = size
    def seek(self, offset, whence=0): self.at = offset
    def readinto(self, buffer):
        if len(buffer) > 4096 or self.at == 200 * 4096:
            os.write(stuck, b'x')
            time.sleep(60)
        return min(len(buffer), size - self.at)
    def close(self): pass
class Files:
    def size(self, path): return size if path else -1
    def names(self, folder): return {'f': size}
    def open(self, path): return Slow()
def ended(pid, at_most_s=5):
    ends = time.monotonic() + at_most_s
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > ends: sys.exit(f'{pid} is still there')
        time.sleep(0.01)
heard, stuck = os.pipe()
device = fuse.mount(place)
if not (server := os.fork()):
    fuse.FuseServer(device, Files(), print, views._Ahead(place)).serve()
os.close(device)
def reader(*pages):
    if pid := os.fork(): return pid
    file = os.open(place / 'f', os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        for page in pages: os.pread(file, 4096, page * 4096)
    finally: os._exit(0)
readers = [reader(1, 2)]
os.read(heard, 1)
readers += [reader(20), reader(200)]
time.sleep(0.3)
print('stuck', flush=True)
os.kill(server, signal.SIGKILL)
ended(server)
print('gone', flush=True)
for pid in readers: ended(pid)
print('readers gone', flush=True)
time.sleep(0.5)
print('unmounted' if os.system(f'umount {place}') == 0 else 'somebody still reads')
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("views"))
    plain = made.folder / "big.plain"
    plain.mkdir()
    (plain / "data.bin").write_bytes(os.urandom(BYTES))
    made.run("data", "seal", "big.plain", "big", "--key", "sales")
    (made.folder / "reader.py").write_text(READER)
    yield made
    stop_service(made.workspace)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def read_meanwhile(shell: Enclave, out: str, act: object) -> tuple[str, str, int]:
    """Start the reader, act once it has read its first piece, and return what it and the command said."""
    run = shell.start("--volume", "big=big", "--volume", f"out={out}:sales:rw", "--", "python", "reader.py", "1")
    assert run.stdout is not None
    assert run.stdout.readline() == "READY 1048576\n"
    assert callable(act)
    act()
    text, said = run.communicate(timeout=60)
    return text, said, run.returncode


@pytest.mark.parametrize("what", ["flip", "cut", "replaced by another"])
def test_T198_a_file_altered_while_a_program_reads_it(shell: Enclave, what: str) -> None:
    """The program gets EIO, the job ends with the file's name, and nothing that the program writes counts."""
    path, kept = shell.folder / "big/data.bin", shell.folder / "kept.bin"
    shutil.copy(path, kept)
    acts = {
        "flip": lambda: flip(path, PREFIX_BYTES + 2000 * SEALED_CHUNK_BYTES + 7),
        "cut": lambda: os.truncate(path, PREFIX_BYTES + 2000 * SEALED_CHUNK_BYTES),
        "replaced by another": lambda: path.write_bytes(os.urandom(path.stat().st_size)),
    }
    out = f"out-{what.split(maxsplit=1)[0]}"
    try:
        text, said, status = read_meanwhile(shell, out, acts[what])
    finally:
        shutil.copy(kept, path)
    assert "READ ALL" not in text
    assert "ERRNO 5" in text or text == "", text  # it may be stopped before it can say so
    assert status == 1, said
    assert "big/data.bin" in said
    assert sorted(p.name for p in (shell.folder / out).iterdir()) == [".dataset"]


def test_T198_an_altered_piece_beside_small_reads(shell: Enclave) -> None:
    """What is read around small reads is checked like what the program asks for, and fails the job."""
    path, kept = shell.folder / "big/data.bin", shell.folder / "kept.bin"
    shutil.copy(path, kept)
    flip(path, PREFIX_BYTES + (10 * 64 + 30) * SEALED_CHUNK_BYTES)
    program = (
        "import os, time\n"
        "file, at = os.open('/work/big/data.bin', os.O_RDONLY), 10 << 20\n"
        "os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)\n"
        "for n in (0, 1): os.pread(file, 4096, at + n * 100_000)\n"
        "time.sleep(30)"
    )
    try:
        outcome = shell.outcome("--volume", "big=big", "--", "python", "-c", program)
    finally:
        shutil.copy(kept, path)
    assert (outcome["outcome"], outcome["exit_code"]) == ("failed", None), outcome
    assert "big/data.bin: chunk 670" in str(error(outcome)["message"])


@pytest.mark.skipif(os.getuid() != 0, reason="needs a mount namespace")
def test_T300_a_guest_killed_while_reads_wait_for_it_is_gone(tmp_path: Path) -> None:
    """With the read that it was at, the one of a program behind it, and what was to be read around both, unanswered."""
    (tmp_path / "view").mkdir()
    (tmp_path / "killed.py").write_text(KILLED)
    command = ["unshare", "-m", sys.executable, tmp_path / "killed.py", tmp_path / "view"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.stdout.splitlines() == ["stuck", "gone", "readers gone", "unmounted"], said


def test_T198_the_same_reader_reads_what_is_whole(shell: Enclave) -> None:
    text, said, status = read_meanwhile(shell, "out-well", lambda: None)
    assert (text, status) == ("READ ALL\n", 0), said
    assert shell.open("out-well") == {"result": "made of what was read"}


def test_T199_a_program_that_ignores_the_error(shell: Enclave) -> None:
    """A library may take EIO for the end of a file: the job fails all the same."""
    path, kept = shell.folder / "big/data.bin", shell.folder / "kept.bin"
    shutil.copy(path, kept)
    flip(path, PREFIX_BYTES + 5)
    program = (
        "try: open('/work/big/data.bin', 'rb').read()\n"
        "except OSError: pass\n"
        "import os\n"
        "open('/work/out/result', 'w').write('whatever'); os._exit(0)"
    )
    try:
        outcome = shell.outcome(
            "--volume", "big=big", "--volume", "out=out-deaf:sales:rw", "--", "python", "-c", program
        )
    finally:
        shutil.copy(kept, path)
    assert (outcome["outcome"], outcome["exit_code"]) == ("failed", None), outcome
    assert "big/data.bin" in str(error(outcome)["message"])
    assert sorted(p.name for p in (shell.folder / "out-deaf").iterdir()) == [".dataset"]


def test_reads_side_by_side_are_each_right(shell: Enclave) -> None:
    """Eight processes and their threads read at random, each compared with what was sealed."""
    plain = (shell.folder / "big.plain/data.bin").read_bytes()
    program = (
        "import hashlib, multiprocessing, os, random\n"
        "def work(seed):\n"
        " rng, file = random.Random(seed), os.open('/work/big/data.bin', os.O_RDONLY)\n"
        f" size = {BYTES}\n"
        " out = []\n"
        " for _ in range(150):\n"
        "  n = rng.choice((1, 4096, 16384, 70000, 1 << 20)); at = rng.randrange(size)\n"
        "  out.append((at, n, hashlib.sha256(os.pread(file, n, at)).hexdigest()))\n"
        " return out\n"
        "with multiprocessing.Pool(8) as pool:\n"
        " for part in pool.map(work, range(8)):\n"
        "  for line in part: print(*line)\n"
    )
    run = shell.start("--volume", "big=big", "--", "python", "-c", program)
    timer = threading.Timer(100, run.kill)
    timer.start()
    text, said = run.communicate()
    timer.cancel()
    assert run.returncode == 0, said
    lines = [line.split() for line in text.splitlines()]
    assert len(lines) == 8 * 150
    for at, count, digest in lines:
        assert hashlib.sha256(plain[int(at) : int(at) + int(count)]).hexdigest() == digest
