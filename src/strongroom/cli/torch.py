"""`strongroom torchrun`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from strongroom.cli.common import PATH, epilog
from strongroom.cli.job import job_options, submit
from strongroom.jobs.spec import JobSpec

__all__ = ["command"]


@click.command(
    "torchrun",
    context_settings={"allow_interspersed_args": False},  # what follows the program is its own
    epilog=epilog(
        "strongroom torchrun --nnodes 2 --venv env --volume model=model:vision:rw train.py sealed-mnist model",
        "strongroom torchrun --nnodes 4 --nproc-per-node 2 --cluster --volume data=/data/sealed train.py /work/data",
    ),
)
@click.option("--nnodes", type=int, default=1, show_default=True, help="Enclaves, each with a processor of its own.")
@click.option("--nproc-per-node", type=int, default=1, show_default=True, help="Processes in each.")
@click.option("--cluster", is_flag=True, help="All but the first on this workspace's cluster, instead of this machine.")
@job_options
@click.argument("program", type=PATH)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(program: Path, arguments: tuple[str, ...], **options: Any) -> int:
    """Run a PyTorch training script in several enclaves, as it is; they share one private network over mutual TLS.

    Each enclave sees the job's read-only volumes. Of the others, what the first enclave writes is sealed.
    """
    spec = JobSpec(
        name=program.stem,
        workload="torchrun",
        program=program,
        arguments=arguments,
        engine={"nnodes": str(options["nnodes"]), "nproc-per-node": str(options["nproc_per_node"])},
        target="cluster" if options["cluster"] else "local",
    )
    return submit(spec, options)
