"""What an environment of a gigabyte costs: building it, and launching a program in it against one in the usual packages."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_spark import strongroom
from strongroom.client.setup import create_workspace

LARGE, SMALL = ("torch==2.13.0", "numpy"), ("tabulate",)


def run(quick: bool) -> dict[str, object]:
    """Return seconds to build, size, and seconds to launch; launches alternate, plain Python in the same packages too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            locked = strongroom(folder, "env", "lock", *(SMALL if quick else LARGE))
            (folder / "locked.txt").write_text(locked)
            started = time.perf_counter()
            strongroom(folder, "env", "build", "locked.txt", "env")
            build_s = time.perf_counter() - started
            sizes = [p.stat().st_size for p in (folder / "env").rglob("*") if p.is_file()]
            (packages,) = (folder / "env/lib").glob("python3.*/site-packages")
            program = "import tabulate" if quick else "import torch"
            runs: dict[str, list[float]] = {"first": [], "plain": [], "trusted": [], "usual packages": []}
            trusted = ("run", "--venv", "env", "--", "python", "-c", program)
            runs["first"].append(_timed(folder, trusted))
            for _ in range(3 if quick else 7):
                runs["plain"].append(_timed_plain(program, packages))
                runs["trusted"].append(_timed(folder, trusted))
                runs["usual packages"].append(_timed(folder, ("run", "--", "python", "-c", "pass")))
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    seconds = {name: round(statistics.median(times), 3) for name, times in runs.items()}
    return {
        "files": len(sizes),
        "mb": round(sum(sizes) / 1e6),
        "build_s": round(build_s, 1),
        "program": program,
        "launch_s": seconds,
        "added_s": round(seconds["trusted"] - seconds["plain"], 3),
    }


def _timed(folder: Path, words: tuple[str, ...]) -> float:
    started = time.perf_counter()
    strongroom(folder, *words)
    return time.perf_counter() - started


def _timed_plain(program: str, packages: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-c", program], env=environment, check=True, capture_output=True)
    return time.perf_counter() - started
