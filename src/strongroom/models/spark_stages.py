"""Classes that a saved Spark ML model names: Spark loads each of them, and so runs any module that is installed.

Each stage, evaluator and nested model describes itself in lines of JSON in a folder `metadata` of its own. What Spark
would not read there is passed over; what it might read otherwise than this module does is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

from strongroom._encoding import parse_json
from strongroom.errors import InputError

__all__ = ["foreign_stages", "is_metadata"]

_OWN = re.compile(
    r"(org\.apache\.spark|pyspark)\.ml\.([A-Z]\w*|(classification|clustering|evaluation|feature|fpm|pipeline|"
    r"recommendation|regression|tuning)\.[A-Z]\w*)|"  # and no other: pyspark.ml.connect loads pickles and any class
    r"org\.apache\.spark\.mllib\.clustering\.(BisectingKMeansModel|DistributedLDAModel)",  # inside of those of ml
    re.ASCII,
)
_PLAIN = re.compile(r'"?\w[\w .-]*"?')
_PACKED = (".bz2", ".deflate", ".gz", ".lz4", ".passthrough", ".snappy", ".zst")
_MAX_BYTES = 64 << 20
_CHUNK = 1 << 16


def is_metadata(name: str) -> bool:
    """Return whether Spark would read the file called `name`, with its folders, for what a stage is."""
    folders = name.lower().split("/")
    return "metadata" in folders and not folders[-1].startswith(".")


def foreign_stages(file: IO[bytes], name: str) -> list[tuple[str, str]]:
    """Return each class in the metadata `file`, called `name`, that runs code, and why.

    Raises:
        InputError: It cannot be told; says why.
    """
    if name.lower().endswith(_PACKED):
        raise InputError("Spark metadata that is packed, so that it cannot be looked into")
    raw = bytearray()
    while part := file.read(_CHUNK):
        raw += part
        if len(raw) > _MAX_BYTES:
            raise InputError("Spark metadata that is too long to be looked into")
    return [found for line in raw.splitlines() for found in _in_line(bytes(line))]  # bytes end lines where Spark does


def _in_line(line: bytes) -> Iterator[tuple[str, str]]:
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    if line[:1] not in (b"{", b"[") or len(line) == 1:  # to Spark no JSON either
        return
    try:
        value = parse_json(line.decode(), "it", max_bytes=_MAX_BYTES)
    except (InputError, UnicodeError) as exc:
        raise InputError("Spark metadata that cannot be looked into") from exc
    if not isinstance(value, dict):
        raise InputError("Spark metadata that cannot be looked into: it is no object")
    _stay_inside(value)
    for name in (value[key] for key in ("class", "pythonClass") if key in value):
        if not isinstance(name, str) or not _OWN.fullmatch(name):
            yield name if isinstance(name, str) else type(name).__name__, "which is not one of Spark's own"
        elif name.endswith(".SQLTransformer"):
            yield name, "which runs any SQL"


def _stay_inside(value: object) -> None:
    # Spark makes paths of the names of stages and of models in a grid of parameters, and takes them for patterns.
    todo = [value]
    while todo:
        one: Any = todo.pop()
        if isinstance(one, dict):
            names = one.get("stageUids", [])
            names = [*names] if isinstance(names, list) else [names]
            if one.get("isJson", True) not in (True, "true"):
                names.append(one.get("value"))
            for name in names:
                if not isinstance(name, str) or not _PLAIN.fullmatch(name):
                    raise InputError("Spark metadata that leads out of its folder")
            todo += one.values()
        elif isinstance(one, list):
            todo += one
