"""Building a job for SGX (Gramine's manifest): first, again, and after a change of the program, beside hashing alone."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.bench_spark import strongroom
from strongroom.client.setup import create_workspace

_HEAD = '[job]\nworkload = "{}"\nprogram = "{}"\nenclave = "gramine"\n{}\n[sandbox]\nnetwork = true\nscratch_mb = 512\n'
_PYTHON = {"numpy": "import numpy\n", "pandas": "import pandas\n"}
_ENGINE = 'main_class = "Main"\nengine = { "spark.master" = "local[2]" }\n'


def run(quick: bool) -> dict[str, object]:
    """Return for each job: trusted files, MB, and seconds of builds and of hashing the same files on one core."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            jobs = {job: (f"{job}.py", _HEAD.format("python", f"{job}.py", "")) for job in ("numpy",) if quick} or {
                **{job: (f"{job}.py", _HEAD.format("python", f"{job}.py", "")) for job in _PYTHON},
                "Spark, a jar": ("app.jar", _HEAD.format("spark", "app.jar", _ENGINE)),
            }
            return {job: _builds(folder, program, text) for job, (program, text) in jobs.items()}
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)


def _builds(folder: Path, program: str, text: str) -> dict[str, object]:
    (folder / "job.toml").write_text(text)
    _write(folder / program, 0)
    first, bundle = _build(folder)
    again = min(_build(folder)[0] for _ in range(3))
    changed = []
    for number in range(1, 4):
        _write(folder / program, number)
        changed.append(_build(folder)[0])
    reference = json.loads((bundle / "reference.json").read_text())
    files = [p for p in (bundle / "root").rglob("*") if p.is_file()]
    started = time.perf_counter()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    hashing = time.perf_counter() - started
    seconds = {"first_s": first, "again_s": again, "changed_s": min(changed), "hashing_s": hashing}
    return {
        "files": reference["files"],
        "mb": round(reference["bytes"] / 1e6),
        **{name: round(value, 2) for name, value in seconds.items()},
        "ratio": round(min(changed) / hashing, 2),
    }


def _write(program: Path, number: int) -> None:
    if program.suffix == ".py":
        program.write_text(f"{_PYTHON[program.stem]}print({number})\n")
        return
    with zipfile.ZipFile(program, "w") as jar:
        jar.writestr("Main.class", bytes([number]))


def _build(folder: Path) -> tuple[float, Path]:
    started = time.perf_counter()
    found = json.loads(strongroom(folder, "job", "build", "job.toml", "--json"))
    return time.perf_counter() - started, Path(found["bundle"])
