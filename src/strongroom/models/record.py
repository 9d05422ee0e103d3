"""`model.json`: what a model is and how it was made, in its maker's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom._encoding import parse_json
from strongroom.errors import InputError

__all__ = ["MAX_RECORD_BYTES", "RECORD_FILE", "ModelRecord"]

RECORD_FILE = "model.json"
MAX_RECORD_BYTES = 1 << 20
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What the program that made a model says of it.

    Attributes:
        kind: Name of its format (`kinds.KINDS`).
        file: The model's file, beside the record.
        parameters: What it was made with: JSON values.
        metrics: How good it is: JSON values.
        made_with: Package -> version.
    """

    kind: str
    file: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, object] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the record as JSON.

        Raises:
            InputError: A parameter or metric is no JSON value.
        """
        value = {
            "format": _FORMAT,
            "kind": self.kind,
            "file": self.file,
            "parameters": dict(self.parameters),
            "metrics": dict(self.metrics),
            "made_with": dict(self.made_with),
        }
        try:
            raw = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as exc:
            raise InputError(
                f"a parameter or metric of the model is no JSON value: {exc}", hint="convert it: float(loss)"
            ) from exc
        if len(raw) > MAX_RECORD_BYTES:
            raise InputError(f"the model's record has {len(raw)} bytes, at most {MAX_RECORD_BYTES} are read back")
        return raw

    @classmethod
    def decode(cls, raw: bytes) -> ModelRecord:
        """Return the record in `raw`.

        Raises:
            InputError: It is none.
        """
        value = parse_json(raw, RECORD_FILE, max_bytes=MAX_RECORD_BYTES)
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise InputError(f"{RECORD_FILE} is not a model's record of format {_FORMAT}")
        kind, file = value.get("kind"), value.get("file")
        tables = {name: value.get(name) for name in ("parameters", "metrics", "made_with")}
        if not isinstance(kind, str) or not isinstance(file, str) or "/" in file or file in ("", ".", ".."):
            raise InputError(f"{RECORD_FILE}: kind and file are texts, and the file lies beside it")
        if not all(isinstance(table, dict) for table in tables.values()):
            raise InputError(f"{RECORD_FILE}: {', '.join(tables)} are tables")
        return cls(kind=kind, file=file, **tables)  # type: ignore[arg-type]
