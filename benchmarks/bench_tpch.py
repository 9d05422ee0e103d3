"""The 22 queries of TPC-H: sealed tables and results in the enclave against plain Spark on plain files, alternating."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bench_spark import ROOT, plain_spark_submit, strongroom
from strongroom.client.setup import create_workspace

EXAMPLE = ROOT / "examples/tpch"
CONF = (
    "--master", "local[2]", "--driver-memory", "4g", "--conf", "spark.log.level=ERROR", "--conf",
    "spark.sql.shuffle.partitions=4",
)  # fmt: skip
Times = dict[str, float]


CASES = {"parquet 0.1": (2, 2), "parquet 1": (2, 1), "csv 1": (1, 3), "parquet 5": (1, 2)}
"""Format and scale -> rounds in each run, alternating pairs of runs."""


def parts() -> dict[str, Callable[[bool], dict[str, object]]]:
    """Return a benchmark for each format and scale: seconds per query and their ratios."""
    return {f"tpch {case}": partial(_part, case) for case in CASES}


def _part(case: str, quick: bool) -> dict[str, object]:
    kind, scale = case.split()
    rounds, pairs = (1, 1) if quick else CASES[case]
    return _one(kind, 0.02 if quick else float(scale), rounds=rounds, pairs=pairs)


def _one(kind: str, scale: float, *, rounds: int, pairs: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            tool = str(Path(sys.executable).with_name("tpchgen-cli"))
            subprocess.run([tool, kind, "-s", str(scale), "-o", str(folder / "plain")], check=True, capture_output=True)
            strongroom(folder, "key", "create", "bench")
            strongroom(folder, "data", "seal", "plain", "sealed", "--key", "bench")
            for part in ("tpch.py", "queries.sql"):
                shutil.copy(EXAMPLE / part, folder)
            runs: dict[str, list[Times]] = {"plain": [], "trusted": []}
            wall: dict[str, list[float]] = {"plain": [], "trusted": []}
            words = ["--files", "queries.sql", "tpch.py"]
            more = ["--format", kind, "--rounds", str(rounds)]
            for _ in range(pairs):
                started = time.perf_counter()
                runs["plain"].append(_best(plain_spark_submit(folder, *CONF, *words, "plain", "result-plain", *more)))
                wall["plain"].append(time.perf_counter() - started)
                started = time.perf_counter()
                runs["trusted"].append(
                    _best(
                        strongroom(
                            folder, "spark-submit", *CONF, "--volume", "out=out:bench:rw", "--approve",
                            "--unsafe-accept-simulated", *words, "sealed", "/work/out/results", *more,
                        )
                    )
                )  # fmt: skip
                wall["trusted"].append(time.perf_counter() - started)
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    queries = {
        side: {q: round(statistics.median(t[q] for t in times), 3) for q in times[0]} for side, times in runs.items()
    }
    totals = {side: [sum(t.values()) for t in times] for side, times in runs.items()}
    return {
        "pairs": pairs,
        "rounds": rounds,
        "plain_s": round(statistics.median(totals["plain"]), 2),
        "trusted_s": round(statistics.median(totals["trusted"]), 2),
        "ratio": round(statistics.median(t / p for t, p in zip(totals["trusted"], totals["plain"], strict=True)), 3),
        "whole_run_plain_s": round(statistics.median(wall["plain"]), 1),
        "whole_run_trusted_s": round(statistics.median(wall["trusted"]), 1),
        "plain": queries["plain"],
        "trusted": queries["trusted"],
    }


def _best(text: str) -> Times:
    line = next(line for line in text.splitlines() if line.startswith("BEST "))
    found: Times = json.loads(line[5:])
    return found
