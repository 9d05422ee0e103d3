r"""Trains a small network on MNIST with differential privacy, by Opacus, and keeps the model with what it gives away.

python train.py FOLDER MODEL [EPOCHS]
strongroom run --venv env --volume model=model:vision:rw -- python examples/dp-opacus/train.py mnist model

FOLDER has the four files of MNIST (train-images-idx3-ubyte and so on); see README.md.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strongroom import models

BATCH, NOISE, CLIP, DELTA = 512, 1.0, 1.0, 1e-5  # DELTA: below one in as many as there are images


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


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip


def main(folder: Path, target: Path, epochs: int) -> None:
    # No seed: whoever knows it knows the noise.
    train, test = load(folder, "train"), load(folder, "t10k")
    print(f"{len(train)} images to learn from, {len(test)} to be tested with")
    plain = network()
    engine = PrivacyEngine()
    model, optimiser, batches = engine.make_private(
        module=plain,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.5),
        data_loader=DataLoader(train, batch_size=BATCH),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
    )
    accuracy = epsilon = 0.0
    for epoch in range(1, epochs + 1):
        for images, labels in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        images, labels = test.tensors
        with torch.no_grad():
            accuracy = float((plain(images).argmax(1) == labels).float().mean())
        epsilon = math.ceil(engine.get_epsilon(DELTA) * 1e4) / 1e4  # never less than was spent
        print(f"epoch {epoch}: accuracy: {accuracy:.4f}, epsilon: {epsilon:.4f} at delta {DELTA}", flush=True)
    parameters = {"epochs": epochs, "batch": BATCH, "noise_multiplier": NOISE, "clipping_norm": CLIP, "delta": DELTA}
    found = {"accuracy": round(accuracy, 4), "epsilon": epsilon, "accountant": engine.accountant.mechanism()}
    models.save(plain.state_dict(), target, parameters=parameters, metrics=found)


main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 3)
