"""Why two builds differ: the job, the enclave's settings and every measured file, as one document per build.

What a build cannot know is `None`: a measurement that the tools of a LibOS or of a maker have not computed yet, and
what they measure beside the bundle. It is compared where both builds have it, and never taken for equal.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import cast

from strongroom._encoding import check_bounds, parse_json
from strongroom._unix import write_whole
from strongroom.attest.sigstruct import Sigstruct
from strongroom.errors import InputError, StrongroomError

__all__ = ["keep_build", "known_to_both", "read_build"]

_MAX_BYTES = 64 << 20
_LISTS = ("job.manifest.template", "measured.json", "reference.json")
"""What a kind measures, file by file; the simulated kind, which has the last alone, keeps one digest per place."""
_BY_TOOLS = ("measurement", "runtime")


def keep_build(path: Path, text: str) -> None:
    """Let `path` hold `text`, and `path`.before what it held, if that was something else."""
    if path.exists():
        if path.read_bytes() == text.encode():
            return
        path.replace(path.with_name(f"{path.name}.before"))
    write_whole(path, text)


def read_build(folder: Path, *, before: bool = False) -> dict[str, object]:
    """Return all that decides the measurement of the bundle in `folder`, and `measurement` itself.

    Args:
        folder: The bundle.
        before: Read its build before the last one.

    Raises:
        InputError: No bundle, no build before, or one that nobody can walk and print: it may be somebody else's.
    """
    found = _read(folder, before)
    check_bounds(found, str(folder))
    return found


def _read(folder: Path, before: bool) -> dict[str, object]:
    listed = next((name for name in _LISTS if (folder / name).exists()), "")
    end = ".before" if before else ""
    try:
        job = parse_json(_bytes(folder / "job.json"), "job.json", max_bytes=_MAX_BYTES)
        if not listed:
            raise InputError(f"{folder} was never measured", hint="strongroom job build")
        if before and not (folder / (listed + end)).exists():
            raise InputError(f"{folder} was built once, or every time the same: name another bundle to compare it with")
        raw = _bytes(folder / (listed + end))
    except OSError as exc:
        raise InputError(
            f"{folder} is not a bundle: {exc.filename} is not readable", hint="strongroom job build"
        ) from exc
    try:
        if listed == "job.manifest.template":
            return {"job": job, **_gramine(folder, raw.decode(), end)}
        measured = json.loads(raw)
        if listed == "reference.json":
            measured = {name: measured[name] for name in ("places", "measurement")}
        return {"job": job, "measurement": None, **measured}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError, StrongroomError) as exc:
        raise InputError(f"{folder}/{listed} is not what a build writes", hint="strongroom job build") from exc


def _bytes(path: Path) -> bytes:
    # Somebody else's bundle: no link out of it, nothing to wait for, nothing without end.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or size > _MAX_BYTES:
            raise InputError(f"{path} is no file of at most {_MAX_BYTES} bytes", hint="strongroom job build")
        return file.read(size)


def known_to_both(old: dict[str, object], new: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Return two builds without what is known of one alone; they have a `measurement` if both were measured."""
    unknown = {name for name in _BY_TOOLS if None in (old.get(name), new.get(name))}
    first, second = ({name: value for name, value in one.items() if name not in unknown} for one in (old, new))
    return first, second


def _gramine(folder: Path, template: str, end: str) -> dict[str, object]:
    # Gramine's tools fill in their own runtime (`job.manifest`), measure it all and sign (`job.sig`).
    found = _manifest(template)
    expanded, signature = folder / f"job.manifest{end}", folder / f"job.sig{end}"
    runtime: dict[str, str] | None = None
    if expanded.exists():
        files = cast(dict[str, str], _manifest(_bytes(expanded).decode())["files"])
        runtime = {uri: digest for uri, digest in files.items() if uri not in cast(dict[str, str], found["files"])}
    measurement = Sigstruct.from_bytes(_bytes(signature)).measurement.hex() if signature.exists() else None
    return {**found, "runtime": runtime, "measurement": measurement}


def _manifest(text: str) -> dict[str, object]:
    manifest = tomllib.loads(text)
    trusted = manifest["sgx"].pop("trusted_files")
    files = {item["uri"]: item["sha256"] for item in trusted if isinstance(item, dict)}
    mounts = {item["path"]: item for item in manifest["fs"].pop("mounts")}
    return {"files": files, "mounts": mounts, "manifest": manifest}
