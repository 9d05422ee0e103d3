# ruff: noqa: E501  # programs and tables
"""The host and other runs against the data of a live run. T120, T128-T138 of docs/threat-model.md."""

import io
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, error, make_enclave

READING = """
import os
for folder, _, names in os.walk('/work/in'):
    print('RAN', [open(os.path.join(folder, name)).read() for name in sorted(names)], names)
"""
READ = ("--volume", "in=in", "--", "python", "-c", READING)
WRITE = ("--volume", "out=out:sales:rw", "--")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("data"))
    yield made
    stop_service(made.workspace)


@pytest.fixture
def fresh(shell: Enclave) -> Iterator[Enclave]:
    """The shell, its data set restored afterwards and no output yet."""
    shutil.copytree(shell.folder / "in", shell.folder / "kept", symlinks=True)
    yield shell
    shutil.rmtree(shell.folder / "in")
    (shell.folder / "kept").rename(shell.folder / "in")
    for left in ("out", "moved-sub"):
        shutil.rmtree(shell.folder / left, ignore_errors=True)


def refused_by_name(outcome: Mapping[str, object], path: str, kind: str) -> None:
    assert outcome["outcome"] == "failed", outcome
    assert outcome["exit_code"] is None
    assert "RAN" not in str(outcome["said"])
    message = str(error(outcome)["message"])
    assert path in message, message
    assert kind in message, message
    assert error(outcome)["code"] == "integrity"


def swap(folder: Path) -> None:
    (folder / "a.csv").rename(folder / "x")
    (folder / "sub/b.csv").rename(folder / "a.csv")
    (folder / "x").rename(folder / "sub/b.csv")


def link_in_the_middle(folder: Path) -> None:
    (folder / "sub").rename(folder.parent / "moved-sub")
    (folder / "sub").symlink_to("/work/in/sub")


def link(folder: Path) -> None:
    (folder / "a.csv").rename(folder.parent / "moved.csv")
    (folder / "a.csv").symlink_to(folder.parent / "moved.csv")


def flip(folder: Path) -> None:
    raw = bytearray((folder / "a.csv").read_bytes())
    raw[-1] ^= 1
    (folder / "a.csv").write_bytes(raw)


@pytest.mark.parametrize(
    ("change", "path", "kind"),
    [
        (swap, "a.csv", "swapped"),
        (lambda f: (f / "sub/b.csv").unlink(), "sub/b.csv", "dropped"),
        (lambda f: os.truncate(f / "a.csv", 190), "a.csv", ""),
        (flip, "a.csv", "altered"),
        (lambda f: (f / "a.csv").write_text("plain"), "a.csv", "truncated"),
        (link, "a.csv", "symbolic link"),
        (link_in_the_middle, "sub/b.csv", "symbolic link"),
    ],
)
def test_T129_T130_tampered_input_is_refused_by_name(
    fresh: Enclave, change: Callable[[Path], object], path: str, kind: str
) -> None:
    change(fresh.folder / "in")
    refused_by_name(fresh.outcome(*READ), path, kind)


def test_T128_file_of_another_data_set(fresh: Enclave) -> None:
    other = fresh.seal("other", {"a.csv": "id,name\n1,alpha\n"})
    try:
        shutil.copy(other / "a.csv", fresh.folder / "in/a.csv")
        refused_by_name(fresh.outcome(*READ), "a.csv", "another key or data set")
    finally:
        shutil.rmtree(other)


def test_T129_rolled_back_data_set_and_added_file(fresh: Enclave) -> None:
    folder, old = fresh.folder / "in", fresh.folder / "old"
    extra = fresh.folder / "in.plain/new.csv"
    shutil.copytree(folder, old)
    extra.write_text("3,gamma\n")
    try:
        fresh.run("data", "seal", "in.plain", "in", "--key", "sales")
        new = fresh.folder / "new"
        folder.rename(new)
        old.rename(folder)
        outcome = fresh.outcome(*READ)
        assert outcome["outcome"] == "failed"
        assert "rolled back" in str(error(outcome)["message"])
        # A file that the manifest does not list never reaches a staged program.
        folder.rename(old)
        new.rename(folder)
        shutil.copy(folder / "a.csv", folder / "added.csv")
        outcome = fresh.outcome(*READ)
        assert outcome["outcome"] == "completed", outcome
        assert "added.csv" not in str(outcome["said"])
        (folder / "added.csv").unlink()
        shutil.rmtree(fresh.folder / "kept")
        shutil.copytree(folder, fresh.folder / "kept")
    finally:
        shutil.rmtree(old, ignore_errors=True)
        extra.unlink()


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.05)


def test_T131_two_runs_commit_to_one_data_set(fresh: Enclave) -> None:
    program = "import sys, time; open('/work/out/r','w').write(sys.argv[1]); print('READY', flush=True); time.sleep(float(sys.argv[2]))"
    assert fresh.outcome(*WRITE, "python", "-c", program, "first", "0")["outcome"] == "completed"
    slow = fresh.start(*WRITE, "python", "-c", program, "slow", "8")
    assert slow.stdout is not None
    assert slow.stdout.readline() == "READY\n"
    assert fresh.outcome(*WRITE, "python", "-c", program, "fast", "0")["outcome"] == "completed"
    _, said = slow.communicate(timeout=60)
    assert slow.returncode == 1
    assert "another run committed to this data set" in said
    assert "hint:" in said
    assert fresh.open("out") == {"r": "fast"}
    fresh.run("data", "verify", "out")


def test_T132_output_that_is_no_file(fresh: Enclave) -> None:
    program = (
        "import os; open('/work/out/a','w').write('x'); os.mkfifo('/work/out/pipe'); os.symlink('/tmp', '/work/out/tmp')\n"
        "os.symlink('/etc/passwd', '/work/out/z'); os.symlink('/proc/1/environ', '/work/out/e')"
    )
    outcome = fresh.outcome(*WRITE, "python", "-c", program)
    assert (outcome["outcome"], outcome["status"]) == ("completed", 0), outcome
    details = outcome["details"]
    assert isinstance(details, dict)
    away = "a link out of the volume"
    assert details["left_out"] == {"out": {"pipe": "neither a file nor a folder", "tmp": away, "z": away, "e": away}}
    assert fresh.open("out") == {"a": "x"}


def test_T133_a_failed_program_publishes_nothing_unless_asked(fresh: Enclave) -> None:
    program = "open('/work/out/a','w').write('half'); raise SystemExit(3)"
    outcome = fresh.outcome(*WRITE, "python", "-c", program)
    assert (outcome["outcome"], outcome["exit_code"], outcome["status"]) == ("completed", 3, 3)
    assert sorted(p.name for p in (fresh.folder / "out").iterdir()) == [".dataset"]
    outcome = fresh.outcome("--publish-on-failure", *WRITE, "python", "-c", program)
    assert (outcome["outcome"], outcome["exit_code"], outcome["status"]) == ("completed", 3, 3)
    assert fresh.open("out") == {"a": "half"}


def test_T134_sigterm_stops_the_program_and_leaves_nothing(fresh: Enclave) -> None:
    program = "import time; open('/work/out/a','w').write('half'); print('READY', flush=True); time.sleep(60)"
    run = fresh.start(*WRITE, "python", "-c", program)
    assert run.stdout is not None
    assert run.stdout.readline() == "READY\n"
    started = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert run.returncode == 128 + signal.SIGTERM, said
    assert sorted(p.name for p in (fresh.folder / "out").iterdir()) == [".dataset"]


def test_T134_the_program_may_end_well_on_sigterm(fresh: Enclave) -> None:
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n open('/work/out/a','w').write('whole'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('READY', flush=True); time.sleep(60)"
    )
    run = fresh.start(*WRITE, "python", "-c", program)
    assert run.stdout is not None
    assert run.stdout.readline() == "READY\n"
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=30)
    assert run.returncode == 0
    assert fresh.open("out") == {"a": "whole"}


def test_T135_max_runtime(fresh: Enclave) -> None:
    program = "import time; open('/work/out/a','w').write('half'); time.sleep(60)"
    outcome = fresh.outcome("--max-runtime", "1", *WRITE, "python", "-c", program)
    assert outcome["outcome"] == "failed"
    assert outcome["status"] == 1
    assert "longer than 1 s" in str(error(outcome)["message"])
    assert sorted(p.name for p in (fresh.folder / "out").iterdir()) == [".dataset"]


def test_T136_a_process_left_behind_does_not_touch_the_outputs(fresh: Enclave) -> None:
    program = (
        "import os, time\n"
        "open('/work/out/a','w').write('x' * 50_000_000)\n"
        "if os.fork() == 0:\n"
        " os.setsid(); os.close(1); os.close(2)\n"
        " while True:\n"
        "  for target in ('/proc/1/environ', '/proc/1/maps'):\n"
        "   try: os.symlink(target, '/work/out/n'); os.replace('/work/out/n', '/work/out/a')\n"
        "   except OSError: pass\n"
        "  open('/work/out/late', 'w').write('late')\n"
        "time.sleep(0.0)\n"
    )
    outcome = fresh.outcome(*WRITE, "python", "-c", program)
    assert outcome["outcome"] == "completed", outcome
    assert set(fresh.open("out").get("a", "x")) == {
        "x"
    }  # it is a link now, unless that lost the race against its parent


@pytest.mark.parametrize("code", [0, 1, 2, 77, 127, 255])
def test_T137_exit_codes_pass_through(fresh: Enclave, code: int) -> None:
    outcome = fresh.outcome("--", "python", "-c", "import sys; sys.exit(int(sys.argv[1]))", str(code))
    assert (outcome["outcome"], outcome["exit_code"], outcome["status"]) == ("completed", code, code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_T137_signal_deaths_pass_through(fresh: Enclave, number: int) -> None:
    outcome = fresh.outcome(
        "--", "python", "-c", "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))", str(int(number))
    )
    assert (outcome["outcome"], outcome["exit_code"], outcome["status"]) == ("completed", 128 + number, 128 + number)


def test_T138_refused_failed_and_completed_are_told_apart(fresh: Enclave) -> None:
    refused = fresh.outcome("--volume", "in=in", "--", "python", "-c", "print('never allowed')", approve=False)
    assert (refused["outcome"], refused["exit_code"], refused["status"]) == ("refused", None, 1)
    assert error(refused)["code"] == "appraisal"
    completed = fresh.outcome("--", "python", "-c", "raise SystemExit(1)")
    assert (completed["outcome"], completed["exit_code"], completed["status"]) == ("completed", 1, 1)
    missing = fresh.outcome("--", "python", "-c", "import os; os.execv('/nothing', ['x'])")
    assert (missing["outcome"], missing["exit_code"]) == ("completed", 1)


@pytest.mark.e2e
def test_T120_plaintext_into_a_sealed_folder_from_spark(fresh: Enclave) -> None:
    """Where the kernel has no Landlock the write itself succeeds; the commit refuses the file by name."""
    (fresh.folder / "leak.py").write_text(
        "import os\n"
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.getOrCreate()\n"
        "spark.range(3).write.parquet('/work/out/good')\n"
        "try: open('/sealed/out/plain.txt', 'w').write('plaintext')\n"
        "except OSError as exc: print('STOPPED', exc)\n"
    )
    done = fresh.run(
        "spark-submit", "--approve", "--unsafe-accept-simulated", "--master", "local[1]",
        "--volume", "out=out:sales:rw", "leak.py", check=False,
    )  # fmt: skip
    if "STOPPED" in done.stdout:
        assert done.returncode == 0, done.stderr
        assert not (fresh.folder / "out/plain.txt").exists()
    else:
        assert done.returncode == 1
        assert "plain.txt: added" in done.stderr
        assert io.StringIO(done.stderr).read().count("Traceback") == 0


def test_network_is_there_when_the_job_asks_for_it(fresh: Enclave) -> None:
    program = "import socket; print('IF', len(socket.if_nameindex()), open('/etc/passwd').read()[:4])"
    outcome = fresh.outcome("--network", "--", "python", "-c", program)
    assert (outcome["outcome"], outcome["exit_code"]) == ("completed", 0), outcome
    assert "root" in str(outcome["said"])


def test_T134_sigterm_before_the_program_starts(fresh: Enclave) -> None:
    run = fresh.start(*WRITE, "python", "-c", "import time; print('RAN', flush=True); time.sleep(60)")
    wait_for((fresh.folder / "out/.dataset/id.json").exists)
    run.send_signal(signal.SIGTERM)
    out, said = run.communicate(timeout=30)
    assert run.returncode != 0, said
    assert "Traceback" not in said
    assert "RAN" not in out or run.returncode == 128 + signal.SIGTERM
