"""Job files: TOML that says what a job is; paths in one are relative to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from strongroom.client.volumes import VolumeRequest, volume_in_file
from strongroom.crypto.header import check_key_name
from strongroom.errors import InputError
from strongroom.jobs.spec import Cvm, JobKey, JobSpec, Limits, Sandbox, Sgx, load_spec

__all__ = ["parse_column_key", "parse_venv", "read_job_file"]


def read_job_file(path: Path) -> tuple[JobSpec, tuple[VolumeRequest, ...]]:
    """Return the job in a TOML file, its volumes still to be resolved; paths are relative to the file.

    Raises:
        InputError: See `jobs.spec.load_spec`.
    """
    found, tables, keys = load_spec(path)
    job, base = cast(dict[str, Any], found), path.resolve().parent
    try:
        spec = JobSpec(
            name=job.get("name", path.stem),
            workload=job["workload"],
            program=base / job["program"],
            arguments=tuple(job.get("arguments", ())),
            environment={name: str(value) for name, value in job.get("environment", {}).items()},
            engine={name: _setting(value) for name, value in job.get("engine", {}).items()},
            main_class=job.get("main_class", ""),
            files=tuple(base / file for file in job.get("files", ())),
            sandbox=Sandbox(**job["sandbox"]),
            sgx=Sgx(**job["sgx"]),
            cvm=_cvm_table(base, job["cvm"]),
            limits=Limits(**job["limits"]),
            keys=tuple(_column_key(str(table["name"]), table.get("mode", "ro")) for table in keys),
            venv=None if (venv := parse_venv(job.get("venv"))) is None else base / venv,
            publish_on_failure=job.get("publish_on_failure", False),
            checkpoint_s=job.get("checkpoint_s", 0),
            enclave=job.get("enclave", "sim"),
            target=job.get("target", "local"),
        )
        volumes = tuple(volume_in_file(base, table) for table in tables)
    except KeyError as exc:
        raise InputError(f"{path}: {exc.args[0]} is missing") from exc
    return spec, volumes


def parse_column_key(text: str) -> JobKey:
    """Return the column key in `NAME[:ro|rw]`.

    Raises:
        InputError: Another form.
    """
    name, colon, mode = text.partition(":")
    return _column_key(name, mode if colon else "ro")


def parse_venv(text: str | None) -> Path | None:
    """Return the folder of an environment; None if none is named.

    Raises:
        InputError: Its name is empty, as that of a variable that is not set: not the current folder.
    """
    if text == "":
        raise InputError("the environment's name is empty", hint="--venv FOLDER")
    return None if text is None else Path(text)


def _column_key(name: str, mode: object) -> JobKey:
    if mode not in ("ro", "rw"):
        raise InputError(
            f"column key {name!r} has mode {mode!r}: expected ro or rw", hint="ro reads, rw writes as well"
        )
    return JobKey(name=check_key_name(name), mode=mode)


def _cvm_table(base: Path, table: dict[str, Any]) -> Cvm:
    files = {n: v for n in ("kernel", "modules", "firmware") if isinstance(v := table.get(n), str) and v}
    return Cvm(**{**table, **{name: str(base / file) for name, file in files.items()}})


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
