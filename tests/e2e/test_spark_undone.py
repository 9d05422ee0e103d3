"""Spark jobs that fail or die in the middle lose nothing: batches stay, the rest is undone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.conftest import STRONGROOM, Shell, stop_service
from tests.e2e.test_spark_real_data import PROGRAMS, QUICK, ROOT, TAXI
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave

pytestmark = pytest.mark.e2e
FILES = 8


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Enclave]:
    made = make_enclave(tmp_path)
    yield made
    stop_service(made.workspace)


def submit(shell: Shell, *words: str, master: str = "local[2]") -> list[str]:
    """Return the command line of a job that its owner approves."""
    return [STRONGROOM, "spark-submit", *APPROVE, "--master", master, *QUICK, *words]


def wait_for_batches(state: Path, process: subprocess.Popen[str], count: int = 3) -> None:
    """Wait until the stream has committed `count` manifests to the folder of its checkpoint's data set."""
    manifests: set[str] = set()
    until = time.monotonic() + 150
    while len(manifests) < count:
        assert time.monotonic() < until, f"no {count} batches in time"
        assert process.poll() is None, "the stream ended too early"
        manifests |= {p.name for p in state.glob("?" * 64)} if state.is_dir() else set()
        time.sleep(0.05)


def guests(shell: Shell) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(shell.folder).encode() in words and b"bwrap" in words.split(b"\0")[0]:
            found.append(int(entry.name))
    return found


def test_a_stream_killed_between_batches_goes_on_and_counts_every_row_once(shell: Enclave) -> None:
    lines = TAXI.read_text().splitlines()[1:]
    step = len(lines) // FILES + 1
    shell.seal("trips", {f"{i}.csv": "\n".join(lines[i * step : (i + 1) * step]) + "\n" for i in range(FILES)})
    command = submit(
        shell, "--volume", "table=table:sales:rw", "--volume", "state=state:sales:rw",
        str(ROOT / "examples/streaming/trips.py"), "trips", "table/t", "state/c",
    )  # fmt: skip
    environment = {**os.environ, **shell.environment}
    process = subprocess.Popen(command, cwd=shell.folder, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for_batches(shell.folder / "state/.dataset", process)
    for pid in [*guests(shell), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert (shell.folder / "state/.dataset/kept").is_dir()  # nobody tidied up
    said = shell.run("data", "verify", "state", check=False).stderr
    assert "did not end" in said
    assert "strongroom data restore" in said
    assert " removed" in shell.run("data", "restore", "state").stdout
    shell.run("data", "verify", "state")
    done = subprocess.run(
        command, cwd=shell.folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"rows {len(lines)}" in done.stdout
    assert "did not end" in done.stderr
    assert "is gone" not in done.stderr
    shell.run("data", "open", "table", "opened")
    opened = pyarrow.parquet.read_table(shell.folder / "opened/t").to_pylist()
    assert sorted((r["at"], r["value"]) for r in opened) == sorted(
        (at, float(value)) for at, value in (line.split(",") for line in lines)
    )


def test_partitioned_output_needs_a_job_that_may_show_values(shell: Enclave) -> None:
    (shell.folder / "parts.py").write_text(
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.getOrCreate()\n"
        "frame = spark.createDataFrame([(1, 'secret-land'), (2, 'other')], 'n int, country string')\n"
        "frame.write.partitionBy('country').parquet('/work/out/t')\n"
        "open('/work/out/plain', 'w').write('w')\n"
    )
    environment = {**os.environ, **shell.environment}
    for mode, code in (("rw", 1), ("rw:names", 0)):
        done = subprocess.run(
            submit(shell, "--volume", f"out=out:sales:{mode}", "parts.py"), cwd=shell.folder, env=environment,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-4000:]
        assert ("folder names are visible to the host" in done.stderr) == bool(code)
        assert ("what the program wrote to /work without Spark is gone" in done.stderr) == (not code)
        assert any("secret-land" in str(p) for p in (shell.folder / "out").rglob("*")) == (not code)


def test_an_overwrite_that_fails_leaves_the_table_as_it_was(shell: Enclave) -> None:
    volume = ("--volume", "out=out:sales:rw", str(PROGRAMS / "fail_late.py"), "/work/out/table")
    environment = {**os.environ, **shell.environment}
    before: dict[str, bytes] = {}
    for words, code in (((), 0), (("fail",), 3)):
        done = subprocess.run(
            submit(shell, *volume, *words), cwd=shell.folder, env=environment, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-4000:]
        assert "overwritten" in done.stdout
        now = {
            str(p.relative_to(shell.folder)): p.read_bytes() for p in (shell.folder / "out").rglob("*") if p.is_file()
        }
        assert now == (before or now)
        before = now
    shell.run("data", "verify", "out")
