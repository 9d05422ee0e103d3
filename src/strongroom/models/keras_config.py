"""Classes and functions that a saved Keras model names in the JSON that describes its layers.

Keras imports the module that an object names, any before 3.9. What is not its own, or holds code, is told.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Iterator
from typing import Any

from strongroom.errors import InputError

__all__ = ["LAMBDA", "MAX_CONFIG", "foreign_objects"]

MAX_CONFIG = 64 << 20
LAMBDA = ("lambda", "which is byte code")

_ROOMS = (
    "activations|constraints|dtype_policies|initializers|layers|losses|metrics|ops|optimizers(.schedules)?|"
    "quantizers|random|regularizers"
)
_OWN = re.compile(
    rf"keras(\.({_ROOMS}))?\.\w+|keras(\.src)?\.models(\.\w+)*\.[A-Z]\w*|"  # no load_model
    rf"keras\.src\.(backend\.\w+\.optimizers|{_ROOMS})(\.\w+)*\.[A-Z]\w*",
    re.ASCII,
)
_SPEC = "__typespec__"
_CODE = ("TorchModuleWrapper", "TFSMLayer")  # a pickle; a graph from a folder


def foreign_objects(raw: bytes) -> Iterator[tuple[str, str]]:
    """Yield each object of the description `raw` that is or names code, and why.

    Raises:
        InputError: It cannot be told.
    """
    try:
        todo: list[Any] = [json.loads(raw)]
    except (ValueError, RecursionError) as exc:
        raise InputError("a description that cannot be looked into") from exc
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from _in_object(value)
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _in_object(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name, module = value.get("class_name", value.get("spec_name")), value.get("module")
    registered = value.get("registered_name")
    if name == "__lambda__" or any(one == "lambda" for key, one in value.items() if key.endswith("_type")):
        yield LAMBDA
    elif name in _CODE or value.get("spec_name") in _CODE:
        yield str(name), "which loads code"
    elif module is not None and registered not in (None, name):  # what the name does not find is looked for by it
        yield f"{registered}", "which is registered under another name"
    elif name is not None and module is not None:  # without a module it has to be the loader's own
        what = value.get("config") if name == "function" else value.get("spec_name") if name == _SPEC else name
        by_name = (name, module) == ("function", "builtins") and what not in dir(builtins)  # looked for in Keras alone
        named = ".".join(one if isinstance(one, str) else f"<{type(one).__name__}>" for one in (module, what))
        if not by_name and not _OWN.fullmatch(named):
            yield named, "which is not one of Keras's own"
