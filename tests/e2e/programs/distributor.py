"""Sums tensors with a marker in them over the processes of a TorchDistributor: plain PySpark.

spark-submit distributor.py [INPUT_FOLDER]
"""

import sys

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

MARKER = b"gradient-of-a-secret-model"


def train(backwards, factor):
    """Return what rank 0 saw: the sum, and rank, place and sum of the marker's bytes of every process."""
    import os
    import socket

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    # Spark brings the marker backwards and rank 0 alone turns it: whoever sees it on the wire sees gloo.
    tensor = torch.frombuffer(bytearray(backwards[::-1] * 2000), dtype=torch.uint8).clone()
    if rank > 0:
        tensor.zero_()
    dist.broadcast(tensor, 0)
    summed = torch.full((1000,), float(factor * (rank + 1)))
    dist.all_reduce(summed)
    place = os.environ.get("SPARK_LOCAL_IP"), socket.gethostname(), os.readlink("/proc/self/ns/net")
    seen = [None] * dist.get_world_size()
    threads = os.environ.get("OMP_WAIT_POLICY"), torch.get_num_threads()
    dist.all_gather_object(seen, (rank, place, int(tensor.sum()), threads))
    print(f"rank {rank} says hello", flush=True)
    dist.destroy_process_group()
    return summed[0].item(), seen


spark = SparkSession.builder.appName("distributor").getOrCreate()
words = "".join(row.value for row in spark.read.text(sys.argv[1]).collect()) if len(sys.argv) > 1 else ""
summed, seen = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False).run(train, MARKER[::-1], factor=2)
print(f"sum {summed:.0f}, read {words!r}")
for rank, place, total, threads in seen:
    print("rank", rank, "at", *place, "marker", total == 2000 * sum(MARKER), "threads", *threads)
spark.stop()
