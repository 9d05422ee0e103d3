"""LeNet on MNIST by PyTorch: the example, its environment and its data as its README has them, beside a plain run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service
from tests.e2e.readmes import commands, run
from tests.e2e.test_spark_real_data import ROOT, assert_nothing_in_clear

from strongroom.client.workspace import Workspace

pytestmark = pytest.mark.example
PROGRAM, TOGETHER = (ROOT / "examples/mnist-torch" / name for name in ("lenet.py", "lenet_ddp.py"))
FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MNIST's files and their published MD5."""
LEAST = (0.9488, 0.9696)
"""What the old guide's log shows after each epoch."""


def accuracies(said: str) -> list[float]:
    """Return the accuracy after each epoch, from lines as the old guide shows them."""
    pattern = (
        r"^INFO \[Epoch (\d) 60000/60000\]\[Iteration (\d+)\]\[Wall Clock [0-9.]+s\] "
        r"Top1Accuracy is Accuracy\(correct: (\d+), count: 10000, accuracy: ([0-9.]+)\)$"
    )
    found = re.findall(pattern, said, re.MULTILINE)
    for number, (epoch, iteration, correct, accuracy) in enumerate(found, start=1):
        assert (int(epoch), int(iteration)) == (number, number * 469), found  # 60,000 in batches of 128
        assert float(accuracy) == int(correct) / 10_000, found
    return [float(accuracy) for *_, accuracy in found]


def check_mnist(folder: Path) -> None:
    """Make sure that the four files are MNIST's."""
    assert {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in FILES} == FILES


def test_lenet_learns_what_it_learns_plain(shell: Shell, plain: Path) -> None:
    done = run(shell, [command for command in commands("mnist-torch") if "torchrun" not in command])
    mnist, said = shell.folder / "mnist", done("strongroom run")
    check_mnist(mnist)
    assert said.startswith("60000 images to learn from, 10000 to be tested with\n")
    assert len(accuracies(said)) == len(LEAST)
    assert all(found >= least for found, least in zip(accuracies(said), LEAST, strict=True)), said

    # What the old guide greps.
    first, second, *last = done("grep").splitlines()
    assert first.startswith("INFO [Epoch 1 ")
    assert second.startswith("INFO [Epoch 2 ")
    steps = [re.fullmatch(r"############# (.*) ---- end time: (\d+) ms", line) for line in last]
    assert [step and step[1] for step in steps] == ["train optimized", "model saved"]

    (packages,) = (shell.folder / "env/lib").glob("python3.*/site-packages")
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_WAIT_POLICY": "PASSIVE"}
    (plain / "model").mkdir()
    command = [sys.executable, "-s", str(PROGRAM), str(mnist), str(plain / "model")]
    plainly = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=900).stdout
    assert accuracies(said) == pytest.approx(accuracies(plainly), abs=0.003)

    model = (plain / "model/lenet.safetensors").read_bytes()
    names = re.findall(rb'"[0-9].weight"', model)
    assert len(names) == 4
    assert_nothing_in_clear(shell.folder / "model", [b'":{"dtype":"F32"', model[-64:]])
    image = (mnist / "train-images-idx3-ubyte").read_bytes()[16:][784:1568]
    assert_nothing_in_clear(shell.folder / "sealed-mnist", [image])
    assert len((shell.folder / "opened/lenet.safetensors").read_bytes()) == len(model)

    # The same by DistributedDataParallel, one epoch in two enclaves.
    words = ["--approve", "--unsafe-accept-simulated", "--venv", "env", "--volume", "both=both:vision:rw"]
    program = [str(TOGETHER), "sealed-mnist", "both", "1"]
    together = shell.run("torchrun", "--nnodes", "2", *words, *program, timeout_s=900).stdout
    assert together.startswith("60000 images to learn from, 10000 to be tested with, 2 processes\n")
    (accuracy,) = accuracies(together)
    assert accuracy >= LEAST[0]
    assert shell.run("model", "verify", "both").stdout.startswith("verified 3 files")
    shown = shell.run("model", "show", "both").stdout
    assert re.search(rf"^metrics +accuracy={accuracy}$", shown, re.MULTILINE), shown
    assert re.search(r"^parameters +epochs=1, .*, processes=2$", shown, re.MULTILINE), shown

    assert_origin_is_shown_and_checked(shell, accuracies(said)[-1])


def assert_origin_is_shown_and_checked(shell: Shell, accuracy: float) -> None:
    """Assert what `model show` prints and `model verify` refuses of LeNet in `model`; leaves the audit log altered."""
    # Each line that is printed, against what is known from elsewhere.
    origin, _, maker = shell.run("model", "show", "model").stdout.partition("\nin its maker's words:\n")
    lines = {name: value.strip() for name, _, value in (line.partition("  ") for line in origin.splitlines())}
    policy = json.dumps(shell.json("policy", "show", "vision"))
    assert lines["origin"] == "made by an attested job (SIMULATED enclave)"
    assert lines["platform"] == "SIMULATED sgx, UpToDate"
    for name, pattern in (("job", "sha256:[0-9a-f]{64}"), ("measurement", "[0-9a-f]{64}")):
        assert re.fullmatch(pattern, lines[name])
        assert lines[name] in policy, "which is what its owner allowed"
    assert lines["command"] == "/opt/env/bin/python3 /app/lenet.py /work/sealed-mnist /work/model"
    mnist_set = shell.json("data", "show", "sealed-mnist")["dataset"]
    assert re.search(rf"^sealed-mnist +{mnist_set} +1 +vision$", origin, re.MULTILINE), origin
    dataset = shell.json("data", "show", "model")["dataset"]
    wanted = (
        rf"data set +{dataset}, epoch 1",
        "key +vision",
        r"files +lenet\.safetensors \([0-9,]+ bytes\), metrics\.json .*, parameters\.json .*",
        r"model +\.",
        "parameters +epochs=2, batch=128, learning_rate=0.1, seed=1",
        f"metrics +accuracy={accuracy}",
    )
    for pattern in wanted:
        assert re.search(f"^{pattern}$", maker, re.MULTILINE), (pattern, maker)

    # One byte of the model, and one of what is said of it, each by itself.
    verified = shell.run("model", "verify", "model").stdout
    assert re.fullmatch(r"verified 3 files, 0\.1 MB: made by an attested job \(SIMULATED enclave\)\n", verified)
    for name, at in (("lenet.safetensors", 50_000), ("metrics.json", -1)):
        sealed = shell.folder / "model" / name
        whole = sealed.read_bytes()
        altered = bytearray(whole)
        altered[at] ^= 1
        sealed.write_bytes(altered)
        refused = shell.run("model", "verify", "model", check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert re.search(rf"\b{re.escape(name)}\b.*altered", refused.stderr), refused.stderr
        sealed.write_bytes(whole)
    shell.run("model", "verify", "model")

    # Nor can the service's record of where it comes from be changed.
    workspace = Workspace.find(shell.folder)
    stop_service(workspace)
    with sqlite3.connect(workspace.service_folder / "state.db") as connection:
        commits = 'SELECT seq, record FROM audit WHERE record LIKE \'%"action":"commit"%"job":%\''
        ((seq, record),) = (row for row in connection.execute(commits).fetchall() if str(dataset) in row[1])
        first = f'"measurement":"{lines["measurement"][0]}'
        other = record.replace(first, first[:-1] + ("0" if first[-1] == "f" else "f"))
        connection.execute("UPDATE audit SET record = ? WHERE seq = ?", (other, seq))
    connection.close()
    refused = shell.run("model", "verify", "model", check=False)
    assert (refused.returncode, f"record {seq} was altered" in refused.stderr) == (1, True), refused.stderr
