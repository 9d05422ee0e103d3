# ruff: noqa: E501  # programs and tables
"""Nothing of the data or its key reaches the host while a job runs: files, processes, logs. T140-T143."""

import base64
import contextlib
import os
import resource
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave
from tests.servers.files import written

PROGRAM = """
import os, sys, tempfile, time
text = open(sys.argv[1] + '/a.csv').read()
spill = tempfile.NamedTemporaryFile('w', delete=False, prefix='spill-')
spill.write(text * 100); spill.flush(); os.fsync(spill.fileno())
with open('/dev/shm/spill-' + sys.argv[3], 'w') as shm: shm.write(text)
with open(sys.argv[2] + '/result', 'w') as out: out.write(text.upper() + text)
open('core-cwd-' + sys.argv[3], 'w').write(text)
print('READY', flush=True)
time.sleep(float(sys.argv[4]))
if sys.argv[5] == 'abort': os.abort()
if sys.argv[5] == 'segv':
    import ctypes, faulthandler
    faulthandler.enable(open('/work/crash-' + sys.argv[3], 'w'))
    ctypes.string_at(0)
if sys.argv[5] == 'raise': raise RuntimeError('what the data set holds is in memory')
if sys.argv[5] == 'memory': bytearray(1 << 62)
if sys.argv[5] == 'full':
    with open('/tmp/full', 'w') as full:
        while True: full.write(text * 1000)
"""


@dataclass
class Secrets:
    """What must not be seen, by name."""

    marker: str
    values: dict[str, bytes] = field(default_factory=dict)

    def add_key(self, name: str, raw: bytes) -> None:
        self.values |= {
            f"{name} raw": raw,
            f"{name} hex": raw.hex().encode(),
            f"{name} HEX": raw.hex().upper().encode(),
            f"{name} base64": base64.b64encode(raw).rstrip(b"=")[:42],
            f"{name} base64url": base64.urlsafe_b64encode(raw).rstrip(b"=")[:42],
        }

    def found_in(self, raw: bytes) -> set[str]:
        return {name for name, value in self.values.items() if value in raw}


class ProcessWatch(threading.Thread):
    """Reads the command line and environment of every process of the host, over and over."""

    def __init__(self, hidden: Secrets) -> None:
        super().__init__(daemon=True)
        self.hidden = hidden
        self.hits: set[str] = set()
        self.commands: set[bytes] = set()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        raw = Path(f"/proc/{pid}/{name}").read_bytes()
                        self.commands |= {raw[:300]} if name == "cmdline" else set()
                        self.hits |= {f"{raw[:80]!r} {name}: {n}" for n in self.hidden.found_in(raw)}
            self.stopped.wait(0.02)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Enclave, Secrets]]:
    made = make_enclave(tmp_path_factory.mktemp("leaks"))
    hidden = Secrets(marker="MARKER-" + secrets.token_hex(16))
    hidden.values = {"marker": hidden.marker.encode(), "MARKER": hidden.marker.upper().encode()}
    made.run("key", "create", "leak", "--exportable")
    made.seal("data", {"a.csv": f"id,name\n1,{hidden.marker}\n"}, key="leak")
    hidden.add_key("key", bytes.fromhex(made.run("key", "export", "leak").stdout.strip()))
    hidden.add_key("platform seed", made.workspace.seed.read_bytes())
    pem = (made.workspace.folder / "owner.key").read_text().splitlines()
    hidden.values["owner's key"] = pem[1].encode()
    (made.folder / "app.py").write_text(PROGRAM)
    yield made, hidden
    stop_service(made.workspace)


def skipped(shell: Enclave) -> set[Path]:
    """The test's own plain input, and the files whose purpose is to hold a secret."""
    folder = shell.workspace.folder
    for name in ("owner.key", "simulated/seed"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    return {shell.folder / "data.plain", folder / "simulated", shell.folder / "result"}


def run_live(shell: Enclave, hidden: Secrets, command: list[str]) -> tuple[int, str, dict[str, set[str]], ProcessWatch]:
    """Run to the end, searching what the host's files got, while the program holds its data and afterwards."""
    watch = ProcessWatch(hidden)
    watch.start()
    with written(hidden.found_in, skipped(shell)) as files:
        run = subprocess.Popen(
            command, cwd=shell.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2),  # noqa: PLW1509
        )  # fmt: skip
        assert run.stdout is not None
        first = run.stdout.readline()
        files.hits()
        out, said = run.communicate(timeout=240)
        watch.stopped.set()
        watch.join()
    assert first == "READY\n", first + out + said
    assert not hidden.found_in((first + out + said).encode("utf-8", "surrogateescape"))
    return run.returncode, said, files.hits(), watch


def trusted(*words: str, sleep_s: float, end: str = "", options: tuple[str, ...] = ()) -> list[str]:
    strongroom = str(Path(sys.executable).parent / "strongroom")
    volumes = ("--volume", "data=data", "--volume", f"out=out-{end or 'well'}:leak:rw")
    run = (*options, "--", "python", "app.py", "/work/data", "/work/out", "x", str(sleep_s), end)
    return [strongroom, "run", *APPROVE, *volumes, *run, *words]


def test_T140_T141_T142_files_processes_and_logs_of_a_live_run(shell: tuple[Enclave, Secrets]) -> None:
    enclave, hidden = shell
    code, said, hits, watch = run_live(enclave, hidden, trusted(sleep_s=4))
    assert code == 0, said
    assert hits == {}
    assert watch.hits == set()
    assert any(b"bwrap" in c or b"strongroom.guest.main" in c for c in watch.commands), "the sandbox was not seen"
    assert not hidden.found_in((enclave.workspace.run_folder / "service.log").read_bytes())
    assert hidden.marker in enclave.open("out-well")["result"]


def test_T140_the_same_watch_finds_a_plain_run(shell: tuple[Enclave, Secrets], tmp_path: Path) -> None:
    """The positive control: the same program, run plainly, leaves its data where the watch looks."""
    enclave, hidden = shell
    out, name = tmp_path / "out", secrets.token_hex(4)
    out.mkdir()
    command = [sys.executable, "app.py", str(enclave.folder / "data.plain"), str(out), name, "1", "abort"]
    _, _, hits, _ = run_live(enclave, hidden, command)
    places = {p for p, names in hits.items() if "marker" in names}
    for path in places:
        if "spill-" in path:
            os.unlink(path)
    (enclave.folder / f"core-cwd-{name}").unlink()
    assert f"/dev/shm/spill-{name}" in places
    assert any("/spill-" in p and not p.startswith("/dev/shm") for p in places)
    assert str(out / "result") in places
    if (
        Path("/proc/sys/kernel/core_pattern").read_text().startswith("core")
        and resource.getrlimit(resource.RLIMIT_CORE)[1]
    ):
        cores = [p for p in places if Path(p).name.startswith("core") and "cwd" not in p]
        assert cores, "no core dump was found"
        for path in cores:
            os.unlink(path)


def test_T141_the_same_watch_sees_arguments_and_environment(shell: tuple[Enclave, Secrets]) -> None:
    """The positive control of the process watch."""
    _, hidden = shell
    watch = ProcessWatch(hidden)
    watch.start()
    environment = {**os.environ, "LEAK": hidden.values["key hex"].decode()}
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.7)", hidden.marker], env=environment, check=True)
    watch.stopped.set()
    watch.join()
    assert any("cmdline: marker" in h for h in watch.hits)
    assert any("environ: key hex" in h for h in watch.hits)


@pytest.mark.parametrize(("end", "code"), [("abort", 134), ("segv", 139), ("raise", 1), ("memory", 1), ("full", 1)])
def test_T143_a_crash_leaves_no_core_and_no_plaintext(shell: tuple[Enclave, Secrets], end: str, code: int) -> None:
    enclave, hidden = shell
    command = trusted(sleep_s=0.5, end=end, options=("--scratch-mb", "8"))
    status, said, hits, watch = run_live(enclave, hidden, command)
    assert status == code, said
    assert hits == {}
    assert watch.hits == set()
    assert [p for p in enclave.folder.rglob("core*") if p.is_file()] == []
    assert list(enclave.folder.rglob("crash-*")) == []


def test_T143_bytecode_of_the_jobs_modules_stays_out_of_the_hosts_folders(shell: tuple[Enclave, Secrets]) -> None:
    enclave, hidden = shell
    (enclave.folder / "helper.py").write_text("def upper(text):\n    return text.upper()\n")
    program = "import sys, helper; sys.dont_write_bytecode = False; import importlib; importlib.reload(helper)\n"
    program += (
        "import py_compile; print('READY', flush=True); py_compile.compile('/app/helper.py', '/work/out/helper.pyc')\n"
    )
    (enclave.folder / "cached.py").write_text(program)
    strongroom = str(Path(sys.executable).parent / "strongroom")
    volumes = ("--volume", "data=data", "--volume", "out=out-cached:leak:rw", "--file", "helper.py")
    code, said, hits, _ = run_live(
        enclave, hidden, [strongroom, "run", *APPROVE, *volumes, "--", "python", "cached.py"]
    )
    assert code == 0, said
    assert hits == {}
    assert list(enclave.folder.rglob("__pycache__")) == []
    assert list(enclave.open("out-cached")) == ["helper.pyc"]
    assert b"upper" not in (enclave.folder / "out-cached/helper.pyc").read_bytes()


SPARK = """
import sys, time
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
rows = spark.read.csv(sys.argv[1], header=True)
rows.cache().count()
rows.repartition(3).groupBy('name').count().orderBy('name').write.parquet(sys.argv[2] + '/p')
rows.write.csv(sys.argv[2] + '/c')
print('READY', flush=True)
time.sleep(5)
"""


@pytest.mark.e2e
def test_T140_T141_files_and_processes_of_a_live_spark_run(shell: tuple[Enclave, Secrets]) -> None:
    enclave, hidden = shell
    (enclave.folder / "spark.py").write_text(SPARK)
    strongroom = str(Path(sys.executable).parent / "strongroom")
    command = [strongroom, "spark-submit", *APPROVE, "--master", "local[2]", "--volume", "data=data", "--volume", "out=out-spark:leak:rw",
               "spark.py", "/work/data", "/work/out"]  # fmt: skip
    code, said, hits, watch = run_live(enclave, hidden, command)
    assert code == 0, said
    assert hits == {}
    assert watch.hits == set()
    assert any(c.startswith(b"/opt/jdk/bin/java") for c in watch.commands), "the JVM of the enclave was not seen"
    assert any(hidden.marker in text for path, text in enclave.open("out-spark").items() if path.startswith("c/"))
