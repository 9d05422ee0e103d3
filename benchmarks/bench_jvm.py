"""The sealed stream in the JVM against `Cipher` alone on chunks of the same size, one thread, CPU time, best of rounds."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.fakes import java_support

MIB = 512


def run(quick: bool) -> dict[str, object]:
    """Return GB/s per core of each way, and ours as a part of `Cipher` alone."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # page cache, not a disk
        said = java_support.checks("bench", Path(folder) / "file", 32 if quick else MIB, options=["-Xmx1g"])
    best: dict[str, float] = {}
    for what, speed in re.findall(r"^(\S.*?) +([0-9.]+) GB/s cpu", said, re.MULTILINE):
        best[what] = max(float(speed), best.get(what, 0.0))
    ratios = {
        "seal / Cipher": round(best["seal to nowhere"] / best["Cipher alone seal"], 2),
        "open, buffer 65536 / Cipher": round(best["open, buffer 65536"] / best["Cipher alone open"], 2),
    }
    return {"gb_per_s_and_core": best, "ratios": ratios, "mib": MIB}
