"""Environments that jobs bring along: built alike by anybody, measured, and nothing else is importable."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, error, make_enclave

from strongroom.client.cluster import Cluster
from strongroom.client.jobs import JobRunner
from strongroom.client.setup import create_workspace
from strongroom.config import Settings
from strongroom.errors import InputError
from strongroom.jobs import environments
from strongroom.jobs.spec import JobKey, JobSpec

PACKAGE, NEEDED = "markdown-it-py==4.3.0", "mdurl"
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
IMPORTS = "import importlib.util as u; print(*(n for n in ('markdown_it', 'numpy', 'own') if u.find_spec(n)))"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("locked") / "locked.txt"
    path.write_text(environments.lock([PACKAGE]))
    return path


@pytest.fixture(scope="module")
def built(locked: Path) -> Path:
    return environments.build(locked, locked.parent / "env").folder


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("ws"))
    yield made
    stop_service(made.workspace)


def test_a_lock_names_all_that_is_needed_with_hashes(locked: Path) -> None:
    lines = locked.read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == [PACKAGE.partition("==")[0], NEEDED]
    assert all(" --hash=sha256:" in line for line in lines)


def test_the_same_file_gives_the_same_digest_and_names_no_machine(locked: Path, built: Path, tmp_path: Path) -> None:
    first, second = environments.inspect(built), environments.build(locked, tmp_path / "deep/again")
    assert first.digest == second.digest
    assert dict(first.packages)[NEEDED]
    files = [p for p in second.folder.rglob("*") if p.is_file()]
    assert any(p.suffix == ".pyc" for p in files)
    for mark in (str(tmp_path), str(built), sys.prefix, sys.executable):
        assert [p for p in files if mark.encode() in p.read_bytes()] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("--hash=sha256:", "--hash=sha256:0")[:-2] + "\n", "locked.txt"),
        (lambda text: "# a comment \\\n./evil.tar.gz --hash=sha256:" + "0" * 64 + "\n", "expected each package once"),
        (lambda text: text.replace(" --hash", " ; python_version>'3' --no-binary :all: --hash", 1), "expected each"),
        (lambda text: text.replace("==4.3.0", "==${VER}"), "expected each package once"),
        (lambda text: text.replace("==4.3.0", "==4.*"), "expected each package once"),
        (lambda text: text.replace("\n", " --hash=sha256:" + "0" * 64 + "\n", 1), "expected each package once"),
        (lambda text: text + text, "expected each package once"),
        (lambda text: text.replace("==4.3.0", " @ https://example.org/x.whl"), "expected each package once"),
        (lambda text: text.replace(text.split("sha256:")[1][:64], "0" * 64), "HASH"),
        (lambda text: text.partition("\n")[0] + "\n", NEEDED),
        (lambda text: PACKAGE + "\n", "expected each package once"),
        (lambda text: "markdown-it-py --hash=sha256:" + "0" * 64 + "\n", "expected each package once"),
        (lambda text: text + "--extra-index-url https://example.org\n", "expected each package once"),
        (lambda text: text + "-e .\n", "expected each package once"),
    ],
)
def test_what_is_not_locked_is_not_built(locked: Path, tmp_path: Path, change: object, said: str) -> None:
    (tmp_path / "locked.txt").write_text(change(locked.read_text()))  # type: ignore[operator]
    with pytest.raises(InputError, match=said) as caught:
        environments.build(tmp_path / "locked.txt", tmp_path / "env")
    assert caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["locked.txt"]


def test_comments_and_line_breaks_are_nothing(locked: Path, built: Path, tmp_path: Path) -> None:
    said = locked.read_text().replace(" --hash", " \\\n    --hash")
    text = "# -*- coding: utf-7 -*-\n#+AAo---no-binary :all:\n# ends in a stroke \\\n" + said + "\n  # the end"
    (tmp_path / "other.txt").write_text(text.replace("\n", "\r\n"))
    assert environments.build(tmp_path / "other.txt", tmp_path / "env").digest == environments.inspect(built).digest


def test_what_lies_in_the_current_folder_is_not_run(
    locked: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip", "compileall", "py_compile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run from here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    monkeypatch.setenv("PIP_DRY_RUN", "1")
    assert environments.lock([PACKAGE]) == locked.read_text()
    assert environments.build(locked, tmp_path / "env").digest == environments.inspect(built).digest


@pytest.mark.parametrize("wanted", ["./evil", "evil @ https://example.org/x.tar.gz", "-e.", "--no-binary=:all:", "a/b"])
def test_only_names_and_bounds_are_locked(wanted: str) -> None:
    with pytest.raises(InputError, match="is not a package with bounds"):
        environments.lock([wanted])


def test_a_link_to_an_environment_is_that_environment(built: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(built)
    assert environments.inspect(tmp_path / "link").digest == environments.inspect(built).digest


def test_an_environment_is_never_changed(locked: Path, built: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        environments.build(locked, built)


def test_a_program_has_the_packages_of_its_environment_and_no_others(shell: Enclave, built: Path) -> None:
    assert shell.run("run", "--venv", str(built), "--", "python", "-c", IMPORTS).stdout == "markdown_it\n"
    assert "markdown_it" in shell.run("run", "--", "python", "-c", IMPORTS).stdout
    shown = shell.json("env", "show", str(built))
    assert shown["digest"] == environments.inspect(built).digest


def test_virtual_environments_and_folders_are_taken_too(shell: Enclave) -> None:
    venv, folder = shell.folder / "venv", shell.folder / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)

    def said(where: Path) -> str:
        return shell.run("run", "--venv", where.name, "--", "python", "-c", "import own\n" + IMPORTS).stdout

    for where, packages in ((venv, venv / SITE), (folder, folder)):
        packages.mkdir(exist_ok=True)
        module = packages / "own.py"
        module.write_text("print('one')\n")
        subprocess.run([sys.executable, "-c", "import own"], cwd=packages, check=True)  # leaves byte code of this text
        assert said(where) == "one\nown\n"
        (packages / "new.py").write_text("print('another')\n")
        (packages / "new.py").replace(module)
        assert said(where) == "another\nown\n"
        kept = shutil.copy2(module, packages / "kept.py")
        with module.open("r+") as file:  # in place: no copy that was measured before may change with it
            file.write("print('a third!')\n")
        assert said(where) == "a third!\nown\n"
        Path(kept).replace(module)
        assert said(where) == "another\nown\n"


def test_the_libraries_of_a_prefix_come_along(shell: Enclave) -> None:
    library = shell.folder / "prefix/lib/libown.so.1"
    (shell.folder / "prefix" / SITE).mkdir(parents=True)
    (shell.folder / "prefix/lib/libgone.so").symlink_to("nowhere")
    for text in ("one", "two"):
        library.with_name("new").write_text(text)
        library.with_name("new").replace(library)
        program = "print(open('/opt/env/lib/libown.so.1').read())"
        assert shell.run("run", "--venv", "prefix", "--", "python", "-c", program).stdout == f"{text}\n"


@pytest.mark.parametrize("kind", ["dangling", "folder", "editable", "empty", "other"])
def test_what_cannot_be_part_of_an_environment(shell: Enclave, kind: str) -> None:
    folder = shell.folder / f"odd-{kind}"
    folder.mkdir()
    if kind in ("dangling", "folder"):
        (folder / "link").symlink_to("nowhere" if kind == "dangling" else "/usr")
    if kind == "editable":
        (folder / "__editable__.x.pth").write_text("/somewhere\n")
    if kind == "other":
        (folder / "conda-meta").mkdir()
    name = "" if kind == "empty" else folder.name
    done = shell.run("run", "--venv", name, "--", "python", "-c", "pass", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert {"dangling": "link is neither", "folder": "link is neither", "editable": "leads out of",
            "empty": "name is empty", "other": "has no lib/"}[kind] in done.stderr  # fmt: skip


def test_a_spark_job_needs_pyspark_in_its_environment(shell: Enclave, built: Path) -> None:
    (shell.folder / "app.py").write_text("")
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (shell.folder / "client" / packages / "pyspark").mkdir(parents=True)  # as pyspark-client has it: no engine
    (shell.folder / "client" / packages / "pyspark/__init__.py").touch()
    for venv in (built, shell.folder / "client"):
        done = shell.run("spark-submit", "--venv", str(venv), "app.py", check=False)
        assert done.returncode == 1
        assert "has no PySpark" in done.stderr


@pytest.mark.parametrize(("name", "said"), [("nowhere", "is not a folder"), ("older", "is for python3.4")])
def test_what_is_no_environment(shell: Enclave, name: str, said: str) -> None:
    (shell.folder / "older/lib/python3.4/site-packages").mkdir(parents=True, exist_ok=True)
    done = shell.run("run", "--venv", name, "--", "python", "-c", "pass", check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "hint: strongroom env build" in done.stderr


def test_T196_an_environment_that_was_altered_after_approval_is_refused(
    shell: Enclave, locked: Path, tmp_path: Path
) -> None:
    folder = environments.build(locked, tmp_path / "env").folder
    (shell.folder / "app.py").write_text("import markdown_it; print(open('/work/in/a.csv').read())\n")
    words = ("--venv", str(folder), "--volume", "in=in", "--", "python", "app.py")
    assert "alpha" in str(shell.outcome(*words)["said"])
    victim = folder / SITE / "markdown_it/__init__.py"
    victim.write_text(victim.read_text() + "print(open('/work/in/a.csv').read())\n")
    refused = shell.outcome(*words, approve=False)
    assert refused["outcome"] == "refused"
    assert "measurement: expected" in str(error(refused))


def test_a_job_on_the_cluster_has_the_environment_that_was_deployed(built: Path, tmp_path: Path) -> None:
    workspace = create_workspace(tmp_path).workspace
    program = tmp_path / "app.py"
    program.write_text("print(1)")
    spec = JobSpec(name="app", workload="spark", program=program, keys=(JobKey(name="k"),), target="cluster")
    runner = JobRunner(workspace, Settings.from_environment())
    cluster = Cluster(hosts=("a", "b"), root="/opt/x")
    for deployed, asked, expected in ((None, None, None), (built, None, built), (built, built, built)):
        replace(cluster, venv=str(deployed or "")).save(workspace)
        plan = runner.plan(replace(spec, venv=asked), ())
        assert (plan.spec.venv, plan.spec.workers) == (expected, 2)
    for deployed, asked in ((None, built), (built, tmp_path)):
        replace(cluster, venv=str(deployed or "")).save(workspace)
        with pytest.raises(InputError, match="packages that were deployed"):
            runner.plan(replace(spec, venv=asked), ())
