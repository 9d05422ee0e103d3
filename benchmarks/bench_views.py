"""Volumes as programs see them: one program reads and writes plain files, files of gocryptfs, and volumes of a job.

Every file is read once, from a mount that has read nothing yet: what the page cache holds is the stored file, as for the
plain one. Writes go to enclave memory, the job's scratch layer. "Until safe" ends for plain files and gocryptfs with
fsync, and for a job when it has sealed, flushed and committed the file, less what a job takes to end that wrote nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench_spark import strongroom
from strongroom.client.setup import create_workspace

READER = """
import json, os, random, sys, time
folder, size, found = sys.argv[1], int(sys.argv[2]), {}
for block in (4096, 1 << 20):
    buffer = bytearray(block)
    file = os.open(f"{folder}/in-order-{block}", os.O_RDONLY)
    started = time.perf_counter()
    while os.readv(file, [buffer]):
        pass
    found[f"read in order, {block >> 10} KiB"] = size / (time.perf_counter() - started)
    file, rng, count = os.open(f"{folder}/random-{block}", os.O_RDONLY), random.Random(1), size // 8 // block
    places = [rng.randrange(size // block) * block for _ in range(count)]
    started = time.perf_counter()
    for place in places:
        os.preadv(file, [buffer], place)
    found[f"read at random, {block >> 10} KiB"] = count * block / (time.perf_counter() - started)
print(json.dumps(found))
"""
WRITER = """
import json, os, random, sys, time
target, how, block, size, sync = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:] == ["sync"]
data, places = os.urandom(block), list(range(0, size, block))
if how != "in order":
    random.Random(1).shuffle(places)
if how == "an eighth":
    del places[size // 8 // block:]
file = os.open(target, os.O_CREAT | os.O_WRONLY, 0o600)
started = time.perf_counter()
for place in places:
    os.pwrite(file, data, place)
written = time.perf_counter()
if sync:
    os.fsync(file)
print(json.dumps([len(places) * block, written - started, time.perf_counter() - started, time.time()]))
"""
WAYS = {"in order": "write in order", "at random": "write at random", "an eighth": "change an eighth at random"}
"""All of a new file, each block once; or blocks here and there in a file that was there before, and is sealed whole."""
RUN = ("run", "--approve", "--unsafe-accept-simulated", "--scratch-mb", "2048")
Speeds = dict[str, float]


def run(quick: bool) -> dict[str, object]:
    """Return MB/s of each way to read and to write, medians."""
    size = (8 if quick else 256) << 20
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:  # a disk: /tmp may be memory
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        (folder / "reader.py").write_text(READER)
        (folder / "writer.py").write_text(WRITER)
        plain = folder / "plain"
        plain.mkdir()
        for file in (f"{kind}-{block}" for kind in ("in-order", "random") for block in (4096, 1 << 20)):
            (plain / file).write_bytes(os.urandom(size))
        (folder / "old").mkdir()
        shutil.copyfile(plain / file, folder / "old/file")
        found: dict[str, list[Speeds]] = {"plain": [], "gocryptfs": [], "trusted": []}
        try:
            strongroom(folder, "key", "create", "bench")
            for source in ("plain", "old"):
                strongroom(folder, "data", "seal", source, f"sealed-{source}", "--key", "bench")
            other = _gocryptfs(folder)
            os.sync()  # what follows flushes what it writes
            for _ in range(1 if quick else 3):
                found["plain"].append(_plainly(folder, folder, size))
                if other:
                    with _mounted(folder) as mount:
                        found["gocryptfs"].append(_plainly(folder, mount, size))
                found["trusted"].append(_trusted(folder, size))
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    medians = {
        side: {what: round(statistics.median(one[what] for one in runs) / 1e6, 1) for what in runs[0]}
        for side, runs in found.items()
        if runs
    }
    return {"bytes_each": size, "gocryptfs": other or "cannot be had here", "mb_per_s": medians}


def _plainly(folder: Path, place: Path, size: int) -> Speeds:
    def python(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

    found: Speeds = json.loads(python("reader.py", place / "plain", size))
    for how, block in _ways():
        new = place / ("old/file" if how == "an eighth" else "new")
        count, written_s, safe_s, _ = json.loads(python("writer.py", new, how, block, size, "sync"))
        found |= _speeds(how, block, count, written_s, safe_s)
        (place / "new").unlink(missing_ok=True)
    return found


def _trusted(folder: Path, size: int) -> Speeds:
    def job(out: str, *words: object) -> tuple[str, float]:
        said = strongroom(folder, *RUN, "--volume", f"out={out}:bench:rw", "--", "python", *map(str, words))
        return said, time.time()

    def idle_s() -> float:
        said, ended = job("nothing", "-c", "import time; print(time.time())")
        return ended - float(said)

    found: Speeds = json.loads(strongroom(folder, *RUN, "--", "python", "reader.py", "sealed-plain", str(size)))
    to_end_s = min(idle_s(), idle_s())
    for how, block in _ways():
        out = "sealed-old" if how == "an eighth" else "new"
        said, ended = job(out, "writer.py", "/work/out/file", how, block, size)
        count, written_s, _, stopped = json.loads(said)
        found |= _speeds(how, block, count, written_s, written_s + max(ended - stopped - to_end_s, 0.0))
        if out == "new":
            shutil.rmtree(folder / out)
    return found


def _ways() -> Iterator[tuple[str, int]]:
    return ((how, block) for how in WAYS for block in (4096, 1 << 20))


def _speeds(how: str, block: int, count: int, written_s: float, safe_s: float) -> Speeds:
    what = f"{WAYS[how]}, {block >> 10} KiB"
    return {what: count / written_s, f"{what}, until safe": count / safe_s}


def _gocryptfs(folder: Path) -> str:
    """Return gocryptfs's version after filling a folder of it with the plain files, "" if it cannot be had."""
    from tests.servers.packages import apt_install

    if not shutil.which("gocryptfs") and os.getuid() == 0:
        apt_install("gocryptfs", "fuse3")
    if not shutil.which("gocryptfs"):
        return ""
    (folder / "cipher").mkdir()
    (folder / "password").write_text("bench")
    words = [
        "gocryptfs",
        "-q",
        "-init",
        "-scryptn",
        "10",
        "-passfile",
        str(folder / "password"),
        str(folder / "cipher"),
    ]
    subprocess.run(words, check=True)
    with _mounted(folder) as mount:
        for source in ("plain", "old"):
            shutil.copytree(folder / source, mount / source)
    said = subprocess.run(["gocryptfs", "-version"], capture_output=True, text=True, check=True).stdout
    return said.partition(";")[0].strip()


@contextmanager
def _mounted(folder: Path) -> Iterator[Path]:
    mount = folder / "mount"
    mount.mkdir(exist_ok=True)
    words = ["gocryptfs", "-q", "-passfile", str(folder / "password"), str(folder / "cipher"), str(mount)]
    subprocess.run(words, check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
