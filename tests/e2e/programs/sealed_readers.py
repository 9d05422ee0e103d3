"""Polars, Dask and PyTorch on a sealed data set of 50,000 rows by fsspec's protocol; prints what each way found."""

import json
import sys
import warnings

import dask.bag as bag
import dask.dataframe as dd
import fsspec
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _fsspec_filesystem as by_url
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

base, out = sys.argv[1:]
files = fsspec.filesystem("sealed")
warnings.simplefilter("ignore")  # PyTorch's about tensors that are not to be written


class Parts(Dataset):
    """One item a file."""

    def __len__(self):
        return 3

    def __getitem__(self, number):
        with files.open(f"{base}/parts/{number}.parquet") as file:
            return torch.tensor(pd.read_parquet(file)["n"].to_numpy())


class Lines(IterableDataset):
    """One item a line, shared out among the workers."""

    def __iter__(self):
        worker = get_worker_info()
        with fsspec.open(f"sealed://{base}/t.csv", "rt") as file:
            for number, line in enumerate(file):
                if number and number % worker.num_workers == worker.id:
                    yield int(line.split(",")[0])


def loaded(data, batch, how):
    """Return the sum of what a loader with two processes delivers."""
    return sum(int(n.sum()) for n in DataLoader(data, batch, num_workers=2, multiprocessing_context=how))


def polars_by_url():
    """Say whether Polars, which has file systems of its own, takes the URL."""
    try:
        return int(pl.read_csv(f"sealed://{base}/t.csv")["n"].sum())
    except OSError as exc:
        return type(exc).__name__


def main():
    """Read everything, then write and read back."""
    parts = files.glob(f"{base}/parts/*.parquet")
    lazy = pl.scan_pyarrow_dataset(ds.dataset(f"{base}/parts", filesystem=files))
    table = dd.read_parquet(f"sealed://{base}/parts")
    lines = bag.read_text(f"sealed://{base}/t.csv", blocksize=100_000)
    found = {
        "polars, file": pl.read_csv(files.open(f"{base}/t.csv"))["n"].sum(),
        "polars, files": pl.scan_parquet([files.open(p) for p in parts]).select(pl.col("n").sum()).collect().item(),
        "polars, data set": lazy.select(pl.col("n").sum()).collect().item(),
        "polars, url": polars_by_url(),
        "dask, parquet": int(table.n.sum().compute()),
        "dask, parquet, processes": int(table.n.sum().compute(scheduler="processes", num_workers=2)),
        "dask, csv in blocks": int(dd.read_csv(f"sealed::file://{base}/t.csv", blocksize=100_000).n.sum().compute()),
        "dask, lines": lines.count().compute(scheduler="threads"),
        "torch, files, fork": loaded(Parts(), None, "fork"),
        "torch, files, spawn": loaded(Parts(), None, "spawn"),
        "torch, lines, fork": loaded(Lines(), 500, "fork"),
    }
    with files.open(f"{out}/polars.parquet", "wb") as file:
        pl.LazyFrame({"n": range(100)}).sink_parquet(file)
    with files.open(f"{out}/polars.csv", "wb") as file:
        pl.DataFrame({"n": range(100)}).write_csv(file)
    table.to_parquet(f"sealed://{out}/dask")
    table.to_csv(f"sealed://{out}/csv/*.csv", index=False)
    again = dd.read_parquet(f"sealed://{out}/dask")
    found["dask, written"] = [int(again.n.sum().compute()), len(files.ls(f"{out}/csv"))]
    state = torch.nn.Linear(10, 10).state_dict()
    with files.open(f"{out}/net.pt", "wb") as file:
        torch.save(state, file)
    with files.open(f"{out}/net.pt") as file:
        again = torch.load(file, weights_only=True)
    dcp.save(state, storage_writer=by_url.FsspecWriter(f"sealed://{out}/checkpoint"))
    third = torch.nn.Linear(10, 10).state_dict()
    dcp.load(third, storage_reader=by_url.FsspecReader(f"sealed://{out}/checkpoint"))
    found["torch, written"] = [bool((other["weight"] == state["weight"]).all()) for other in (again, third)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
