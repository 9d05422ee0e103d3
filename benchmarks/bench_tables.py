"""Scanning and writing one gigabyte of tables as csv and Parquet, sealed and plain, and with Parquet's column keys."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pyarrow.parquet.encryption

from benchmarks.bench_spark import plain_spark_submit, strongroom
from benchmarks.bench_tpch import CONF
from strongroom.client.owner import OwnerClient
from strongroom.client.setup import create_workspace
from strongroom.client.workspace import Workspace
from strongroom.storage.parquet import crypto_factory

PROGRAM = """
import json, sys, time
from pyspark.sql import SparkSession

source, target, rounds, key = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
spark = SparkSession.builder.getOrCreate()
spark.range(1000).selectExpr("sum(id)").collect()
schema = spark.read.parquet(f"{source}/lineitem.parquet").schema
keyed = {"parquet.encryption.uniform.key": key} if key != "-" else {}
steps = {
    "scan csv": lambda: spark.read.schema(schema).csv(f"{source}/lineitem.csv", header=True).write.format("noop").mode("overwrite").save(),
    "scan parquet": lambda: spark.read.parquet(f"{source}/lineitem.parquet").write.format("noop").mode("overwrite").save(),
    "write csv": lambda: spark.read.parquet(f"{source}/lineitem.parquet").write.mode("overwrite").csv(f"{target}/csv"),
    "write parquet": lambda: spark.read.parquet(f"{source}/lineitem.parquet").write.mode("overwrite").parquet(f"{target}/parquet"),
}
if keyed:
    steps["write parquet, column key"] = lambda: spark.read.parquet(f"{source}/lineitem.parquet").write.options(**keyed).mode("overwrite").parquet(f"{target}/keyed")
    steps["scan parquet, column key"] = lambda: spark.read.parquet(f"{target}/keyed").write.format("noop").mode("overwrite").save()
    steps["scan parquet, written here"] = lambda: spark.read.parquet(f"{target}/parquet").write.format("noop").mode("overwrite").save()
times = {name: [] for name in steps}
for _ in range(rounds):
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        times[name].append(time.perf_counter() - started)
print("TIMES " + json.dumps({name: min(found) for name, found in times.items()}), flush=True)
"""


def run(quick: bool) -> dict[str, object]:
    """Return seconds, plain and trusted, and their ratios."""
    scale, rounds, pairs = (0.02, 1, 1) if quick else (1.3, 2, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            tool = str(Path(sys.executable).with_name("tpchgen-cli"))
            for kind in ("csv", "parquet"):
                words = [tool, kind, "-s", str(scale), "-T", "lineitem", "-o", str(folder / "plain")]
                subprocess.run(words, check=True, capture_output=True)
            sizes = {p.name: p.stat().st_size for p in (folder / "plain").iterdir()}
            strongroom(folder, "key", "create", "bench")
            strongroom(folder, "key", "create", "columns")
            strongroom(folder, "data", "seal", "plain", "sealed", "--key", "bench")
            (folder / "timed.py").write_text(PROGRAM)
            sides: dict[str, list[dict[str, float]]] = {"plain": [], "trusted": []}
            for _ in range(pairs):  # alternating
                said = plain_spark_submit(folder, *CONF, "timed.py", "plain", "result", str(rounds), "-")
                sides["plain"].append(_times(said))
                said = strongroom(
                    folder, "spark-submit", *CONF, "--volume", "out=out:bench:rw", "--column-key", "columns:rw",
                    "--approve", "--unsafe-accept-simulated", "timed.py", "sealed", "/work/out/t", str(rounds), "columns",
                )  # fmt: skip
                sides["trusted"].append(_times(said))
            arrow = _arrow(folder, workspace)
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    middle = {
        side: {name: round(statistics.median(f[name] for f in found), 3) for name in found[0]}
        for side, found in sides.items()
    }
    ratios = {name: round(middle["trusted"][name] / seconds, 3) for name, seconds in middle["plain"].items()}
    own = middle["trusted"]
    ratios["column key: write / without"] = round(own["write parquet, column key"] / own["write parquet"], 3)
    ratios["column key: scan / without"] = round(own["scan parquet, column key"] / own["scan parquet, written here"], 3)
    return {"bytes": sizes, "pairs": pairs, "rounds": rounds, **middle, "ratios": ratios, "pyarrow": arrow}


def _times(said: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(next(x for x in said.splitlines() if x.startswith("TIMES "))[6:])
    return found


def _arrow(folder: Path, workspace: Workspace) -> dict[str, float]:
    # The same rows with and without the key, read by PyArrow in this process.
    strongroom(folder, "data", "open", "out", "opened")
    factory = crypto_factory(OwnerClient(workspace).key_ring)
    config = pyarrow.parquet.encryption.KmsConnectionConfig()

    def plain() -> None:
        for path in (folder / "opened/t/parquet").glob("*.parquet"):
            pyarrow.parquet.read_table(path)

    def keyed() -> None:
        for path in (folder / "opened/t/keyed").glob("*.parquet"):
            properties = factory.file_decryption_properties(config)
            pyarrow.parquet.ParquetFile(path, decryption_properties=properties).read()

    found = {"plain_s": _best(plain), "keyed_s": _best(keyed)}
    return {**found, "ratio": round(found["keyed_s"] / found["plain_s"], 3)}


def _best(step: Callable[[], None]) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return round(min(times), 3)
