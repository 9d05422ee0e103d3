"""`strongroom run`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from strongroom.cli.common import epilog
from strongroom.cli.job import job_options, submit
from strongroom.errors import InputError
from strongroom.jobs.spec import JobSpec

__all__ = ["command"]


@click.command(
    "run",
    epilog=epilog(
        "strongroom run -- python -c 'print(6 * 7)'",
        "strongroom run --volume in=sealed/in --volume out=sealed/out:sales:rw -- python app.py --n 3",
    ),
)
@job_options
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(program: tuple[str, ...], **options: Any) -> int:
    """Run a Python program in an enclave, as it is: everything after `--` is its command line."""
    return submit(_spec(program), options)


def _spec(words: tuple[str, ...]) -> JobSpec:
    interpreter, *rest = words
    if not re.fullmatch(r"(.*/)?python(3(\.\d+)?)?", interpreter):
        raise InputError(f"cannot run {interpreter!r}: expected python", hint="strongroom run -- python app.py")
    if not rest:
        raise InputError("python needs a program", hint="strongroom run -- python app.py")
    if rest[0] in ("-c", "-m"):
        if len(rest) < 2:
            raise InputError(f"python {rest[0]} needs an argument")
        return JobSpec(name="inline", workload="python", inline=(rest[0], rest[1]), arguments=tuple(rest[2:]))
    if rest[0].startswith("-"):
        raise InputError(f"python option {rest[0]} is not supported here", hint="-c, -m or a program")
    return JobSpec(name=Path(rest[0]).stem, workload="python", program=Path(rest[0]), arguments=tuple(rest[1:]))
