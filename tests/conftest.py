"""Fixtures that several kinds of test share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest

from strongroom.client.setup import create_workspace
from strongroom.client.workspace import Workspace

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("house")

STRONGROOM = str(Path(sys.executable).parent / "strongroom")


@dataclass
class Shell:
    """Runs `strongroom` in a folder that holds a workspace, as a person would."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def workspace(self) -> Workspace:
        return Workspace.find(self.folder)

    def run(
        self, *words: str, check: bool = True, timeout_s: float = 300, said: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command, with `said` as its input; with `check` a failure fails the test with all that it printed."""
        done = subprocess.run(
            [STRONGROOM, *words],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            input=said,
        )
        if check and done.returncode:
            raise AssertionError(f"strongroom {' '.join(words)} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *words: str) -> Mapping[str, object]:
        """Run one command with --json and return what it printed; a failing exit status is allowed."""
        done = self.run(*words, "--json", check=False)
        try:
            found = json.loads(done.stdout)
        except ValueError as exc:
            raise AssertionError(f"strongroom {' '.join(words)} printed no JSON\n{done.stdout}\n{done.stderr}") from exc
        assert isinstance(found, dict)
        return found


@contextlib.contextmanager
def tiny_disk(folder: Path, megabytes: int = 2) -> Iterator[Path]:
    """Make `folder` a file system of its own of that size, which a test can fill; skips where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path`, for folders in folders without end: whoever removes it later calls itself for each."""
    yield tmp_path
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def stop_service(workspace: Workspace) -> None:
    """Stop the embedded service of a workspace, if it runs, and wait until it is gone."""
    pid = workspace.pid()
    if pid is None or not workspace.is_running():
        return
    os.kill(pid, signal.SIGTERM)
    for _ in range(400):
        if workspace.pid() is None:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # it may be our own child
        time.sleep(0.025)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def new_shell(tmp_path: Path) -> Iterator[Callable[[str], Shell]]:
    """Return a maker of workspaces; their services are stopped at the end."""
    made: list[Shell] = []

    def make(name: str = "ws") -> Shell:
        folder = tmp_path / name
        create_workspace(folder)
        shell = Shell(folder=folder)
        made.append(shell)
        return shell

    yield make
    for shell in made:
        stop_service(shell.workspace)


@pytest.fixture
def shell(new_shell: Callable[[str], Shell]) -> Shell:
    """Return a fresh workspace's shell."""
    return new_shell("ws")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return an empty folder for a run under plain Spark."""
    folder = tmp_path / "plain"
    folder.mkdir()
    return folder


RECORD = Path(__file__).parents[1] / "docs/reference/e2e-long.md"
_RECORD_HEAD = """# What is too long for every landing

`make e2e-long` and the examples (`make e2e E2E=example`) write this page: when each was run last, at which commit, and
what came of it. Other rows stay.

| test | when, commit | result | s |
| --- | --- | --- | --- |
"""


def record(page: str, reports: Iterable[tuple[str, pytest.TestReport]], when: str) -> str:
    """Return the page with a row for each (result, report) of a test that ran or could not; other rows stay."""
    known = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| `")}
    for result, report in reports:
        if report.when == "call" or result == "error":
            name = f"| `{report.nodeid.removeprefix('tests/e2e/')}`"
            known[name] = f"{name} | {when} | {result} | {report.duration:.0f} |"
    return _RECORD_HEAD + "".join(f"{known[name]}\n" for name in sorted(known))


def recorded(markexpr: str, report: pytest.TestReport) -> bool:
    """Whether a test gets a row: long ones in a run of these alone, examples in a run that asked for them."""
    return markexpr == "long" or ("example" in markexpr and "example" in report.keywords)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Keep the last dated result of every long test and every example."""
    reports = [
        (result, report)
        for result in ("passed", "failed", "error")
        for report in terminalreporter.getreports(result)
        if recorded(config.option.markexpr, report)
    ]
    if reports:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
        commit = subprocess.run(words, cwd=RECORD.parent, capture_output=True, text=True, check=True).stdout.strip()
        RECORD.write_text(record(RECORD.read_text(), reports, f"{time.strftime('%Y-%m-%d')}, {commit}"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    # Bytes may be others each time (keys, dates in archives); two processes have to agree on a test's name.
    return argname if isinstance(val, bytes) else None
