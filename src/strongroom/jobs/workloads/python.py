"""Workload `python`: a Python program with the packages of the environment it is submitted from.

The program needs no change and sees volumes as plain folders, /work/<name>: those it only reads as views that are
opened as it reads, those it writes to opened into enclave memory before it starts and sealed after it ended well.
"""

from __future__ import annotations

from strongroom.errors import InputError
from strongroom.jobs.plan import Command
from strongroom.jobs.spec import JobSpec

__all__ = [
    "FIXED_ENVIRONMENT",
    "JOB_INTERFACE",
    "LIBRARY",
    "LOADERS",
    "RUNTIMES",
    "PythonWorkload",
    "check_environment",
]

FIXED_ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "OMP_WAIT_POLICY": "PASSIVE",  # else threads spin at barriers: beside other work, 64 s for an epoch of 4
    "PATH": "/opt/env/bin:/opt/python/bin:/usr/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/tmp",  # enclave memory
    "TZ": "UTC",
}

JOB_INTERFACE = {"GLOO_SOCKET_IFNAME": "job0", "TP_SOCKET_IFNAME": "job0"}
"""For a job on several machines: where torch's processes meet. By themselves they would meet at the host's name."""

_LIBOS = {"OMP_NUM_THREADS": "4"}
"""For a LibOS, whose threads are fixed when it is built: else there are as many as the machine has cores."""

LIBRARY = {"PYTHONPATH": "/opt/strongroom/python"}
RUNTIMES = ("base", "python", "guest", "env", "library")

LOADERS = {"LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"}
"""Variables that make a program load what was not measured."""


class PythonWorkload:
    """Runs `program` with the enclave's Python."""

    def command(self, spec: JobSpec) -> Command:
        """Return the interpreter's command line."""
        if spec.workers:
            raise InputError("workload python runs on one machine: take target cluster out")
        if spec.engine:
            raise InputError(f"workload python has no engine settings, got {sorted(spec.engine)}")
        check_environment(spec)
        return Command(
            argv=("/opt/env/bin/python3", *(spec.inline or (f"/app/{_program(spec)}",))),
            environment={**FIXED_ENVIRONMENT, **LIBRARY, **(_LIBOS if spec.libos else {}), **spec.environment},
            runtimes=RUNTIMES,
            staged=True,
        )


def check_environment(spec: JobSpec) -> None:
    """Refuse variables that would load code past what is measured."""
    refused = sorted(set(spec.environment) & LOADERS)
    if refused:
        raise InputError(
            f"environment variable {refused[0]} would load unmeasured code", hint="put the files beside the program"
        )


def _program(spec: JobSpec) -> str:
    if spec.program is None:
        raise InputError("the job names no program", hint='`program = "app.py"` in [job]')
    return spec.program.name
