"""Saving a model with its record, and loading it back."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from strongroom.errors import InputError
from strongroom.models.kinds import KINDS, Kind, kind_of
from strongroom.models.on_spark import reading, writing
from strongroom.models.record import RECORD_FILE, ModelRecord
from strongroom.models.straight import save_straight

__all__ = ["load", "save"]

_Folder = str | os.PathLike[str]
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def save(
    model: object,
    folder: _Folder,
    *,
    parameters: Mapping[str, object] | None = None,
    metrics: Mapping[str, object] | None = None,
    kind: str | None = None,
    straight: bool = False,
    unsafe_pickle: bool = False,
) -> ModelRecord:
    """Save `model` and its record into `folder`, which is made if it is not there; return the record.

    Args:
        model: A PyTorch module or state dict, a dictionary of NumPy arrays, a Keras, ONNX, XGBoost, LightGBM,
            scikit-learn or Spark ML model.
        folder: Of this model alone.
        parameters: What it was made with: JSON values.
        metrics: How good it is: JSON values.
        kind: Of `KINDS`; by default the one that takes the model.
        straight: In an enclave, seal it as it is saved, with no plain copy in enclave memory: for large models of
            formats that are written from the first byte to the last (safetensors, ONNX). Until the job ends a link
            stands for the file, which an archive would not hold.
        unsafe_pickle: Allow kind "pickle", which runs code when it is loaded.

    Raises:
        InputError: No kind takes it, its library is not installed, or a value is not JSON.
    """
    chosen = _kind(kind, unsafe_pickle=unsafe_pickle) if kind else kind_of(model)
    record = ModelRecord(
        kind=chosen.name,
        file=chosen.file,
        parameters=parameters or {},
        metrics=metrics or {},
        made_with=_versions(chosen),
    )
    raw = record.encode()
    name, suffix = os.path.splitext(chosen.file)
    with writing(Path(folder)) as target:
        beside = target / f".{name}.{secrets.token_hex(6)}{suffix}"  # some libraries look at the suffix
        try:
            if chosen.in_place:
                chosen.save(model, Path(folder) / chosen.file)
            elif not (straight and save_straight(lambda path: chosen.save(model, path), target / chosen.file)):
                chosen.save(model, beside)
                beside.replace(target / chosen.file)
            beside.write_bytes(raw)
            beside.replace(target / RECORD_FILE)
        finally:
            beside.unlink(missing_ok=True)
    return record


def load(folder: _Folder, *, into: Any = None, trusted: Sequence[str] = (), unsafe_pickle: bool = False) -> Any:
    """Return the model in `folder`.

    Args:
        folder: As `save` left it.
        into: A module or estimator that takes the weights, and is returned.
        trusted: Types that a scikit-learn, Keras or Spark ML model may be or hold besides those known to be safe.
        unsafe_pickle: Load kind "pickle", running whatever code its maker put in.

    Raises:
        InputError: There is no model, or one that is refused; says why.
    """
    record = read_record(folder)
    kind = _kind(record.kind, unsafe_pickle=unsafe_pickle)
    if record.file != kind.file:  # libraries choose by the suffix what they do, Keras whether it runs code
        raise InputError(f"{RECORD_FILE}: a {kind.name} model lies in {kind.file}, got {record.file!r:.60}")
    if trusted and not kind.names_types:
        raise InputError(f"a {kind.name} model holds no types to be trusted", hint="take `trusted` out")
    if into is not None and not kind.fills:
        raise InputError(f"a {kind.name} model is not loaded into another", hint="take `into` out")
    if kind.in_place:
        return kind.load(Path(folder) / kind.file, into=into, trusted=trusted)
    with reading(Path(folder) / kind.file) as path:
        return kind.load(path, into=into, trusted=trusted)


def read_record(folder: _Folder) -> ModelRecord:
    """Return the record of the model in `folder`."""
    try:
        with reading(Path(folder) / RECORD_FILE) as path:
            return ModelRecord.decode(path.read_bytes())
    except OSError as exc:
        raise InputError(
            f"{os.fspath(folder)} holds no model: {RECORD_FILE}: {exc.strerror}", hint="save it with strongroom.models"
        ) from exc


def _kind(name: str, *, unsafe_pickle: bool) -> Kind:
    if name not in KINDS:
        raise InputError(f"there is no kind of model called {name!r:.40}", hint=f"known: {', '.join(KINDS)}")
    if name == "pickle" and not unsafe_pickle:
        raise InputError(
            "a pickle runs code when it is loaded: refused",
            hint="save it in a safe format, or say unsafe_pickle=True if you trust its maker with all that you can do",
        )
    return KINDS[name]


def _versions(kind: Kind) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in kind.packages:
        try:
            found[package] = version(_DISTRIBUTIONS.get(package, package))
        except PackageNotFoundError:
            continue
    return found
