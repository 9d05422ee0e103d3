"""Bytes between two enclaves of a job, through its private network, against loopback inside one of them."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from benchmarks.bench_spark import strongroom
from strongroom.client.setup import create_workspace

PROGRAM = """
import os, socket, sys, threading, time
from pyspark import BarrierTaskContext
from pyspark.sql import SparkSession

MIB = int(sys.argv[1])

def pump(target, block):
    sock = socket.create_connection(target)
    for _ in range(MIB):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)

def drain(listener):
    sock, _ = listener.accept()
    while sock.recv(1 << 20):
        pass
    sock.sendall(b".")

def measure(_part):
    context = BarrierTaskContext.get()
    own = os.environ["SPARK_LOCAL_IP"]
    block = os.urandom(1 << 20)
    listener = socket.create_server((own, 0))
    places = context.allGather(f"{own}:{listener.getsockname()[1]}")
    for name, first in (("between", 0), ("between", 0), ("inside", 1), ("inside", 1)):
        context.barrier()
        if context.partitionId() == 1 and first == 0:
            drain(listener)
        if context.partitionId() == 0:
            target = places[1] if first == 0 else places[0]
            host, port = target.split(":")
            thread = threading.Thread(target=drain, args=(listener,)) if first else None
            if thread:
                thread.start()
            started = time.perf_counter()
            pump((host, int(port)), block)
            yield name, MIB / 953.674 / (time.perf_counter() - started)

spark = SparkSession.builder.getOrCreate()
for name, speed in spark.sparkContext.parallelize(range(2), 2).barrier().mapPartitions(measure).collect():
    print(f"{name} {speed:.3f} GB/s", flush=True)
spark.stop()
"""


def run(quick: bool) -> dict[str, object]:
    """Return GB/s between two enclaves on this machine, inside one, and the ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            strongroom(folder, "key", "create", "peers")
            (folder / "pump.py").write_text(PROGRAM)
            said = strongroom(
                folder, "spark-submit", "--approve", "--unsafe-accept-simulated", "--column-key", "peers",
                "--master", "local-cluster[2,1,1024]", "pump.py", "64" if quick else "2048",
            )  # fmt: skip
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    best: dict[str, float] = {}
    for where, speed in re.findall(r"^(between|inside) ([0-9.]+) GB/s", said, re.MULTILINE):
        best[where] = max(float(speed), best.get(where, 0.0))
    return {
        "between_gb_per_s": best["between"],
        "loopback_gb_per_s": best["inside"],
        "ratio": round(best["between"] / best["inside"], 2),
    }
