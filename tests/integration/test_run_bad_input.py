# ruff: noqa: E501  # programs and tables
"""Bad input through the command line: one clear sentence, a hint, exit status 1, no traceback, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("bad"))
    (made.folder / "app.py").write_text("print(1)")
    (made.folder / "plain").mkdir()
    (made.folder / "plain/x").write_text("x")
    yield made
    stop_service(made.workspace)


def clear(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One sentence that holds these words, a hint, exit status 1, no traceback."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "Error:"))]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert "hint: " in done.stderr or "Usage:" in done.stderr or "--help" in done.stderr, done.stderr


JOB = "[job]\nworkload = 'python'\nprogram = 'app.py'\n"
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "missing source": (("data", "seal", "nowhere", "t", "--key", "sales"), ("nowhere", "does not exist")),
    "unknown key": (("data", "seal", "plain", "t1", "--key", "sails"), ("sails",)),
    "impossible key name": (("key", "show", "../x"), ("../x", "is not allowed")),
    "unknown key show": (("key", "show", "sails"), ("sails",)),
    "not a data set": (("data", "open", "plain", "o"), ("plain", "not a sealed data set")),
    "no such data set": (("data", "verify", "nowhere"), ("nowhere", "not a sealed data set", "does not exist")),
    "sealed twice": (("data", "seal", "in", "again", "--key", "sales"), ("in is a sealed data set", "expected plain files")),
    "no such version": (("key", "destroy", "sales", "9"), ("version 9",)),
    "audit of a typo": (("audit", "show", "slaes"), ("slaes",)),
    "listen without a port": (("service", "run", "--listen", "localhost"), ("--listen", "HOST:PORT", "'localhost'")),
    "listen beyond the last port": (("service", "run", "--listen", "127.0.0.1:65535"), ("--listen", "65534")),
    "volume is no data set": (
        ("run", "--volume", "in=plain", "--", "python", "app.py"),
        ("plain", "not a sealed data set"),
    ),
    "volume form": (("run", "--volume", "plain", "--", "python", "app.py"), ("NAME=PATH",)),
    "unknown volume key": (("run", "--volume", "o=new1:sails:rw", "--", "python", "app.py"), ("sails",)),
    "volume under another key": (("run", "--volume", "in=in:other", "--", "python", "app.py"), ("'sales'", "'other'")),
    "env form": (("run", "--env", "A", "--", "python", "app.py"), ("NAME=VALUE",)),
    "loader": (("run", "--env", "LD_PRELOAD=x", "--", "python", "app.py"), ("LD_PRELOAD",)),
    "missing program": (("run", "--", "python", "missing.py"), ("missing.py", "not readable")),
    "not python": (("run", "--", "ruby", "x.rb"), ("ruby",)),
    "python alone": (("run", "--", "python"), ("program",)),
    "scratch": (("run", "--scratch-mb", "0", "--", "python", "app.py"), ("scratch_mb",)),
    "runtime": (("run", "--max-runtime", "-1", "--", "python", "app.py"), ("max_runtime_s",)),
    "missing job file": (("job", "run", "missing.toml"), ("missing.toml", "not readable")),
    "unknown option": (("run", "--volumes", "x", "--", "python", "app.py"), ("--volumes",)),
    "unknown command": (("datas",), ("datas",)),
    "spark fs.impl": (
        ("spark-submit", "--conf", "spark.hadoop.fs.file.impl=x", "app.py"),
        ("spark.hadoop.fs.file.impl",),
    ),
    "spark packages": (("spark-submit", "--packages", "a:b:1", "app.py"), ("spark.jars.packages",)),
    "spark flag": (("spark-submit", "--nonsense", "x", "app.py"), ("--nonsense",)),
    "spark conf form": (("spark-submit", "--conf", "x", "app.py"), ("NAME=VALUE",)),
    "spark without a program": (("spark-submit",), ("no program",)),
    "spark properties": (("spark-submit", "--properties-file", "missing", "app.py"), ("missing",)),
    "lease": (("service", "lease", "5"), ("120<=x<=3600",)),
    "missing evidence": (("attest", "show", "missing"), ("missing",)),
    "request": (("policy", "request", "99"), ("99",)),
    "free": (("policy", "set", "sales", "--allow", "x.toml", "--free", "x"), ("N=PATTERN",)),
    "audit file": (("audit", "verify", "missing"), ("missing",)),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_requests(shell: Enclave, case: str) -> None:
    words, expected = CASES[case]
    if case == "free":
        (shell.folder / "x.toml").write_text(JOB + "[[volume]]\nname='in'\npath='in'\n")
        words = (*words, "--unsafe-accept-simulated")
    clear(shell.run(*words, check=False), *expected)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[job]\nworkload = 'python'\nprogramm = 'app.py'\n", "programm"),
        (JOB + "[sandbox]\nnetwerk = true\n", "netwerk"),
        (JOB + "[sandbox]\nnetwork = 'no'\n", "network"),
        ("[job", "TOML"),
        ("[job]\nworkload = 'cobol'\nprogram = 'app.py'\n", "cobol"),
        (JOB + "enclave = 'sgx'\n", "sgx"),
    ],
)
def test_wrong_job_files(shell: Enclave, text: str, word: str) -> None:
    (shell.folder / "job.toml").write_text(text)
    done = shell.run("job", "run", "job.toml", check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert word in done.stderr


HINTS: dict[tuple[str, ...], str] = {
    ("key", "destroy", "sales", "9"): "strongroom key destroy --help",
    ("run", "--env", "A", "--", "python", "app.py"): "strongroom run --help",
    ("attest", "show", "app.py"): "strongroom attest show --help",
    ("attest", "endorsements", "fetch", "plain/x"): "strongroom attest endorsements fetch --help",
    ("spark-submit", "--sgx-enabled", "true", "app.py"): "--driver-memory",
    ("run", "--", "python", "-c", "open('plain/y')", "plain"): "plain is a folder of this machine",
    ("service", "run", "--listen", "127.0.0.1:8700"): "`strongroom service stop` first",
}


@pytest.mark.parametrize("words", HINTS, ids=" ".join)
def test_hints_lead_on(shell: Enclave, words: tuple[str, ...]) -> None:
    shell.run("key", "list")  # the service runs
    done = shell.run(*words, check=False)
    assert done.returncode == 1, done
    (hint,) = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert HINTS[words] in hint


def _listed(shell: Enclave) -> list[dict[str, object]]:
    return list(shell.json("data", "list")["datasets"])  # type: ignore[call-overload]


def test_T370_what_fails_leaves_no_half_made_data_set(shell: Enclave) -> None:
    before = _listed(shell)
    (shell.folder / "links").mkdir()
    (shell.folder / "links/l").symlink_to("/etc/passwd")
    (shell.folder / "full").mkdir()
    (shell.folder / "full/strange").write_text("x")
    (shell.folder / "a file").write_text("x")
    for words in (
        ("data", "seal", "links", "t1", "--key", "sales"),
        ("data", "seal", "plain", "full", "--key", "sales"),
        ("data", "seal", "plain", "plain/inside", "--key", "sales"),
        ("data", "seal", "plain", "a file/t", "--key", "sales"),
        ("data", "create", "a file/t", "--key", "sales"),
        ("run", "--volume", "o=a file/t:sales:rw", "--", "python", "app.py"),
    ):
        clear(shell.run(*words, check=False))
        assert _listed(shell) == before, words
    (shell.folder / "links/l").unlink()
    (shell.folder / "links/l").write_text("x")
    shell.run("data", "seal", "links", "t1", "--key", "sales")
    assert len(_listed(shell)) == len(before) + 1


def test_data_list_says_where_data_sets_are_and_when_they_changed(shell: Enclave) -> None:
    shell.seal("one", {"a": "a"})
    shell.run("data", "create", "sub/empty", "--key", "sales")
    assert shell.outcome("--volume", "o=made:sales:rw", "--", "python", "-c", "open('/work/o/x', 'w')")["outcome"] == "completed"
    found = {str(d["folder"]): d for d in _listed(shell)}
    one, empty, made = (found[str(shell.folder / name)] for name in ("one", "sub/empty", "made"))
    assert (one["key"], one["epoch"], empty["epoch"], made["epoch"]) == ("sales", 1, 0, 1)
    assert str(one["created"]) < str(one["updated"])
    text = {line.split()[0]: line.split() for line in shell.run("data", "list").stdout.splitlines()}
    assert text["folder"] == ["folder", "key", "epoch", "last", "commit", "data", "set"]
    assert text[str(shell.folder / "one")][1:] == ["sales", "1", str(one["updated"])[:19], one["dataset"]]
    assert text[str(shell.folder / "sub/empty")][1:] == ["sales", "0", "-", empty["dataset"]]
    (shell.folder / "one").rename(shell.folder / "elsewhere")  # nobody knows where, until somebody says it
    assert str(shell.folder / "one") not in shell.run("data", "list").stdout
    shell.run("data", "verify", "elsewhere")
    assert str(shell.folder / "elsewhere") in shell.run("data", "list").stdout


def test_tampered_files_say_what_to_do(shell: Enclave) -> None:
    shell.seal("hurt", {"a": "a" * 10, "b": "b"})
    (shell.folder / "hurt/a").write_bytes(b"x")
    clear(shell.run("data", "verify", "hurt", check=False), "truncated or extended")
    (shell.folder / "hurt/b").unlink()
    clear(shell.run("data", "open", "hurt", "o9", check=False), "2 problems")


def test_a_passphrase_comes_from_a_pipe_too(tmp_path: Path) -> None:
    def init(name: str, given: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "strongroom.cli.main", "init", name, "--root", "passphrase"]
        return subprocess.run(words, cwd=tmp_path, input=given, capture_output=True, text=True, check=False)

    clear(init("none", ""), "passphrase", "got nothing")
    clear(init("short", "abc\n"), "3 characters")
    done = init("short", "correct horse battery\n")
    assert (done.returncode, "Warning" in done.stderr) == (0, False), done.stderr


def test_no_workspace(tmp_path: Path) -> None:
    clear(Enclave(folder=tmp_path).run("key", "list", check=False), "no workspace")


@pytest.mark.parametrize("text", ["", "not toml [", "identity = 3", "\udcff\udcfe"])
def test_damaged_workspace_toml(shell: Enclave, text: str) -> None:
    path = shell.workspace.folder / "workspace.toml"
    kept = path.read_bytes()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        done = Enclave(folder=shell.folder).run("key", "list", check=False)
    finally:
        path.write_bytes(kept)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    shell.run("key", "list")


def test_damaged_memory_of_what_was_seen(shell: Enclave) -> None:
    path = shell.workspace.folder / "seen.json"
    kept = path.read_bytes()
    path.write_text("{")
    try:
        clear(shell.run("key", "list", check=False), "seen.json", "damaged")
    finally:
        path.write_bytes(kept)


def test_no_permission(shell: Enclave) -> None:
    if os.getuid() == 0:
        target = Path("/proc/strongroom-out")  # root may write everywhere else
    else:
        target = shell.folder / "locked"
        target.mkdir(mode=0o500, exist_ok=True)
        target = target / "out"
    done = shell.run("data", "open", "in", str(target), check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr


def test_no_space_left(shell: Enclave) -> None:
    """A file system of 1 MiB, in a mount namespace of its own."""
    small, big = shell.folder / "small", shell.folder / "big"
    small.mkdir()
    big.mkdir()
    (big / "x").write_bytes(os.urandom(4 << 20))
    strongroom = Path(sys.executable).parent / "strongroom"
    script = f"mount -t tmpfs -o size=1m none {small} && {strongroom} data seal big small/s --key sales; code=$?; find {small} -type f; exit $code"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    if shutil.which("unshare") is None or subprocess.run([*command[:4], "true"], check=False).returncode:
        pytest.skip("no user namespaces")
    done = subprocess.run(command, cwd=shell.folder, capture_output=True, text=True, check=False)
    clear(done, "space")
    assert "small/s/x" not in done.stdout
    shutil.rmtree(small)
    shell.run("data", "seal", "big", "small/s", "--key", "sales")


def test_enclave_memory_is_full(shell: Enclave) -> None:
    (shell.folder / "full.py").write_text(
        "import sys, time\n"
        "with open(sys.argv[1] + '/x', 'wb', buffering=0) as out:\n"
        "    try:\n"
        "        while True: out.write(bytes(1 << 20))\n"
        "    finally: time.sleep(1)\n"
    )
    for place in ("/tmp", "/work"):
        done = shell.run("run", "--scratch-mb", "16", "--", "python", "full.py", place, check=False)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        said = [line for line in done.stderr.splitlines() if "--scratch-mb" in line]
        assert len(said) == 2, done.stderr
        assert all(place in line for line in said)


def test_nothing_was_lost(shell: Enclave) -> None:
    assert shell.open("in") == {"a.csv": "id,name\n1,alpha\n", "sub/b.csv": "2,beta\n"}
    shell.run("audit", "verify")


def _enclave_starts(folder: Path) -> bool:
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else [b""]
        except OSError:
            continue
        if words[0].endswith(b"bwrap") and any(word.startswith(os.fsencode(folder)) for word in words):
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_job_that_is_stopped_while_its_enclave_starts_ends(shell: Enclave, number: signal.Signals) -> None:
    """Process one ignores what it has no handler for yet: the signal has to come again."""
    process = shell.start("--volume", "in=in", "--", "python", "-c", "import time; time.sleep(100)")
    until = time.monotonic() + 60
    while not _enclave_starts(shell.folder):
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    if number == signal.SIGINT:
        assert (process.returncode, "stopped before the program started" in said) == (1, True), said
    until = time.monotonic() + 20
    while _enclave_starts(shell.folder):
        assert time.monotonic() < until, "the enclave runs on"
        time.sleep(0.05)


def test_a_passphrase_from_a_pipe_is_the_same_at_every_command(tmp_path: Path) -> None:
    shell, said = Shell(folder=tmp_path), "  twelve or more  \n"
    shell.run("init", "--root", "passphrase", said=said)
    shell.run("service", "stop", check=False)
    shell.run("service", "start")
    try:
        assert "unlocked" in shell.run("service", "unlock", said=said).stderr
    finally:
        shell.run("service", "stop")
