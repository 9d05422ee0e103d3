"""Why two builds differ: the job, the enclave's settings and every measured file, as one document per build."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import cast

from strongroom._encoding import check_bounds, parse_json
from strongroom.errors import InputError

__all__ = ["read_build"]

_MAX_BYTES, _MAX_DEPTH = 64 << 20, 32
_LISTS = ("job.manifest.template", "measured.json")
"""What a kind for hardware measures, file by file; the simulated kind keeps one digest per place."""


def read_build(folder: Path, *, before: bool = False) -> dict[str, object]:
    """Return all that decides the measurement of the bundle in `folder`.

    Args:
        folder: The bundle.
        before: Read its build before the last one.

    Raises:
        InputError: No bundle, no build before, or one that nobody can walk and print: it may be somebody else's.
    """
    found = _read(folder, before)
    check_bounds(found, str(folder), max_depth=_MAX_DEPTH)
    return found


def _read(folder: Path, before: bool) -> dict[str, object]:
    try:
        found: dict[str, object] = {
            "job": parse_json((folder / "job.json").read_bytes(), "job.json", max_bytes=_MAX_BYTES)
        }
        listed = next((name for name in _LISTS if (folder / name).exists()), "")
        if before and (not listed or not (folder / f"{listed}.before").exists()):
            raise InputError(f"{folder} was built once: name another bundle to compare it with")
        if not listed:
            return found | {"places": _places(folder / "reference.json")}
        raw = (folder / (f"{listed}.before" if before else listed)).read_bytes()
    except OSError as exc:
        raise InputError(
            f"{folder} is not a bundle: {exc.filename} is not readable", hint="strongroom job build"
        ) from exc
    try:
        measured = _manifest(raw.decode()) if listed.endswith("template") else json.loads(raw)
        return found | cast(dict[str, object], measured)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as exc:
        raise InputError(f"{folder}/{listed} is not what a build writes", hint="strongroom job build") from exc


def _places(reference: Path) -> object:
    if not reference.exists():
        raise InputError(f"{reference.parent} was never measured", hint="strongroom job build")
    value = parse_json(reference.read_bytes(), reference.name, max_bytes=_MAX_BYTES)
    return value.get("places") if isinstance(value, dict) else None


def _manifest(text: str) -> dict[str, object]:
    manifest = tomllib.loads(text)
    trusted = manifest["sgx"].pop("trusted_files")
    files = {item["uri"]: item["sha256"] for item in trusted if isinstance(item, dict)}
    mounts = {item["path"]: item for item in manifest["fs"].pop("mounts")}
    return {"files": files, "mounts": mounts, "manifest": manifest}
