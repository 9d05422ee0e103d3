r"""Trains LeNet on MNIST with PyTorch and says how many of the test images it reads right after each epoch.

python lenet.py FOLDER MODEL [EPOCHS]
strongroom run --venv env --volume model=model:vision:rw -- python examples/mnist-torch/lenet.py mnist model

FOLDER has the four files of MNIST (train-images-idx3-ubyte and so on). MODEL takes lenet.safetensors, and as JSON what
it was made with and how good it is; see README.md.
It prints lines of BigDL's shape, for programs that look for those.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

BATCH, RATE, SEED = 128, 0.1, 1


def read_idx(path: Path) -> torch.Tensor:
    """Return what an IDX file of bytes holds: uint8, shape as its header says."""
    raw = path.read_bytes()
    axes = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def load(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (float32, (n, 1, 28, 28), standardised) and labels (int64, (n,))."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte").float().unsqueeze(1) / 255
    return (images - 0.1307) / 0.3081, read_idx(folder / f"{part}-labels-idx1-ubyte").long()


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 4 * 4, 100), nn.Tanh(), nn.Linear(100, 10),
    )  # fmt: skip


def main(folder: Path, target: Path, epochs: int) -> None:
    started = time.monotonic()
    torch.manual_seed(SEED)
    images, labels = load(folder, "train")
    test_images, test_labels = load(folder, "t10k")
    print(f"{len(images)} images to learn from, {len(test_images)} to be tested with")
    model = lenet()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for epoch in range(1, epochs + 1):
        batches = torch.randperm(len(images)).split(BATCH)
        for batch in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            right = int((model(test_images).argmax(1) == test_labels).sum())
        accuracy = f"Accuracy(correct: {right}, count: {len(test_labels)}, accuracy: {right / len(test_labels):.4f})"
        clock = f"[Iteration {epoch * len(batches)}][Wall Clock {time.monotonic() - started:.6f}s]"
        print(f"INFO [Epoch {epoch} {len(images)}/{len(images)}]{clock} Top1Accuracy is {accuracy}", flush=True)
    print(f"############# train optimized ---- end time: {(time.monotonic() - started) * 1000:.0f} ms")
    save_file(model.state_dict(), target / "lenet.safetensors")
    made_with = {"epochs": epochs, "batch": BATCH, "learning_rate": RATE, "seed": SEED}
    (target / "parameters.json").write_text(json.dumps(made_with))
    (target / "metrics.json").write_text(json.dumps({"accuracy": right / len(test_labels)}))
    print(f"############# model saved ---- end time: {(time.monotonic() - started) * 1000:.0f} ms")


main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)
