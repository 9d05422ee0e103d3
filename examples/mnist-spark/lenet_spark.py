r"""Trains LeNet on MNIST with PySpark's TorchDistributor: one PyTorch process on each executor, gloo between them.

spark-submit --master 'local-cluster[2,1,2048]' lenet_spark.py FOLDER MODEL [EPOCHS]
strongroom spark-submit --master 'local-cluster[2,1,2048]' --venv env \
    --volume model=model:vision:rw examples/mnist-spark/lenet_spark.py mnist model

FOLDER has the four files of MNIST. MODEL takes the weights, as a table of name, shape and values, and as JSON what they
were made with and how good they are; see README.md.
It prints lines of BigDL's shape, for programs that look for those.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

PROCESSES = 2
BATCH, RATE, SEED = 128, 0.15, 1  # a batch is that of all processes


def read_idx(raw: bytes) -> torch.Tensor:
    """Return what an IDX file of bytes holds: uint8, shape as its header says."""
    axes = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def part(files: dict[str, bytes], name: str) -> TensorDataset:
    """Return images (float32, (n, 1, 28, 28), standardised) with labels (int64, (n,))."""
    images = read_idx(files[f"{name}-images-idx3-ubyte"]).float().unsqueeze(1) / 255
    return TensorDataset((images - 0.1307) / 0.3081, read_idx(files[f"{name}-labels-idx1-ubyte"]).long())


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 4 * 4, 100), nn.Tanh(), nn.Linear(100, 10),
    )  # fmt: skip


def train(files: dict[str, bytes], epochs: int) -> tuple[dict[str, np.ndarray], list[tuple[int, int, float]]]:
    """Return the weights, and of each epoch iterations, test images read right and seconds; runs on every executor."""
    started = time.monotonic()
    dist.init_process_group("gloo")
    torch.manual_seed(SEED)
    rank, processes = dist.get_rank(), dist.get_world_size()
    images, test = part(files, "train"), part(files, "t10k")
    sampler = DistributedSampler(images, seed=SEED)
    batches = DataLoader(images, batch_size=BATCH // processes, sampler=sampler)
    model = DistributedDataParallel(lenet())
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    found = []
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        for batch, labels in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(batch), labels).backward()
            optimiser.step()
        right = count_right(model.module, TensorDataset(*test[rank::processes]))
        dist.all_reduce(right)
        found.append((epoch * len(batches), int(right), time.monotonic() - started))
    dist.destroy_process_group()
    return {name: tensor.numpy() for name, tensor in model.module.state_dict().items()}, found


def count_right(model: nn.Module, test: TensorDataset) -> torch.Tensor:
    """Return how many images of `test` the model reads right."""
    images, labels = test.tensors
    with torch.no_grad():
        return (model(images).argmax(1) == labels).sum()


def write(spark: SparkSession, value: dict[str, object], target: str) -> None:
    """Write JSON where Spark writes: Python's own open() knows this machine's folders alone."""
    path = spark._jvm.org.apache.hadoop.fs.Path(target)
    file = path.getFileSystem(spark._jsc.hadoopConfiguration()).create(path)
    file.write(json.dumps(value).encode())
    file.close()


def main(folder: str, target: str, epochs: int) -> None:
    spark = SparkSession.builder.appName("LeNet").getOrCreate()
    rows = spark.read.format("binaryFile").load(folder).collect()
    files = {row.path.rpartition("/")[2]: bytes(row.content) for row in rows}
    count, test = len(part(files, "train")), part(files, "t10k")
    print(f"{count} images to learn from, {len(test)} to be tested with, {PROCESSES} processes")
    weights, found = TorchDistributor(PROCESSES, local_mode=False, use_gpu=False).run(train, files, epochs)
    for epoch, (iteration, right, seconds) in enumerate(found, start=1):
        accuracy = f"Accuracy(correct: {right}, count: {len(test)}, accuracy: {right / len(test):.4f})"
        clock = f"[Iteration {iteration}][Wall Clock {seconds:.6f}s]"
        print(f"INFO [Epoch {epoch} {count}/{count}]{clock} Top1Accuracy is {accuracy}")

    # Executors and driver share no folder but Spark's, which takes tables: no pickle, and readable without PyTorch.
    table = [(name, list(array.shape), array.ravel().tolist()) for name, array in weights.items()]
    schema = "name string, shape array<int>, values array<float>"
    spark.createDataFrame(table, schema).coalesce(1).write.mode("overwrite").parquet(f"{target}/lenet")
    saved = spark.read.parquet(f"{target}/lenet").collect()
    model = lenet()
    model.load_state_dict({row.name: torch.tensor(row.values).reshape(row.shape) for row in saved})
    right = int(count_right(model, test))
    print(f"saved and read again: correct: {right}, count: {len(test)}")
    made_with = {"epochs": epochs, "batch": BATCH, "learning_rate": RATE, "seed": SEED, "processes": PROCESSES}
    write(spark, made_with, f"{target}/parameters.json")
    write(spark, {"accuracy": right / len(test)}, f"{target}/metrics.json")
    spark.stop()


main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 2)
