"""`strongroom spark-submit`: spark-submit's own flags, plus ours before the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from strongroom._unix import read_text
from strongroom.cli.common import epilog
from strongroom.cli.job import job_options, submit
from strongroom.client.job_files import parse_column_key
from strongroom.errors import InputError
from strongroom.jobs.spec import JobSpec

__all__ = ["command"]

_FILES = {"--py-files": "spark.submit.pyFiles", "--jars": "spark.jars", "--files": "spark.files"}
_SETTINGS = {
    "--master": "spark.master",
    "--name": "spark.app.name",
    "--driver-memory": "spark.driver.memory",
    "--driver-java-options": "spark.driver.extraJavaOptions",
    "--driver-cores": "spark.driver.cores",
    "--executor-memory": "spark.executor.memory",
    "--executor-cores": "spark.executor.cores",
    "--total-executor-cores": "spark.cores.max",
    "--num-executors": "spark.executor.instances",
    "--packages": "spark.jars.packages",
    "--repositories": "spark.jars.repositories",
    "--exclude-packages": "spark.jars.excludes",
    "--driver-class-path": "spark.driver.extraClassPath",
    "--deploy-mode": "spark.submit.deployMode",
    "--queue": "spark.yarn.queue",
}
_SPARKS_ALONE = ("--verbose", "-v", "--supervise")


class _SparkSubmit(click.Command):
    """Leaves Spark's flags to Spark's rules: everything before the program is a flag, everything after is its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        alone = {name for option in options if option.is_flag for name in option.opts}
        valued = {name for option in options for name in option.opts} - alone
        ours, settings, rest = _split(args, alone, valued)
        ctx.ensure_object(dict)["settings"] = settings
        return super().parse_args(ctx, [*ours, "--", *rest])


@click.command(
    "spark-submit",
    cls=_SparkSubmit,
    epilog=epilog(
        "strongroom spark-submit --master 'local[2]' report.py sealed/orders",
        "strongroom spark-submit --volume out=sealed/out:sales:rw report.py sealed/orders sealed/out/report",
        "strongroom spark-submit --column-key people-footer --column-key people-salary:rw raise.py sealed/people",
        "strongroom spark-submit --class org.apache.spark.examples.SparkPi app.jar 10",
    ),
)
@job_options
@click.option(
    "--column-key",
    "column_keys",
    multiple=True,
    metavar="NAME[:ro|rw]",
    help="A named key for Parquet columns: ro to read them, rw to write them as well.",
)
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(ctx: click.Context, /, program: tuple[str, ...], **options: Any) -> int:
    """Run a Spark program in an enclave, as it is, with the flags of spark-submit.

    Arguments that name sealed data sets work as they are; a new sealed output needs --volume NAME=PATH:KEY:rw, and is
    then written under its own path or as /work/NAME.
    """
    if not program:
        raise InputError("there is no program", hint="strongroom spark-submit [flags] app.py [arguments]")
    settings: dict[str, str] = ctx.obj["settings"]
    main_class = settings.pop("--class", "")
    files = []
    for setting in _FILES.values():
        listed = [Path(p) for p in settings.get(setting, "").split(",") if p]
        files += listed
        if listed:
            settings[setting] = ",".join(f"/app/{p.name}" for p in listed)
    spec = JobSpec(
        name=Path(program[0]).stem,
        workload="spark",
        program=Path(program[0]),
        arguments=program[1:],
        engine=settings,
        main_class=main_class,
        files=tuple(files),
        keys=tuple(parse_column_key(k) for k in options["column_keys"]),
    )
    return submit(spec, options)


def _split(args: list[str], alone: set[str], valued: set[str]) -> tuple[list[str], dict[str, str], list[str]]:
    # Into our options with their values, Spark's settings, and program with arguments.
    ours: list[str] = []
    settings: dict[str, str] = {}
    at = 0
    while at < len(args) and args[at].startswith("-"):
        word = args[at]
        flag, equals, inline = word.partition("=")
        if word in alone or word in _SPARKS_ALONE:
            ours += [word] if word in alone else []
            at += 1
            continue
        value = inline if equals else args[at + 1] if at + 1 < len(args) else None
        if value is None:
            raise InputError(f"{flag} needs a value")
        at += 1 if equals else 2
        if flag in valued:
            ours += [flag, value]
        else:
            _set(flag, value, settings)
    return ours, settings, args[at:]


def _set(flag: str, value: str, settings: dict[str, str]) -> None:
    if flag in ("--conf", "-c"):
        name, equals, setting = value.partition("=")
        if not equals:
            raise InputError(f"--conf {value!r}: expected NAME=VALUE")
        settings[name] = setting
    elif flag == "--properties-file":
        settings.update({k: v for k, v in _properties(Path(value)).items() if k not in settings})
    elif flag in _FILES:
        settings[_FILES[flag]] = value
    elif flag in _SETTINGS:
        settings[_SETTINGS[flag]] = value
    elif flag == "--class":
        settings["--class"] = value
    else:
        hint = "an enclave's memory is --driver-memory and --scratch-mb" if flag.startswith("--sgx-") else ""
        raise InputError(f"spark-submit flag {flag} is not supported", hint=hint)


def _properties(path: Path) -> dict[str, str]:
    found = {}
    for line in read_text(path, "name a file of Spark's properties").splitlines():
        setting = re.fullmatch(r"([^\s=:#!][^\s=:]*)\s*[=:\s]\s*(.*)", line.strip())
        if setting:
            found[setting[1]] = setting[2]
    return found
