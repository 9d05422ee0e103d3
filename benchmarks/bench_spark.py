"""The demo's Spark job trusted against the same job plain: ratio of job times, start-up excluded.

Both run the unmodified report; a listener-free measure serves: the program is started with `-X`-less Python and prints
nothing, so the job's time is that of its own `main`, taken by a wrapper file that times it inside the same process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from strongroom.client.setup import create_workspace
from strongroom.jobs.runtime_base import java_home

ROOT = Path(__file__).parents[1]
TIMER = """
import json, runpy, sys, time
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
spark.range(1000).selectExpr("sum(id)").collect()  # the first job of a JVM pays for starting up
SparkSession.stop = lambda self: None
program, rounds = sys.argv[1], int(sys.argv[2])
sys.argv = [program, *sys.argv[3:]]
times = []
for _ in range(rounds):
    started = time.perf_counter()
    runpy.run_path(program, run_name="__main__")
    times.append(time.perf_counter() - started)
print("TIMES " + json.dumps(times), flush=True)
"""


def run(quick: bool) -> dict[str, object]:
    scale, rounds, pairs = (0.02, 2, 1) if quick else (0.2, 4, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = create_workspace(folder).workspace
        try:
            _prepare(folder, scale)
            plain: list[float] = []
            trusted: list[float] = []
            for _ in range(pairs):  # alternating
                plain.append(min(_plain(folder, rounds)))
                trusted.append(min(_trusted(folder, rounds)))
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)
    return {
        "scale": scale,
        "plain_s": round(statistics.median(plain), 2),
        "trusted_s": round(statistics.median(trusted), 2),
        "ratio": round(statistics.median(trusted) / statistics.median(plain), 3),
        "pairs": pairs,
        "rounds_each": rounds,
    }


def _prepare(folder: Path, scale: float) -> None:
    tool = str(Path(sys.executable).with_name("tpchgen-cli"))
    words = [tool, "csv", "-s", str(scale), "--tables", "orders,lineitem", "-o", str(folder / "plain")]
    subprocess.run(words, check=True, capture_output=True)
    (folder / "report.py").write_text((ROOT / "examples/tpch-report/report.py").read_text())
    (folder / "timer.py").write_text(TIMER)
    strongroom(folder, "key", "create", "bench")
    strongroom(folder, "data", "seal", "plain", "sealed", "--key", "bench")


def strongroom(folder: Path, *words: str) -> str:
    """Run one `strongroom` command in `folder` and return what it printed."""
    program = str(Path(sys.executable).with_name("strongroom"))
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"strongroom {words[0]}: {done.stderr[-2000:]}")
    return done.stdout


_CONF = ("--master", "local[2]", "--conf", "spark.log.level=ERROR", "--conf", "spark.sql.shuffle.partitions=4")


def _trusted(folder: Path, rounds: int) -> list[float]:
    words = ["spark-submit", *_CONF, "--volume", "result=result:bench:rw", "--file", "report.py", "--approve"]
    words += ["--unsafe-accept-simulated", "timer.py", "/app/report.py", str(rounds)]
    return _times(strongroom(folder, *words, "sealed/orders.csv", "sealed/lineitem.csv", "result/report"))


def _plain(folder: Path, rounds: int) -> list[float]:
    words = ["timer.py", "report.py", str(rounds), "plain/orders.csv", "plain/lineitem.csv", "plain-result"]
    return _times(plain_spark_submit(folder, *_CONF, *words))


def plain_spark_submit(folder: Path, *words: str) -> str:
    """Run PySpark's own spark-submit in `folder` on the JVM that jobs run on; return what it printed."""
    import pyspark

    home = folder / "java"
    java = java_home()
    if not (home / "bin").exists():
        (home / "bin").mkdir(parents=True)
        shim = home / "bin" / "java"
        # Spark's launcher asks for a module that the JDK from PyPI does not have.
        shim.write_text(
            "#!/bin/bash\nargs=()\n"
            'for a in "$@"; do [ "$a" = --add-modules=jdk.incubator.vector ] || args+=("$a"); done\n'
            f'exec {java}/bin/java "${{args[@]}}"\n'
        )
        shim.chmod(0o755)
    environment = {
        **os.environ,
        "JAVA_HOME": str(home),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONHASHSEED": "0",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    command = [str(submit), "--conf", "spark.ui.enabled=false", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"plain spark-submit: {done.stderr[-2000:]}")
    return done.stdout


def _times(text: str) -> list[float]:
    line = next(line for line in text.splitlines() if line.startswith("TIMES "))
    return [float(t) for t in json.loads(line[6:])]
