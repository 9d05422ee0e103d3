"""What launch, attestation and release add to a program: `strongroom run -- python -c pass` against plain Python."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from strongroom.client.setup import create_workspace


def _timed(words: list[str], cwd: Path) -> float:
    started = time.perf_counter()
    subprocess.run(words, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - started


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def run(quick: bool) -> dict[str, object]:
    rounds = 5 if quick else 15
    strongroom = str(Path(sys.executable).with_name("strongroom"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            trusted = [strongroom, "run", "--", "python", "-c", "pass"]
            keyed_app = folder / "app.py"
            keyed_app.write_text("")
            subprocess.run([strongroom, "key", "create", "bench"], cwd=folder, check=True, capture_output=True)
            keyed = [strongroom, "run", "--volume", "out=out:bench:rw"]
            approve = [*keyed, "--approve", "--unsafe-accept-simulated", "--", "python", "app.py"]
            subprocess.run(approve, cwd=folder, check=True, capture_output=True)
            plain_s, run_s, key_s = [], [], []
            for _ in range(rounds):  # alternating, so that other load hits all alike
                plain_s.append(_timed([sys.executable, "-c", "pass"], folder))
                run_s.append(_timed(trusted, folder))
                key_s.append(_timed([*keyed, "--", "python", "app.py"], folder))
            service = max(_rss_mb(p) for p in _children(workspace.pid() or 0) or [workspace.pid() or 0])
            guest = _guest_rss(strongroom, folder)
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    return {
        "rounds": rounds,
        "plain_ms": round(statistics.median(plain_s) * 1000),
        "trusted_ms": round(statistics.median(run_s) * 1000),
        "added_ms": round((statistics.median(run_s) - statistics.median(plain_s)) * 1000),
        "added_ms_best": round((min(run_s) - min(plain_s)) * 1000),
        "added_with_key_ms": round((statistics.median(key_s) - statistics.median(plain_s)) * 1000),
        "service_rss_mb": round(service),
        "guest_rss_mb": round(guest),
    }


def _guest_rss(strongroom: str, folder: Path) -> float:
    words = [strongroom, "run", "--", "python", "-c", "import time; time.sleep(3)"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    best = 0.0
    while process.poll() is None:
        for entry in Path("/proc").iterdir():
            try:
                words_there = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if b"strongroom.guest.main" in words_there and b"bwrap" not in words_there.split(b"\0")[0]:
                best = max(best, _rss_mb(int(entry.name)))
        time.sleep(0.2)
    return best
