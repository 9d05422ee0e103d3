"""Saves and loads a model of many tensors and prints the seconds: plainly (safetensors alone), or as a job does."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.torch  # noqa: F401  # what loading imports is not what loading costs

what, *rest = sys.argv[1:]
WORK = "/work/big"


def tensors(megabytes: int) -> dict[str, np.ndarray]:
    """Return float32 tensors of 16 MB each."""
    some = np.random.default_rng(1).random(4 << 20, np.float32)
    return {f"layer.{number}": some + number for number in range(megabytes // 16)}


def touched(found: dict[str, np.ndarray]) -> float:
    return sum(float(tensor[::1024].sum()) for tensor in found.values())


def timed(step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if what == "plain":
    from safetensors.numpy import load_file, save_file

    made = tensors(int(rest[0]))
    file = Path(rest[1]) / "model.safetensors"
    file.unlink(missing_ok=True)
    seconds = {"save": timed(lambda: save_file(made, file)), "load": timed(lambda: touched(load_file(file)))}
elif what == "save":
    from strongroom import models

    made = tensors(int(rest[0]))
    seconds = {"save": timed(lambda: models.save(made, WORK, straight=True))}
    del made  # giving memory back is not sealing
elif what == "load":
    from strongroom import models

    seconds = {"load": timed(lambda: touched(models.load(WORK)))}
else:
    seconds = {}
print(json.dumps(seconds), flush=True)
