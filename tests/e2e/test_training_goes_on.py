"""Training that is killed with its enclave and run again ends with the weights of a run that nobody killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.attacks.test_enclave_checkpoints import committed
from tests.attacks.test_enclave_data import wait_for
from tests.conftest import stop_service
from tests.fakes.enclave_shell import APPROVE, make_enclave

pytestmark = pytest.mark.example
PROGRAM = Path(__file__).parent / "programs/resumes.py"
SPIRALS = """
import sys, torch
turns = torch.linspace(0, 6, 500)
arm = torch.stack((turns.cos(), turns.sin()), 1) * turns[:, None] / 6
torch.save((torch.cat((arm, -arm)), torch.arange(2).repeat_interleave(500)), sys.argv[1])
"""


def kill_guest(run: subprocess.Popen[str]) -> None:
    """Kill the guest of a running `strongroom run`, which has no time to tidy."""
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"strongroom.guest.main" in found.read_bytes() and run.pid in ancestors(int(found.parent.name)):
                os.kill(int(found.parent.name), signal.SIGKILL)
    assert run.wait(60) != 0


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    shell = make_enclave(tmp_path / "ws")
    try:
        shell.run("env", "lock", "torch==2.13.0", "numpy", "safetensors", "-o", "locked.txt", timeout_s=600)
        shell.run("env", "build", "locked.txt", "env", timeout_s=900)
        (packages,) = (shell.folder / "env/lib").glob("python3.*/site-packages")
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        for folder in ("s.plain", "state"):
            (tmp_path / folder).mkdir()

        def plainly(*words: object) -> str:
            command = [sys.executable, "-s", *map(str, words)]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

        plainly("-c", SPIRALS, tmp_path / "s.plain/spirals.pt")
        said = plainly(PROGRAM, tmp_path / "s.plain", tmp_path / "state", 0)
        shell.run("data", "seal", str(tmp_path / "s.plain"), "s", "--key", "sales")

        job = ("--checkpoint-every", "1", "--venv", "env", "--volume", "s=s", "--volume", "m=m:sales:rw", "--")
        words = (*job, "python", str(PROGRAM), "/work/s", "/work/m", "0.5")
        run = shell.start(*words)
        assert run.stdout is not None
        assert run.stdout.readline() == "from 0\n"
        wait_for(lambda: committed(shell) > 1)
        kill_guest(run)
        first, last = shell.run("run", *APPROVE, *words, timeout_s=120).stdout.splitlines()
        assert 0 < int(first.removeprefix("from ")) < 20, first
        assert f"from 0\n{last}\n" == said
        shell.run("data", "open", "m", "opened")
        assert (shell.folder / "opened/net.safetensors").read_bytes() == (
            tmp_path / "state/net.safetensors"
        ).read_bytes()
    finally:
        stop_service(shell.workspace)
