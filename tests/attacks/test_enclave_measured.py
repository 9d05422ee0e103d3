"""The host changes what runs: the key stays where it is. T100-T109 of docs/threat-model.md."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.conftest import STRONGROOM, stop_service
from tests.fakes.enclave_shell import Enclave, error, make_enclave

from strongroom.config import Settings
from strongroom.jobs.runtimes import Runtimes

APP = 'import sys; print(sorted(__import__("os").listdir("/work/in")), sys.argv[1:])\n'
RUN = ("--volume", "in=in", "--", "python", "app.py", "one")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    """Return a workspace whose owner allowed `RUN`, over a private copy of the runtimes."""
    made = make_enclave(tmp_path_factory.mktemp("measured"))
    cache = made.folder / "cache"
    shared = Runtimes(Settings.from_environment().cache / "runtimes")
    (cache / "runtimes").mkdir(parents=True)
    for source in (shared.base(), shared.python(), shared.guest(), shared.env()):
        # Hard links: whoever alters a file takes a copy of its own first.
        subprocess.run(["cp", "-al", source, cache / "runtimes"], check=True)
    for path in _victims(cache):
        own = path.with_name(path.name + ".own")
        shutil.copy2(path, own)
        own.replace(path)
    made.environment["STRONGROOM_CACHE"] = str(cache)
    (made.folder / "app.py").write_text(APP)
    outcome = made.outcome(*RUN)
    assert outcome["outcome"] == "completed", outcome
    yield made
    stop_service(made.workspace)


def _one(cache: Path, pattern: str) -> Path:
    return min(
        (p for p in (cache / "runtimes").glob(pattern) if not p.is_symlink()), key=lambda p: (p.stat().st_size, p)
    )


def _victims(cache: Path) -> list[Path]:
    return [
        _one(cache, "python-*/lib/python3*/colorsys.py"),
        _one(cache, "base-*/usr/lib/**/librt.so.1"),
        _one(cache, "env-*/lib/python3*/site-packages/pyspark/jars/spark-tags_*.jar"),
        _one(cache, "guest-*/strongroom/guest/confine.py"),
    ]


def refused(outcome: Mapping[str, object], *words: str) -> None:
    """The run was refused before the program ran, and says why in these words."""
    assert outcome["outcome"] == "refused", outcome
    assert outcome["status"] == 1
    assert outcome["exit_code"] is None
    assert "a.csv" not in str(outcome["said"])
    text = json.dumps(error(outcome))
    for word in words:
        assert word in text, text


@pytest.fixture
def restored(shell: Enclave) -> Iterator[Enclave]:
    yield shell
    (shell.folder / "app.py").write_text(APP)
    assert shell.outcome(*RUN, approve=False)["outcome"] == "completed"


def test_T100_program_changed_by_one_byte(restored: Enclave) -> None:
    (restored.folder / "app.py").write_text(APP.replace("sorted", "sorteD"))
    refused(restored.outcome(*RUN, approve=False), "app.py")


def test_T101_argument_changed(shell: Enclave) -> None:
    outcome = shell.outcome(*RUN[:-1], "two", approve=False)
    refused(outcome, "one", "two", "argument")
    assert isinstance(details := error(outcome)["details"], dict)
    assert len(details["difference"]) == 1, "no more than what changed"
    refused(shell.outcome(*RUN, "more", approve=False), "more")


def test_T102_environment_variable_added(shell: Enclave) -> None:
    refused(shell.outcome("--env", "LEVEL=9", *RUN, approve=False), "LEVEL")


def test_T103_sandbox_setting_changed(shell: Enclave) -> None:
    refused(shell.outcome("--network", *RUN, approve=False), "network")
    refused(shell.outcome("--scratch-mb", "77", *RUN, approve=False), "scratch_mb")
    refused(shell.outcome("--max-runtime", "77", *RUN, approve=False), "max_runtime_s")


def _bundle(shell: Enclave) -> Path:
    plan = json.loads(shell.run("run", "--dry-run", *RUN).stdout)
    return shell.workspace.folder / "bundles" / str(plan["job"]).removeprefix("sha256:")[:16]


def _run_bundle(shell: Enclave, folder: Path) -> Mapping[str, object]:
    """Run an existing bundle, as a host would that skips the build."""
    from strongroom.jobs.plan import Bundle, LaunchPlan
    from strongroom.jobs.targets.local import LocalTarget
    from strongroom.jobs.targets.mounts import Mounts

    shell.run("service", "start")
    target = LocalTarget(
        seed=shell.workspace.seed,
        cache=Path(shell.environment["STRONGROOM_CACHE"]) / "digests",
        mounts=Mounts(folder=shell.folder / "mounts", locks=shell.folder / "locks"),
    )
    bundle = Bundle(folder=folder, job="", simulated=True, measure=lambda: "")
    plan: LaunchPlan = None  # type: ignore[assignment]
    outcome = target.run(bundle, plan)
    return {"outcome": outcome.status, "exit_code": outcome.exit_code, "error": dict(outcome.error)}


def test_T104_code_swapped_under_the_same_job_document(restored: Enclave) -> None:
    folder = _bundle(restored)
    assert _run_bundle(restored, folder)["outcome"] == "completed"
    records = restored.run("audit", "show", "--json").stdout
    (restored.folder / "app.py").write_text(APP + "print('stolen')\n")
    outcome = _run_bundle(restored, folder)
    assert outcome["outcome"] == "failed"
    assert outcome["exit_code"] is None
    assert "app.py was altered after the job was built" in str(error(outcome)["message"])
    assert restored.run("audit", "show", "--json").stdout == records  # it did not even attest


@pytest.mark.parametrize("last", [8, 9, 10])
def test_platform_started_where_low_descriptors_are_taken(restored: Enclave, last: int) -> None:
    """The next free ones are those that the sandbox itself is given."""
    taken = " ".join(f"{fd}</dev/null" for fd in range(3, last + 1))
    shell = ["bash", "-c", f'exec {taken}; exec "$@"', "bash", STRONGROOM, "run", *RUN]
    done = subprocess.run(
        shell, cwd=restored.folder, env={**os.environ, **restored.environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _altered(shell: Enclave, path: Path) -> None:
    times, raw = path.stat(), path.read_bytes()
    assert times.st_nlink == 1, "a hard link into the shared cache"
    changed = bytearray(raw)
    changed[-1] ^= 1
    try:
        with open(path, "r+b") as file:
            file.write(changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns, after.st_ino) == (times.st_size, times.st_mtime_ns, times.st_ino)
        refused(shell.outcome(*RUN, approve=False), "measurement")
    finally:
        with open(path, "r+b") as file:
            file.write(raw)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert shell.outcome(*RUN, approve=False)["outcome"] == "completed"


@pytest.mark.parametrize(("number", "which"), [(65, 0), (66, 1), (67, 2), (68, 3)])
def test_T105_to_T108_measured_file_altered_with_its_times_restored(shell: Enclave, number: int, which: int) -> None:
    """T105 stdlib module, T106 shared library, T107 engine jar, T108 the guest itself; the digest cache is warm."""
    _altered(shell, _victims(Path(shell.environment["STRONGROOM_CACHE"]))[which])


def test_T108_file_replaced_by_another_of_the_same_size_and_times(shell: Enclave) -> None:
    path = _victims(Path(shell.environment["STRONGROOM_CACHE"]))[0]
    times, kept, other = path.stat(), path.with_name("kept"), path.with_name("other")
    other.write_bytes(b"#" * times.st_size)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    path.rename(kept)
    other.rename(path)
    try:
        refused(shell.outcome(*RUN, approve=False), "measurement")
    finally:
        kept.rename(path)
    assert shell.outcome(*RUN, approve=False)["outcome"] == "completed"


def test_T109_bundle_that_mounts_over_what_is_measured(shell: Enclave) -> None:
    folder = _bundle(shell)
    kept = (folder / "bundle.json").read_text()
    evil = shell.folder / "evil"
    evil.mkdir()
    value = json.loads(kept)
    value["volumes"].append(["../opt/python", str(evil), "ro"])
    (folder / "bundle.json").write_text(json.dumps(value))
    try:
        outcome = _run_bundle(shell, folder)
    finally:
        (folder / "bundle.json").write_text(kept)
    assert outcome["outcome"] == "failed"
    assert "not a plain file name" in str(error(outcome)["message"])


def test_T109_bundle_that_leaves_the_sealed_folders_in_reach(shell: Enclave) -> None:
    folder = _bundle(shell)
    kept = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(json.dumps({**json.loads(kept), "staged": False}))
    try:
        outcome = _run_bundle(shell, folder)
    finally:
        (folder / "bundle.json").write_text(kept)
    assert outcome["exit_code"] is None
    assert "reach the sealed folders" in str(error(outcome)["message"])


def test_T109_bundle_with_network_where_the_job_says_none(shell: Enclave) -> None:
    folder = _bundle(shell)
    kept = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(json.dumps({**json.loads(kept), "network": True}))
    try:
        outcome = _run_bundle(shell, folder)
    finally:
        (folder / "bundle.json").write_text(kept)
    assert outcome["outcome"] == "refused", outcome
    assert "measurement" in json.dumps(error(outcome))
