"""What Spark jobs must bear: many files, a big file, a key that is taken back, a trust service that goes away.

The figures go to docs/reference/spark-limits.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.conftest import stop_service
from tests.e2e.test_service_kill import wait_gone, worker_of
from tests.e2e.test_spark_real_data import PROGRAMS, ROOT
from tests.e2e.test_spark_undone import submit, wait_for_batches
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave

pytestmark = [pytest.mark.e2e, pytest.mark.long]
PAGE = ROOT / "docs/reference/spark-limits.md"
FILES = 10_000
LINE, LINES = 1 << 20, 20 << 10
HEAP = ("--driver-memory", "3g")
BOTH_COMPILERS = ("--driver-java-options", "-XX:+UseSerialGC")
"""In place of what the other tests say: the client compiler alone does AES without the processor's instructions."""
LEASE_S = 120
OUTAGE_S = 60
OUTAGE_LEASE_S = 180
"""A renewal falls due after half of it: even one that was due as the service went leaves time to start it again."""
BATCHES = 12


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Enclave]:
    made = make_enclave(tmp_path)
    yield made
    stop_service(made.workspace)


def record(what: str, figures: str) -> None:
    """Put one row into the page, in place of the older one."""
    row = f"| {what} | {figures} | {datetime.now(UTC).date().isoformat()} |"
    rows = PAGE.read_text().splitlines()
    known = [line.startswith(f"| {what} |") for line in rows]
    assert sum(known) == 1, f"{PAGE} has no row {what!r}"
    PAGE.write_text("\n".join(row if old else line for line, old in zip(rows, known, strict=True)) + "\n")


def start(shell: Enclave, command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a job whose standard error goes to the file `said`."""
    with open(shell.folder / "said", "w") as said:
        return subprocess.Popen(
            command, cwd=shell.folder, env={**os.environ, **shell.environment}, stdout=subprocess.PIPE, stderr=said,
            text=True,
        )  # fmt: skip


def test_ten_thousand_files(shell: Enclave) -> None:
    began = time.monotonic()
    shell.seal("many", {f"{n:05}.csv": f"{n},marker-many\n" for n in range(FILES)})
    sealed_s = time.monotonic() - began
    words = submit(
        shell, *HEAP, "--volume", "many=many", "--volume", "out=out:sales:rw", str(PROGRAMS / "many_files.py"),
        "many", "out/many", str(FILES),
    )  # fmt: skip
    began = time.monotonic()
    said = shell.run(*words[1:], timeout_s=1800).stdout.splitlines()
    whole_s = time.monotonic() - began
    found = {line.split()[0]: line.split()[1:] for line in said if line.startswith(("read", "written", "again"))}
    total = sum(range(FILES))
    assert found["read"][:2] == found["again"][:2] == [str(FILES), str(total)]
    assert len(list((shell.folder / "out/many").glob("part-*"))) == FILES
    read_s, written_s, again_s = (found[step][-1] for step in ("read", "written", "again"))
    record(
        f"{FILES:,} files of a line each",
        f"sealed in {sealed_s:.0f} s; Spark reads them in {read_s} s, writes as many in {written_s} s and reads "
        f"those in {again_s} s; the whole job with its commit {whole_s:.0f} s; heap 3 GB",
    )


def test_one_file_of_twenty_gigabytes(shell: Enclave) -> None:
    marks = {0: b"mark-first", 7: b"mark-seventh", LINES // 2: b"mark-middle", LINES - 1: b"mark-last"}
    plain, sealed = shell.folder / "big.plain/zeros.txt", shell.folder / "big"
    plain.parent.mkdir()
    try:
        with open(plain, "wb") as file:  # sparse: the plaintext takes next to no room on the disk
            for number in range(LINES):
                file.seek(number * LINE + 1000)
                file.write(marks.get(number, b""))
                file.seek((number + 1) * LINE - 1)
                file.write(b"\n")
        began = time.monotonic()
        shell.run("data", "seal", "big.plain", "big", "--key", "sales", timeout_s=1800)
        sealed_s = time.monotonic() - began
        assert (sealed / "zeros.txt").stat().st_size > LINE * LINES
        words = submit(
            shell, *HEAP, *BOTH_COMPILERS, "--volume", "big=big",
            str(PROGRAMS / "big_file.py"), "big/zeros.txt",
        )  # fmt: skip
        said = shell.run(*words[1:], timeout_s=3000).stdout
    finally:  # pytest keeps folders of passed tests
        plain.unlink(missing_ok=True)
        (sealed / "zeros.txt").unlink(missing_ok=True)
    found = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert found["lines"] == [str(LINES), *[str(LINE - 1)] * 2, *sorted(mark.decode() for mark in marks.values())]
    assert int(found["parts"][0]) > 100
    record(
        "one file of 20 GB",
        f"sealed in {sealed_s:.0f} s; Spark reads it in {found['parts'][0]} parts in {found['seconds'][0]} s; "
        "heap 3 GB",
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("policy", "clear", "sales"), "a policy that is taken back"),
        (("key", "disable", "sales", "1"), "a key that is disabled"),
    ],
)
def test_a_key_that_is_taken_back(shell: Enclave, words: tuple[str, ...], what: str) -> None:
    shell.run("service", "lease", str(LEASE_S))
    command = submit(shell, "--volume", "in=in", str(PROGRAMS / "reads_on.py"), "in", "600")
    process = start(shell, command)
    assert process.stdout is not None
    assert process.stdout.readline() == "rows 2\n"
    shell.run(*words)
    began = time.monotonic()
    again = shell.run(*(word for word in command[1:] if word not in APPROVE), check=False)
    refused_s = time.monotonic() - began
    assert again.returncode == 1
    assert "rows" not in again.stdout
    process.communicate(timeout=LEASE_S + 30)
    stopped_s = time.monotonic() - began
    said = (shell.folder / "said").read_text()
    assert process.returncode == 1, said[-3000:]
    assert "the lease was not renewed" in said
    assert stopped_s < LEASE_S + 10
    figures = f"a new job is refused after {refused_s:.0f} s; a running one stops after {stopped_s:.0f} s"
    record(what, f"{figures} (lease {LEASE_S} s)")


@pytest.mark.parametrize(
    ("master", "where"),
    [
        pytest.param("local[2]", "", id="one-enclave"),
        pytest.param("local-cluster[2,1,1024]", ", job of three enclaves", id="three-enclaves"),
    ],
)
def test_the_trust_service_is_away_for_a_minute(shell: Enclave, master: str, where: str) -> None:
    """Batches are committed meanwhile, and a renewal of the lease falls due."""
    rows = [(f"2026-11-{day:02}", float(hour)) for day in range(1, BATCHES + 1) for hour in range(24)]
    shell.seal(
        "trips",
        {f"{n}.csv": "".join(f"{at},{value}\n" for at, value in rows[n * 24 : (n + 1) * 24]) for n in range(BATCHES)},
    )
    shell.run("service", "lease", str(OUTAGE_LEASE_S))
    command = submit(
        shell, "--volume", "trips=trips", "--volume", "table=table:sales:rw", "--volume", "state=state:sales:rw",
        str(ROOT / "examples/streaming/trips.py"), "/work/trips", "/work/table/t", "/work/state/c",
        master=master,
    )  # fmt: skip
    process = start(shell, command)
    wait_for_batches(shell.folder / "state/.dataset", process)
    supervisor = shell.workspace.pid()
    assert supervisor is not None
    worker = worker_of(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    wait_gone(worker)
    time.sleep(OUTAGE_S)
    limit = time.monotonic() + OUTAGE_LEASE_S / 2 - OUTAGE_S
    while "lease not renewed yet" not in (shell.folder / "said").read_text() and time.monotonic() < limit:
        time.sleep(0.5)
    assert process.poll() is None, (shell.folder / "said").read_text()[-3000:]
    assert not shell.workspace.is_running()
    shell.run("service", "start")
    back = time.monotonic()
    out, _ = process.communicate(timeout=200)
    finished_s = time.monotonic() - back
    said = (shell.folder / "said").read_text()
    assert process.returncode == 0, said[-3000:]
    assert "commit not answered" in said, "no commit fell into the outage"
    assert "lease not renewed yet" in said, "no renewal fell into the outage"
    assert f"rows {len(rows)}" in out
    shell.run("data", "verify", "table")
    shell.run("data", "open", "table", "opened")
    opened = pyarrow.parquet.read_table(shell.folder / "opened/t").to_pylist()
    assert sorted((r["at"], r["value"]) for r in opened) == sorted(rows)
    record(
        f"the trust service is away for a minute{where}",
        f"killed between batches of a stream; the next batch waits, the job ends {finished_s:.0f} s after the service "
        f"is back, with every row once (lease {OUTAGE_LEASE_S} s)",
    )
