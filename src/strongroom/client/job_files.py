"""Job files: TOML that says what a job is; paths in one are relative to it."""

from __future__ import annotations

from collections.abc import Mapping
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
    job, tables, keys = load_spec(path)
    base = path.resolve().parent
    try:
        spec = JobSpec(
            name=str(job.get("name", path.stem)),
            workload=str(job["workload"]),
            program=base / str(job["program"]),
            arguments=tuple(str(a) for a in cast(list[object], job.get("arguments", []))),
            environment={str(k): str(v) for k, v in cast(Mapping[str, object], job.get("environment", {})).items()},
            engine={str(k): _setting(v) for k, v in cast(Mapping[str, object], job.get("engine", {})).items()},
            main_class=str(job.get("main_class", "")),
            files=tuple(base / str(f) for f in cast(list[object], job.get("files", []))),
            sandbox=Sandbox(**cast(dict[str, bool], job["sandbox"])),
            sgx=Sgx(**cast(dict[str, bool], job["sgx"])),
            cvm=_cvm_table(base, cast(dict[str, Any], job["cvm"])),
            limits=Limits(**cast(dict[str, int], job["limits"])),
            keys=tuple(_column_key(str(table["name"]), table.get("mode", "ro")) for table in keys),
            venv=None if (venv := parse_venv(cast(str | None, job.get("venv")))) is None else base / venv,
            publish_on_failure=bool(job.get("publish_on_failure", False)),
            checkpoint_s=int(cast(int, job.get("checkpoint_s", 0))),
            enclave=str(job.get("enclave", "sim")),
            target=str(job.get("target", "local")),
        )
        volumes = tuple(volume_in_file(base, table) for table in tables)
    except KeyError as exc:
        raise InputError(f"{path}: {exc.args[0]} is missing") from exc
    except (TypeError, AttributeError, ValueError) as exc:
        raise InputError(f"{path}: a field has the wrong type: {exc}") from exc
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
    paths = {n: str(base / str(table[n])) for n in ("kernel", "modules", "firmware") if table.get(n)}
    return Cvm(**{**table, **paths})


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
