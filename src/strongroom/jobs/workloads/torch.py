"""Workload `torchrun`: a PyTorch training script on several machines, or in several processes of one, unmodified.

`torch.distributed.run` meets over the job's own network, whose packets leave an enclave in mutual TLS alone; so gloo,
which has no TLS in PyTorch's wheels, is protected like everything else that the script opens. Every machine reads the
job's read-only volumes as views; of what is written, the first machine's is sealed (rank 0 saves, as scripts do).
"""

from __future__ import annotations

import re

from strongroom.errors import InputError
from strongroom.jobs.plan import Command, Worker
from strongroom.jobs.spec import JobSpec
from strongroom.jobs.workloads.python import FIXED_ENVIRONMENT, JOB_INTERFACE, LIBRARY, RUNTIMES, check_environment

__all__ = ["TorchWorkload"]

_FIRST, _PORT = "10.77.0.1", 29400  # guest/tunnel.py; torchrun's own
_LIMITS = {"nnodes": 200, "nproc-per-node": 256}
_JOIN_S = 600


class TorchWorkload:
    """Runs `program` under torchrun on `nnodes` enclaves with `nproc-per-node` processes each."""

    def command(self, spec: JobSpec) -> Command:
        """Return torchrun's command line for the first machine, and for the others."""
        if spec.program is None:
            raise InputError("the job names no program", hint="strongroom torchrun --nnodes 2 train.py")
        counts = {name: _number(name, spec.engine.get(name, "1"), most) for name, most in _LIMITS.items()}
        unknown = sorted(set(spec.engine) - set(_LIMITS))
        if unknown:
            raise InputError(f"torchrun setting {unknown[0]!r} is not available", hint=f"known: {', '.join(_LIMITS)}")
        check_environment(spec)
        environment = {**FIXED_ENVIRONMENT, **LIBRARY, **spec.environment}
        nodes, size = counts["nnodes"], ("--nproc-per-node", str(counts["nproc-per-node"]))
        program = f"/app/{spec.program.name}"
        base = ("/opt/env/bin/python3", "-P", "-m", "torch.distributed.run")  # -P: no module is taken from /work
        if nodes == 1:
            argv: tuple[str, ...] = (*base, "--standalone", *size, program)
            return Command(argv=argv, environment=environment, runtimes=RUNTIMES, staged=True)
        environment |= JOB_INTERFACE

        def node(address: str, *, first: bool) -> tuple[str, ...]:
            meet = ("--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", f"{_FIRST}:{_PORT}")
            conf = f"is_host={'1' if first else '0'},join_timeout={_JOIN_S}"
            return (*base, "--nnodes", str(nodes), *size, *meet, "--rdzv-conf", conf, "--local-addr", address, program)

        others = Worker(
            count=nodes - 1,
            argv=(*node("{job.address}", first=False), *spec.arguments),
            environment=environment,
            port=_PORT,
        )
        return Command(
            argv=node(_FIRST, first=True), environment=environment, runtimes=RUNTIMES, staged=True, worker=others
        )


def _number(name: str, text: str, most: int) -> int:
    if not re.fullmatch(r"[1-9]\d{0,2}", text) or int(text) > most:
        raise InputError(f"--{name} is {text!r}, expected a number from 1 to {most}")
    return int(text)
