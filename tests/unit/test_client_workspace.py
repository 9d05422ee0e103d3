from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.client.workspace import Workspace


@pytest.mark.parametrize("service", ["/home/zoë/\N{GRINNING FACE}", 'a"b\\c\x7f\td', "shop.example:8700"])
def test_a_workspace_reads_what_it_wrote(service: str, tmp_path: Path) -> None:
    Workspace(folder=tmp_path, identity="i", owner="o", name="n", service=service).written()
    assert Workspace.find(tmp_path).service == service


def test_a_service_that_ended_runs_no_longer_whether_or_not_its_parent_has_looked(tmp_path: Path) -> None:
    workspace = Workspace(folder=tmp_path, identity="", owner="", name="")
    workspace.run_folder.mkdir(parents=True)
    child = subprocess.Popen(["/bin/sleep", "60"])
    (workspace.run_folder / "service.pid").write_text(str(child.pid))
    assert workspace.pid() == child.pid
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert workspace.pid() is None
    child.wait()
    assert workspace.pid() is None


def test_an_owners_command_loads_neither_database_nor_verifiers() -> None:
    """They are more than half of its time, and only a service in a TEE is verified."""
    code = "import sys, strongroom.client.owner; print({'sqlalchemy', 'dcap_qvl', 'asyncio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
