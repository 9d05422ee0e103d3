"""Checkpoints of a running job: a machine that dies, and a program that moves things meanwhile. T205, T206."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.test_enclave_data import wait_for
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave

TRAIN = """
import json, os, time
state = '/work/m/state.json'
step = json.load(open(state))['step'] if os.path.exists(state) else 0
print('BEGIN', step, flush=True)
half = open('/work/m/half.bin', 'wb')
half.write(b'half of it')
half.flush()
while True:
    step += 1
    with open(state + '.new', 'w') as out:
        json.dump({'step': step}, out)
    os.replace(state + '.new', state)
    time.sleep(0.05)
"""
SWAP = """
import os, time
os.mkdir('/work/m/d')
names = ('environ', 'maps')
for name in names:
    open('/work/m/d/' + name, 'w').write('mine')
end = time.monotonic() + 5
while time.monotonic() < end:  # a file, then a link in its place
    open('/work/m/steady.new', 'w').write('mine')
    os.replace('/work/m/steady.new', '/work/m/steady')
    for name in names:
        os.symlink('/proc/1/' + name, '/work/m/d/new')
        os.replace('/work/m/d/new', '/work/m/d/' + name)
        open('/work/m/d/new', 'w').write('mine')
        os.replace('/work/m/d/new', '/work/m/d/' + name)
end = time.monotonic() + 2.5
while time.monotonic() < end:  # a link in place of the folder
    os.rename('/work/m/d', '/work/m/real')
    os.symlink('/proc/1', '/work/m/d')
    os.unlink('/work/m/d')
    os.rename('/work/m/real', '/work/m/d')
"""
OPTIONS = ("--checkpoint-every", "1", "--volume", "m=m:sales:rw", "--")


@pytest.fixture
def enclave(tmp_path: Path) -> Iterator[Enclave]:
    made = make_enclave(tmp_path / "ws")
    yield made
    stop_service(made.workspace)


def test_T205_a_killed_machine_leaves_the_last_checkpoint_and_no_half_file(enclave: Enclave) -> None:
    (enclave.folder / "train.py").write_text(TRAIN)
    begun = []
    for _ in range(3):
        run = enclave.start(*OPTIONS, "python", "train.py")
        assert run.stdout is not None
        line = run.stdout.readline()
        assert line.startswith("BEGIN "), run.communicate()
        begun.append(int(line.split()[1]))
        before = committed(enclave)
        wait_for(lambda before=before: committed(enclave) > before)  # type: ignore[misc]
        kill_all(run)
    assert begun[0] == 0
    assert begun[0] < begun[1] < begun[2]
    enclave.run("data", "restore", "m")
    assert set(enclave.open("m")) <= {"state.json", "state.json.new"}
    clear = [p for p in (enclave.folder / "m").rglob("*") if p.is_file() and b"half of it" in p.read_bytes()]
    assert clear == []


def test_T206_a_running_program_leads_no_checkpoint_out_of_its_volume(enclave: Enclave) -> None:
    (enclave.folder / "swap.py").write_text(SWAP)
    done = enclave.outcome(*OPTIONS, "python", "swap.py")
    assert (done["outcome"], done["exit_code"]) == ("completed", 0), done
    assert committed(enclave) > 1
    found = enclave.open("m")
    assert set(found.values()) == {"mine"}


def test_a_failed_program_keeps_its_checkpoints_and_nothing_after_them(enclave: Enclave) -> None:
    # Whoever fails has the last file open: no checkpoint takes one that is being written.
    program = (
        "import os, time; open('/work/m/a', 'w').write('kept'); time.sleep(3.5); "
        "late = open('/work/m/a', 'w'); late.write('lost'); late.flush(); os._exit(3)"
    )
    done = enclave.outcome(*OPTIONS, "python", "-c", program)
    assert (done["outcome"], done["exit_code"]) == ("completed", 3), done
    assert enclave.open("m") == {"a": "kept"}


def test_spark_has_checkpoints_of_its_own(enclave: Enclave) -> None:
    (enclave.folder / "p.py").write_text("")
    done = enclave.run("spark-submit", "--checkpoint-every", "1", "p.py", check=False)
    assert done.returncode == 1
    assert "no checkpoints are taken" in done.stderr


def committed(enclave: Enclave) -> int:
    found = enclave.json("data", "list")["datasets"]
    assert isinstance(found, list)
    info = enclave.folder / "m/.dataset/id.json"
    return next((d["epoch"] for d in found if info.exists() and d["dataset"] in info.read_text()), 0)


def kill_all(run: subprocess.Popen[str]) -> None:
    # As a power cut does: every process of the run at once, none of which may tidy.
    family = {run.pid}
    for _ in range(5):
        for found in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, rest = found.parent.name, found.read_text().rpartition(")")[2]
                family |= {int(pid)} if int(rest.split()[1]) in family else set()
    for pid in family:
        with contextlib.suppress(ProcessLookupError):  # gone with its parent
            os.kill(pid, signal.SIGKILL)
    run.communicate(timeout=30)
