"""`strongroom env`."""

from __future__ import annotations

from pathlib import Path

import click

from strongroom._unix import read_text, write_whole
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, settings
from strongroom.errors import InputError
from strongroom.jobs.environments import Environment
from strongroom.jobs.environments import build as build_environment
from strongroom.jobs.environments import inspect as inspect_environment
from strongroom.jobs.environments import lock as lock_requirements

__all__ = ["command"]


@click.group("env")
def command() -> None:
    """Environments that jobs bring along (`--venv`): packages with a digest that anybody can build again."""


@command.command(
    "lock",
    epilog=epilog("strongroom env lock pandas 'scikit-learn>=1.5'", "strongroom env lock -r wanted.txt -o locked.txt"),
)
@click.argument("requirements", nargs=-1)
@click.option("-r", "--requirement", "files", multiple=True, type=PATH, help="A file of them.")
@click.option("-o", "--out", "target", type=PATH, help="Write there, not to standard output.")
def lock(requirements: tuple[str, ...], files: tuple[Path, ...], target: Path | None) -> None:
    """Print REQUIREMENTS with everything they need, each in one version, with its hash."""
    if not requirements and not files:
        raise InputError("nothing to lock", hint="strongroom env lock pandas")
    if target is not None and target.exists():
        raise InputError(f"{target} exists", hint="remove it, or name another file")
    output.say("asking pip for versions and hashes ...")
    text = lock_requirements([*requirements, *(line for file in files for line in _wanted(file))])
    if target is None:
        output.lines(text.splitlines())
        return
    write_whole(target, text)
    output.say(f"{len(text.splitlines())} packages in {target}; next: strongroom env build {target} FOLDER")


def _wanted(file: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in read_text(file, "name a requirements file").splitlines())
    return [line for line in lines if line]


@command.command(
    "build", epilog=epilog("strongroom env build locked.txt env", "strongroom run --venv env -- python app.py")
)
@click.argument("requirements", type=PATH)
@click.argument("folder", type=PATH)
@json_option
def build(requirements: Path, folder: Path, as_json: bool) -> None:
    """Install what REQUIREMENTS lists, with hashes, into the new FOLDER; the same file gives the same digest."""
    output.say("installing and compiling (once) ...")
    _show(build_environment(requirements, folder), as_json)


@command.command("show", epilog=epilog("strongroom env show env", "strongroom env show env --json"))
@click.argument("folder", type=PATH)
@json_option
def show(folder: Path, as_json: bool) -> None:
    """Say what the built environment FOLDER holds, and its digest."""
    _show(inspect_environment(folder, settings().cache / "digests"), as_json)


def _show(found: Environment, as_json: bool) -> None:
    value = {
        "digest": found.digest,
        "folder": str(found.folder),
        "python": found.python,
        "requirements": found.requirements,
        "packages": dict(found.packages),
    }
    text = output.facts({**value, "packages": len(found.packages)})
    output.data(value, as_json, [*text, "", *output.table(("package", "version"), found.packages)])
