"""TorchDistributor on executors in enclaves of their own: the same result as plain Spark, nothing of it on the wire."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.conftest import Shell, stop_service
from tests.e2e.readmes import commands, run
from tests.e2e.spark_examples import plain_spark_submit
from tests.e2e.test_mnist_torch import LEAST, accuracies, check_mnist
from tests.e2e.test_spark_real_data import PROGRAMS, QUICK, ROOT, assert_nothing_in_clear
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave
from tests.fakes.java_support import java_home
from tests.servers.wire import captured

pytestmark = pytest.mark.example
MARKER = b"gradient-of-a-secret-model"
LENET = ROOT / "examples/mnist-spark/lenet_spark.py"
MASTER = ("--master", "local-cluster[2,1,2048]")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("distributor"))
    made.seal("data", {"x.txt": "sealed text"})
    make_environment(made.folder / "env")
    yield made
    stop_service(made.workspace)


def make_environment(folder: Path) -> None:
    """Make the virtual environment `env` with PySpark and PyTorch, by the example's README."""
    (command,) = [command for command in commands("mnist-spark") if command.startswith("python -m venv env && ")]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["bash", "-c", command]
    subprocess.run(words, cwd=folder.parent, env=environment, check=True, capture_output=True, timeout=900)


def trusted(shell: Shell, *words: str) -> str:
    return shell.run("spark-submit", *APPROVE, *MASTER, *QUICK, "--venv", "env", *words, timeout_s=600).stdout


def plainly(shell: Shell, folder: Path, *words: str) -> str:
    """Run under PySpark's own spark-submit with the packages of the same environment, in `folder`."""
    command, environment = plain_spark_submit(java_home(folder / ".java"), folder)
    python = str(shell.folder / "env/bin/python")
    environment |= {"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, *MASTER, *QUICK, *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def places(said: str) -> set[tuple[str, str]]:
    """Return address and network namespace of every rank that saw the whole tensor, on the thread of its core."""
    return set(re.findall(r"^rank \d at (\S+) \S+ (net:\[\d+\]) marker True threads PASSIVE 1$", said, re.MULTILINE))


def test_T204_what_executors_train_on_is_not_on_the_wire(shell: Enclave, plain: Path) -> None:
    """Two ranks, two enclaves, nothing of a tensor between them; plain Spark shows it to the same capture."""
    with captured("lo") as wire:
        said = trusted(shell, str(PROGRAMS / "distributor.py"), "data")
    assert "sum 6, read 'sealed text'" in said
    assert {address for address, _ in places(said)} == {"10.77.0.2", "10.77.0.3"}
    assert len({space for _, space in places(said)}) == 2, "each enclave has a network of its own"
    assert wire.bytes > 100_000
    assert not wire.holds(MARKER[:16])
    shutil.copytree(shell.folder / "data.plain", plain / "data")
    with captured("lo") as wire:
        said = plainly(shell, plain, str(PROGRAMS / "distributor.py"), "data")
    assert "sum 6, read 'sealed text'" in said
    assert len({space for _, space in places(said)}) == 1
    assert wire.holds(MARKER[:16])


def test_lenet_learns_on_two_executors_what_it_learns_plainly(shell: Enclave, plain: Path) -> None:
    steps = [command for command in commands("mnist-spark") if not command.startswith("python -m venv")]
    done = run(shell, steps, spark=QUICK)
    said = done("strongroom spark-submit")
    check_mnist(shell.folder / "mnist")
    (plain / "mnist").symlink_to(shell.folder / "mnist")
    image = (plain / "mnist/train-images-idx3-ubyte").read_bytes()[16:][784:1568]
    assert said.startswith("60000 images to learn from, 10000 to be tested with, 2 processes\n")
    assert len(accuracies(said)) == len(LEAST)
    assert all(found >= least for found, least in zip(accuracies(said), LEAST, strict=True)), said
    assert accuracies(done("grep")) == accuracies(said)
    assert accuracies(plainly(shell, plain, str(LENET), "mnist", "model")) == pytest.approx(accuracies(said), abs=0.003)

    assert_nothing_in_clear(shell.folder / "model", [b"net.parquet", b"parquet-mr"])
    assert_nothing_in_clear(shell.folder / "sealed-mnist", [image])
    origin = shell.json("model", "show", "model")["provenance"]
    assert isinstance(origin, dict)
    assert origin["attested"] is True
    assert [one["volume"] for one in origin["inputs"] if one["epoch"]] == ["sealed-mnist"]
    assert f"accuracy={accuracies(said)[-1]}" in done("strongroom model show")
    opened, expected = (
        {row["name"]: row["shape"] for row in pyarrow.parquet.read_table(folder / "lenet").to_pylist()}
        for folder in (shell.folder / "opened", plain / "model")
    )
    assert opened == expected
    assert opened["7.weight"] == [100, 192]
