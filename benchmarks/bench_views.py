"""Volumes as programs see them: one program reads and writes plain files, files of gocryptfs, and volumes of a job.

Every file is read once, from a mount that has read nothing yet: what the page cache holds is the stored file, as for the
plain one. Writes go to enclave memory, the job's scratch layer; `close` is what it takes until they are sealed,
committed and on the disk (fsync of each file for the others).
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
folder, size, sync, found, files = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sync", {}, []
for block in (4096, 1 << 20):
    data = os.urandom(block)
    files.append(os.open(f"{folder}/in-order-{block}", os.O_CREAT | os.O_WRONLY))
    started = time.perf_counter()
    for _ in range(size // block):
        os.write(files[-1], data)
    found[f"write in order, {block >> 10} KiB"] = size / (time.perf_counter() - started)
    rng, count = random.Random(1), size // 8 // block
    started = time.perf_counter()
    for _ in range(count):
        os.pwrite(files[-1], data, rng.randrange(size // block) * block)
    found[f"write at random, {block >> 10} KiB"] = count * block / (time.perf_counter() - started)
written = time.time()
for file in files if sync else ():
    os.fsync(file)
found["closed"] = time.time() - written if sync else written
print(json.dumps(found))
"""
Speeds = dict[str, float]


def run(quick: bool) -> dict[str, object]:
    """Return MB/s of each way to read and write, medians, and seconds until what was written is safe."""
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
        found: dict[str, list[Speeds]] = {"plain": [], "gocryptfs": [], "trusted": []}
        try:
            strongroom(folder, "key", "create", "bench")
            strongroom(folder, "data", "seal", "plain", "sealed", "--key", "bench")
            other = _gocryptfs(folder)
            for number in range(1 if quick else 3):
                found["plain"].append(_plainly(folder, plain, folder / f"out-{number}", size))
                if other:
                    with _mounted(folder) as mount:
                        found["gocryptfs"].append(_plainly(folder, mount / "plain", mount / f"out-{number}", size))
                found["trusted"].append(_trusted(folder, f"sealed-out-{number}", size))
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    medians = {
        side: {what: statistics.median(one[what] for one in runs) for what in runs[0]}
        for side, runs in found.items()
        if runs
    }
    return {
        "bytes_each": size,
        "gocryptfs": other or "cannot be had here",
        "mb_per_s": {s: {w: round(v / 1e6, 1) for w, v in m.items() if w != "closed"} for s, m in medians.items()},
        "close_s": {s: round(m["closed"], 3) for s, m in medians.items()},
    }


def _plainly(folder: Path, source: Path, target: Path, size: int) -> Speeds:
    target.mkdir()
    said = [
        subprocess.run(
            [sys.executable, folder / program, place, str(size), "sync"], capture_output=True, check=True
        ).stdout
        for program, place in (("reader.py", source), ("writer.py", target))
    ]
    shutil.rmtree(target)
    return {**json.loads(said[0]), **json.loads(said[1])}


def _trusted(folder: Path, out: str, size: int) -> Speeds:
    words = ("run", "--approve", "--unsafe-accept-simulated", "--scratch-mb", "2048")
    read = strongroom(folder, *words, "--", "python", "reader.py", "sealed", str(size))
    wrote = strongroom(
        folder, *words, "--volume", f"out={out}:bench:rw", "--", "python", "writer.py", "/work/out", str(size), ""
    )
    ended = time.time()
    shutil.rmtree(folder / out)
    found = {**json.loads(read), **json.loads(wrote)}
    return {**found, "closed": ended - found["closed"]}


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
        shutil.copytree(folder / "plain", mount / "plain")
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
