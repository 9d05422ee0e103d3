"""How fast files are sealed and opened, as ratios taken side by side in one run.

    PYTHONPATH=src python benchmarks/bench_storage.py [--quick]

Prints JSON. `openssl speed` is run right before and after each timed step, so that a busy machine slows both. On
tmpfs, pages that the system has not handed out yet cost more than the work itself; each step is therefore run after a
file of the same size was written and removed, and best of three counts. `copy` is what reading and writing alone cost.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import IntegrityError
from strongroom.storage.dataset import DatasetInfo, Head
from strongroom.storage.files import Expected, open_sealed, seal_stream
from strongroom.storage.trees import open_tree, seal_tree, verify_tree

RING = StaticKeyRing("bench", {1: SecretBytes.random(32)})
INFO = DatasetInfo(dataset="ab" * 16, key="bench", owner="bench")
EXPECT = Expected(dataset_id=INFO.dataset_id)
BLOCK = 1 << 20
REPEATS = 3


class Heads:
    """A head store in memory."""

    def __init__(self) -> None:
        self.head = Head(dataset=INFO.dataset, epoch=0, key=INFO.key, manifest=None, owner=INFO.owner)

    def current(self, dataset: str) -> Head:
        return self.head

    def commit(self, expected: Head, manifest: str, versions: Sequence[int] = ()) -> Head:
        if expected != self.head:
            raise IntegrityError("someone else committed")
        self.head = Head(
            dataset=INFO.dataset, epoch=expected.epoch + 1, key=INFO.key, manifest=manifest, owner=INFO.owner
        )
        return self.head


def openssl_speed() -> float:
    """Bytes a second of AES-256-GCM on 16 KiB, one core; 0 without openssl."""
    if shutil.which("openssl") is None:
        return 0.0
    command = ["openssl", "speed", "-evp", "aes-256-gcm", "-bytes", "16384", "-seconds", "1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.split()[-1].rstrip("k")) * 1000


def write_random(path: Path, size: int) -> None:
    piece = os.urandom(min(size, 16 << 20))
    with path.open("wb", buffering=0) as out:
        for at in range(0, size, len(piece)):
            out.write(piece[: size - at])


def seal(source: Path, target: Path, *, sync: bool = False) -> None:
    with source.open("rb", buffering=0) as raw, target.open("wb", buffering=0) as out:
        seal_stream(raw, out, RING, dataset_id=INFO.dataset_id)
        if sync:
            os.fsync(out.fileno())


def unseal(source: Path, target: Path, *, sync: bool = False) -> None:
    with source.open("rb", buffering=0) as raw, target.open("wb", buffering=0) as out:
        open_sealed(raw, RING, EXPECT).reader.copy_to(out.write)
        if sync:
            os.fsync(out.fileno())


def copy(source: Path, target: Path, *, sync: bool = False) -> None:
    block = memoryview(bytearray(BLOCK))
    with source.open("rb", buffering=0) as raw, target.open("wb", buffering=0) as out:
        while got := raw.readinto(block):
            out.write(block[:got])
        if sync:
            os.fsync(out.fileno())


def best(step: Callable[[], object], target: Path, size: int, *, warm: bool) -> dict[str, float]:
    """Return the best speed of `step` and the openssl speed around it, and their ratio."""
    speeds, references = [], [openssl_speed()]
    for _ in range(REPEATS):
        target.unlink(missing_ok=True)
        if warm:
            warm_up(target.parent, size)
        start = time.perf_counter()
        step()
        speeds.append(size / (time.perf_counter() - start))
        references.append(openssl_speed())
    reference = statistics.median(references)
    return {
        "gb_s": round(max(speeds) / 1e9, 3),
        "openssl_gb_s": round(reference / 1e9, 3),
        "of_openssl": round(max(speeds) / reference, 3) if reference else 0.0,
    }


def bench_memory(size: int) -> dict[str, float]:
    """Chunk work alone, without a file."""

    class Nowhere:
        def write(self, data: memoryview, /) -> int:
            return len(data)

    class Zeros:
        left = size

        def readinto(self, buffer: memoryview, /) -> int:
            got = min(self.left, len(buffer))
            self.left -= got
            return got

        def seek(self, offset: int, whence: int = 0, /) -> int:
            return 0

    return best(
        lambda: seal_stream(Zeros(), Nowhere(), RING, dataset_id=INFO.dataset_id),
        Path("/nonexistent/never"),
        size,
        warm=False,
    )


def bench_tmpfs(folder: Path, size: int) -> dict[str, Any]:
    plain, sealed, opened = folder / "plain", folder / "sealed", folder / "opened"
    write_random(plain, size)
    result: dict[str, Any] = {"bytes": size, "no_file": bench_memory(size)}
    result["copy"] = best(lambda: copy(plain, opened), opened, size, warm=True)
    opened.unlink()
    result["seal"] = best(lambda: seal(plain, sealed), sealed, size, warm=True)
    result["open"] = best(lambda: unseal(sealed, opened), opened, size, warm=True)
    for name in ("seal", "open"):
        result[name]["of_copy"] = round(result[name]["gb_s"] / result["copy"]["gb_s"], 3)
    for path in (plain, sealed, opened):
        path.unlink()
    return result


def bench_disk(folder: Path, size: int) -> dict[str, Any]:
    plain, sealed, opened = folder / "plain", folder / "sealed", folder / "opened"
    write_random(plain, size)
    result: dict[str, Any] = {"bytes": size}
    result["copy_fsync"] = best(lambda: copy(plain, opened, sync=True), opened, size, warm=False)
    opened.unlink()
    result["seal_fsync"] = best(lambda: seal(plain, sealed, sync=True), sealed, size, warm=False)
    result["open_fsync"] = best(lambda: unseal(sealed, opened, sync=True), opened, size, warm=False)
    for name in ("seal_fsync", "open_fsync"):
        result[name]["of_copy"] = round(result[name]["gb_s"] / result["copy_fsync"]["gb_s"], 3)
    result["others"] = bench_others(folder, plain, size, result["seal_fsync"]["gb_s"])
    for path in (plain, sealed, opened):
        path.unlink()
    return result


def bench_others(folder: Path, plain: Path, size: int, ours: float) -> dict[str, Any]:
    """Time age and gpg on the same file; Debian has both, and only root can install them."""
    from tests.servers.packages import apt_install

    if os.getuid() == 0 and not all(map(shutil.which, ("gpg", "age"))):
        apt_install("gpg", "age")
    out = folder / "other"
    result: dict[str, Any] = {}
    if shutil.which("gpg"):
        home = folder / "gnupg"
        home.mkdir(mode=0o700)
        command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--pinentry-mode", "loopback"]
        command += ["--passphrase", "bench", "--compress-algo", "none", "--cipher-algo", "AES256"]
        result["gpg --symmetric"] = timed([*command, "-o", str(out), "--symmetric", str(plain)], size, ours, out)
    if shutil.which("age") and shutil.which("age-keygen"):
        made = subprocess.run(["age-keygen", "-o", str(folder / "age.key")], capture_output=True, text=True, check=True)
        recipient = made.stderr.split()[-1]
        result["age"] = timed(["age", "-r", recipient, "-o", str(out), str(plain)], size, ours, out)
    for name in ("gpg --symmetric", "age"):
        result.setdefault(name, "not installed")
    return result


def timed(command: list[str], size: int, ours: float, out: Path) -> dict[str, float]:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    with out.open("rb") as written:
        os.fsync(written.fileno())
    speed = size / (time.perf_counter() - start) / 1e9
    out.unlink()
    return {"gb_s": round(speed, 3), "ours_is_times": round(ours / speed, 2)}


def warm_up(folder: Path, size: int) -> None:
    """Make the system hand out the pages that the next step will write."""
    filler = folder / "filler"
    write_random(filler, size + (32 << 20))
    filler.unlink()


def copy_tree(source: Path, target: Path, workers: int) -> None:
    """Copy the files by so many processes of `cp` beside each other: what the file system alone makes of two cores."""
    target.mkdir()
    files = sorted(source.iterdir())
    running = [subprocess.Popen(["cp", *files[number::workers], target]) for number in range(workers)]
    assert [child.wait() for child in running] == [0] * workers


def bench_tree(folder: Path, files: int, size: int) -> dict[str, Any]:
    """A tree with one worker and with two; includes the start of the processes and every fsync."""
    source, sealed, opened = folder / "tree", folder / "sealed-tree", folder / "opened-tree"
    source.mkdir()
    total = files * size
    for number in range(files):
        write_random(source / f"part-{number:04}", size)
    times: dict[str, list[float]] = {}
    copied = folder / "copied-tree"
    for _ in range(REPEATS):
        for workers in (1, 2):
            heads = Heads()
            steps: dict[str, Callable[[], object]] = {
                "copy": lambda w=workers: copy_tree(source, copied, w),
                "seal": lambda h=heads, w=workers: seal_tree(source, sealed, RING, h, info=INFO, workers=w),
                "verify": lambda h=heads, w=workers: verify_tree(sealed, RING, h.head, workers=w),
                "open": lambda h=heads, w=workers: open_tree(sealed, opened, RING, h.head, workers=w),
            }
            for name, step in steps.items():
                if name != "verify":
                    warm_up(folder, total)
                start = time.perf_counter()
                step()
                times.setdefault(f"{name}_{workers}", []).append(time.perf_counter() - start)
                shutil.rmtree(copied, ignore_errors=True)
            shutil.rmtree(sealed)
            shutil.rmtree(opened)
    shutil.rmtree(source)
    result: dict[str, Any] = {"files": files, "bytes_each": size}
    for name, taken in times.items():
        result[f"{name}_worker_gb_s"] = round(total / min(taken) / 1e9, 3)
    for name in ("copy", "seal", "verify", "open"):
        result[f"{name}_scaling"] = round(min(times[f"{name}_1"]) / min(times[f"{name}_2"]), 2)
    return result


def peak_rss_mb(size: int) -> float:
    """Peak memory of a fresh process that seals and opens a sparse file of `size` bytes."""
    code = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:];"
        "import bench_storage as b; folder = Path(sys.argv[1]);"
        "b.seal(folder / 'sparse', folder / 'sealed'); b.unseal(folder / 'sealed', folder / 'opened');"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        with open(f"{name}/sparse", "wb") as out:
            out.truncate(size)
        here = str(Path(__file__).parent)
        out_text = subprocess.run(
            [sys.executable, "-c", code, name, here, *sys.path], capture_output=True, text=True, check=True
        ).stdout
    return round(float(out_text), 1)


def run(quick: bool) -> dict[str, Any]:
    """Return every figure; `quick` takes small files, whose figures are for smoke tests only."""
    size = (64 << 20) if quick else (1 << 30)
    cores = os.sched_getaffinity(0)
    result: dict[str, Any] = {"quick": quick, "cores": len(cores)}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        memory = Path(name)
        os.sched_setaffinity(0, {max(cores)})
        try:
            result["tmpfs_one_core"] = bench_tmpfs(memory, size)
        finally:
            os.sched_setaffinity(0, cores)
        # Large enough that 0.15 s of process start does not hide the scaling.
        result["tree_tmpfs"] = bench_tree(memory, 16, size // 16 if quick else size // 4)
    with tempfile.TemporaryDirectory(dir=os.environ.get("STRONGROOM_BENCH_DISK", os.getcwd())) as name:
        result["disk"] = bench_disk(Path(name), size)
    result["peak_rss_mb"] = {"small": peak_rss_mb(1 << 20), "large": peak_rss_mb(size)}
    result["own_peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(run(parser.parse_args().quick), indent=1))


if __name__ == "__main__":
    main()
