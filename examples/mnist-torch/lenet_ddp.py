r"""Trains LeNet on MNIST by several processes with PyTorch's DistributedDataParallel, as torchrun starts them.

torchrun --nproc-per-node 2 lenet_ddp.py FOLDER MODEL [EPOCHS]
strongroom torchrun --nnodes 2 --venv env --volume model=model:vision:rw examples/mnist-torch/lenet_ddp.py mnist model

FOLDER has the four files of MNIST. MODEL takes lenet.safetensors, and as JSON what it was made with and how good it is;
see README.md.
It prints lines of BigDL's shape, for programs that look for those.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

BATCH, RATE, SEED = 128, 0.15, 1  # a batch is that of all processes


def read_idx(path: Path) -> torch.Tensor:
    """Return what an IDX file of bytes holds: uint8, shape as its header says."""
    raw = path.read_bytes()
    axes = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def load(folder: Path, part: str) -> TensorDataset:
    """Return images (float32, (n, 1, 28, 28), standardised) with labels (int64, (n,))."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte").float().unsqueeze(1) / 255
    return TensorDataset((images - 0.1307) / 0.3081, read_idx(folder / f"{part}-labels-idx1-ubyte").long())


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 4 * 4, 100), nn.Tanh(), nn.Linear(100, 10),
    )  # fmt: skip


def main(folder: Path, target: Path, epochs: int) -> None:
    started = time.monotonic()
    dist.init_process_group("gloo")
    torch.manual_seed(SEED)
    rank, processes = dist.get_rank(), dist.get_world_size()
    train, test = load(folder, "train"), load(folder, "t10k")
    if rank == 0:
        print(f"{len(train)} images to learn from, {len(test)} to be tested with, {processes} processes", flush=True)
    sampler = DistributedSampler(train, seed=SEED)
    batches = DataLoader(train, batch_size=BATCH // processes, sampler=sampler)
    model = DistributedDataParallel(lenet())
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        for images, labels in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        images, labels = test.tensors
        with torch.no_grad():
            right = (model.module(images[rank::processes]).argmax(1) == labels[rank::processes]).sum()
        dist.all_reduce(right)
        if rank == 0:
            found = int(right)
            accuracy = f"Accuracy(correct: {found}, count: {len(test)}, accuracy: {found / len(test):.4f})"
            clock = f"[Iteration {epoch * len(batches)}][Wall Clock {time.monotonic() - started:.6f}s]"
            print(f"INFO [Epoch {epoch} {len(train)}/{len(train)}]{clock} Top1Accuracy is {accuracy}", flush=True)
    if rank == 0:
        save_file(model.module.state_dict(), target / "lenet.safetensors")
        made_with = {"epochs": epochs, "batch": BATCH, "learning_rate": RATE, "seed": SEED, "processes": processes}
        (target / "parameters.json").write_text(json.dumps(made_with))
        (target / "metrics.json").write_text(json.dumps({"accuracy": found / len(test)}))
    dist.destroy_process_group()


main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)
