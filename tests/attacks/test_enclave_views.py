# programs
"""The host against a volume that a program reads piece by piece. T198, T199 of docs/threat-model.md."""

import hashlib
import os
import shutil
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
    """What is read around a small read counts for nothing until the program asks for it."""
    path, kept = shell.folder / "big/data.bin", shell.folder / "kept.bin"
    shutil.copy(path, kept)
    flip(path, PREFIX_BYTES + (10 * 64 + 30) * SEALED_CHUNK_BYTES)
    program = (
        "import os, time\n"
        "file, at = os.open('/work/big/data.bin', os.O_RDONLY), 10 << 20\n"
        "got = [len(os.pread(file, 4096, at + n * 60_000)) for n in (0, 1, 2, 15, 16)]\n"
        "time.sleep(0.2)\n"
        "print(got, flush=True)\n"
        "os.pread(file, 4096, at + 30 * 16384)"
    )
    try:
        outcome = shell.outcome("--volume", "big=big", "--", "python", "-c", program)
    finally:
        shutil.copy(kept, path)
    assert str([4096] * 5) in str(outcome["said"]), outcome
    assert "big/data.bin" in str(error(outcome)["message"])


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
