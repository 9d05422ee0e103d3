"""Sums a tensor over the processes of torchrun, with a marker in it; says what rank 0 saw."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

MARKER = b"gradient-of-a-secret-model"

dist.init_process_group("gloo")
rank = dist.get_rank()
tensor = torch.frombuffer(bytearray(MARKER * 2000), dtype=torch.uint8).clone()
dist.broadcast(tensor, 0)
summed = torch.full((1000,), float(rank + 1))
dist.all_reduce(summed)
sent = [None] * dist.get_world_size()
dist.all_gather_object(sent, (rank, Path(f"{sys.argv[1]}/x.txt").read_text() if len(sys.argv) > 1 else ""))
threads = [None] * dist.get_world_size()
dist.all_gather_object(threads, (os.environ.get("OMP_WAIT_POLICY"), torch.get_num_threads()))
if rank == 0:
    print("threads", threads)
    print(f"sum {summed[0].item():.0f}, read {sent}", flush=True)
dist.destroy_process_group()
