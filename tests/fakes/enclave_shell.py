# ruff: noqa: E501  # programs and tables
"""What the tests of the enclave share: a workspace with sealed data, and runs in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import STRONGROOM, Shell, stop_service

from strongroom.client.setup import create_workspace

APPROVE = ("--approve", "--unsafe-accept-simulated")


@dataclass
class Enclave(Shell):
    """A shell whose workspace has key `sales` and the data set `in` with a few files."""

    def seal(self, name: str, files: Mapping[str, str], key: str = "sales") -> Path:
        """Seal texts into the data set `name` and return its folder."""
        for path, text in files.items():
            target = self.folder / f"{name}.plain" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        self.run("data", "seal", f"{name}.plain", name, "--key", key)
        return self.folder / name

    def open(self, name: str) -> dict[str, str]:
        """Open a data set and return its files' texts."""
        target = self.folder / f"opened-{name}-{os.urandom(4).hex()}"
        self.run("data", "open", name, target.name)
        return {
            p.relative_to(target).as_posix(): p.read_text(errors="replace") for p in target.rglob("*") if p.is_file()
        }

    def outcome(self, *words: str, approve: bool = True) -> Mapping[str, object]:
        """Run a program and return the outcome of --json, with the program's output as `said`."""
        command = [STRONGROOM, "run", "--json", *(APPROVE if approve else ()), *words]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **self.environment}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        try:
            found = json.loads(done.stdout)
        except ValueError as exc:
            raise AssertionError(f"no outcome: {done.returncode}\n{done.stdout}\n{done.stderr}") from exc
        assert isinstance(found, dict)
        return {**found, "said": done.stderr, "status": done.returncode}

    def start(self, *words: str, approve: bool = True) -> subprocess.Popen[str]:
        """Start a run and return its process, both outputs as pipes."""
        return subprocess.Popen(
            [STRONGROOM, "run", *(APPROVE if approve else ()), *words],
            cwd=self.folder, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def make_enclave(folder: Path) -> Enclave:
    """Return a shell over a new workspace with key and data."""
    create_workspace(folder)
    shell = Enclave(folder=folder)
    shell.run("key", "create", "sales")
    shell.seal("in", {"a.csv": "id,name\n1,alpha\n", "sub/b.csv": "2,beta\n"})
    return shell


@contextmanager
def served(folder: Path) -> Iterator[Enclave]:
    """Make one whose service listens, in the foreground; PORT in its environment is the guests'."""
    made = make_enclave(folder)
    stop_service(made.workspace)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [STRONGROOM, "service", "run", "--listen", f"127.0.0.1:{port}"]
    server = subprocess.Popen(command, cwd=folder, env=dict(os.environ))
    try:
        limit = time.monotonic() + 30
        while not made.workspace.is_running():
            assert time.monotonic() < limit, "the service does not come up"
            time.sleep(0.05)
        made.environment["PORT"] = str(port + 1)
        yield made
    finally:
        stop_service(made.workspace)
        server.wait(30)


def error(outcome: Mapping[str, object]) -> Mapping[str, object]:
    """Return the error of an outcome."""
    found = outcome["error"]
    assert isinstance(found, dict)
    return found
