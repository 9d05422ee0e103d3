"""Which files Occlum takes: `Occlum.json` of 0.30 and 0.31, and `bom.yaml`. Strict where Occlum passes over in silence.

Occlum's own tools leave out a field that they do not know, so that a misspelt one does nothing; here it is refused.

Source: Occlum 0.31, tools/gen_internal_conf, tools/copy_bom, src/libos/src/config.rs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

Check = Callable[[Any, str], list[str]]
_UNITS = {"KB": 10, "MB": 20, "GB": 30, "TB": 40, "B": 0}


def is_(good: Callable[[Any], bool], what: str) -> Check:
    return lambda value, at: [] if good(value) else [f"{at}: expected {what}, got {value!r:.60}"]


def number(most: int) -> Check:
    return is_(lambda v: type(v) is int and 0 <= v <= most, f"a number up to {most}")


def table(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    fields = required | (optional or {})

    def check(value: Any, at: str) -> list[str]:
        if not isinstance(value, dict):
            return [f"{at}: expected a table, got {value!r:.60}"]
        found = [f"{at}.{name}: missing" for name in required.keys() - value.keys()]
        found += [f"{at}.{name}: unknown" for name in value.keys() - fields.keys()]
        return found + [r for name in value.keys() & fields.keys() for r in fields[name](value[name], f"{at}.{name}")]

    return check


def each(check: Check) -> Check:
    def every(value: Any, at: str) -> list[str]:
        if not isinstance(value, list):
            return [f"{at}: expected a list, got {value!r:.60}"]
        return [reason for n, item in enumerate(value) for reason in check(item, f"{at}[{n}]")]

    return every


def matches(pattern: str, what: str) -> Check:
    return is_(lambda v: isinstance(v, str) and re.fullmatch(pattern, v, re.DOTALL) is not None, what)


truth = is_(lambda v: isinstance(v, bool), "true or false")
size = matches(r"\d+ *(KB|MB|GB|TB|B)", "a size with its unit")
half = matches(r"0x[0-9a-f]{1,16}", "64 bits in hex")
text = matches(r"[^\0]+", "a text")
path = matches(r"/|(/[^/\0$]+)+", "a whole path")  # copy_bom expands what begins with $
component = matches(r"[^/\0$]+", "one name")
source = matches(r"[^\0$]+", "a path")
_ID = table({"high": half, "low": half})
_KINDS: dict[str, tuple[set[str], set[str]]] = {  # fields that a kind needs, and may have
    "unionfs": ({"options"}, set()), "sefs": ({"source"}, {"options"}), "hostfs": ({"source"}, set()),
    "ramfs": (set(), set()), "devfs": (set(), set()), "procfs": (set(), set()),
    "ext2": ({"source", "options"}, set()),
}  # fmt: skip


def mount(value: Any, at: str) -> list[str]:
    options = table({}, {"MAC": is_(lambda v: v == "", "nothing: the tool's to fill in"), "layers": each(mount),
                         "temporary": truth, "cache_size": size, "disk_size": size})  # fmt: skip
    kind = is_(lambda v: v in _KINDS, "a file system of Occlum")
    found = table({"type": kind, "target": path}, {"source": text, "options": options})(value, at)
    if not found:
        required, optional = _KINDS[value["type"]]
        rest = value.keys() - {"type", "target"}
        found += [f"{at}: {value['type']} has {sorted(rest)}"] if not required <= rest <= required | optional else []
    return found


_SETTINGS = table({
    "resource_limits": table({
        "kernel_space_heap_size": size, "kernel_space_stack_size": size, "user_space_size": size,
        "max_num_of_threads": number(1 << 16),
    }, {"kernel_space_heap_max_size": size, "user_space_max_size": size, "init_num_of_threads": number(1 << 16)}),
    "process": table(dict.fromkeys(("default_stack_size", "default_heap_size", "default_mmap_size"), size)),
    "entry_points": each(path),
    "env": table({"default": each(matches(r"[^=\0]+=[^\0]*", "NAME=VALUE")), "untrusted": each(text)}),
    "metadata": table({
        "product_id": number(0xFFFF), "version_number": number(0xFFFF), "debuggable": truth, "enable_kss": truth,
        "family_id": _ID, "ext_prod_id": _ID,
    }, {"disable_log": truth}),
    "feature": table({}, {
        "amx": number(2), "pkru": number(2), "io_uring": number(32), "enable_edmm": truth, "enable_posix_shm": truth,
    }),
    "mount": each(mount),
})  # fmt: skip
_FILE = table(
    {"name": component},
    {"hash": matches("[0-9A-F]{64}", "SHA-256 in capitals"), "autodep": truth, "rename": component},
)
_BOM = table({}, {
    "includes": each(matches(r"[^/\0]+\.yaml", "a file beside")), "excludes": each(text),
    "targets": each(table({"target": path}, {
        "mkdirs": each(source), "createlinks": each(table({"src": source, "linkname": source})),
        "copy": each(table({}, {"from": source, "dirs": each(source), "files": each(
            lambda v, at: component(v, at) if isinstance(v, str) else _FILE(v, at)
        )})),
    })),
})  # fmt: skip


def refusals_of_settings(document: str) -> list[str]:
    """Return every reason why an Occlum.json would not build, or not do what it says."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError(f"a field twice among {[name for name, _ in pairs]}")
        return dict(pairs)

    try:
        value = json.loads(document, object_pairs_hook=once)
    except ValueError as exc:
        return [str(exc)]
    found = _SETTINGS(value, "Occlum")
    if found:
        return found
    limits = value["resource_limits"]
    for first, most in (
        ("kernel_space_heap_size", "kernel_space_heap_max_size"),
        ("user_space_size", "user_space_max_size"),
    ):
        if _bytes(limits[first]) > _bytes(limits.get(most, limits[first])) or not _bytes(limits[first]):
            found.append(f"{first}: {limits[first]} of at most {limits.get(most)}")
    if limits.get("init_num_of_threads", 0) > limits["max_num_of_threads"] or not limits["max_num_of_threads"]:
        found.append("max_num_of_threads: too few")
    roots = [m for m in value["mount"] if m["target"] == "/"]
    layers = roots[0]["options"].get("layers", []) if roots and roots[0]["type"] == "unionfs" else []
    images = [
        one for one in layers if one["type"] == "sefs" and one["target"] == "/" and "MAC" in one.get("options", {})
    ]
    found += (
        ["mount: expected one root of layers, one of them the image"] if (len(roots), len(images)) != (1, 1) else []
    )
    places = [m["target"] for m in value["mount"]]
    return found + [f"mount: {place} twice" for place in set(places) if places.count(place) > 1]


def refusals_of_bom(document: str) -> list[str]:
    """Return every reason why copy_bom would not read a bom.yaml, or read something else than it says."""
    try:
        found = _BOM(yaml.load(document, _Once), "bom")  # of SafeLoader's kind
    except (yaml.YAMLError, ValueError) as exc:
        return [str(exc)]
    if found:
        return found
    places = [
        f"{target['target'].rstrip('/')}/{item if isinstance(item, str) else item.get('rename', item['name'])}"
        for target in yaml.safe_load(document).get("targets", ())
        for copied in target.get("copy", ())
        for item in copied.get("files", ())
    ]
    return [f"{place}: written twice" for place in set(places) if places.count(place) > 1]


def bom_files(document: str) -> dict[str, str]:
    """Return path in the image -> SHA-256 in lower case, of the files that a bom.yaml names with one."""
    return {
        f"{target['target'].rstrip('/')}/{item['name']}": item["hash"].lower()
        for target in yaml.safe_load(document)["targets"]
        for copied in target.get("copy", ())
        for item in copied["files"]
    }


class _Once(yaml.SafeLoader):
    """Refuses a field that is there twice, as serde does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            raise yaml.YAMLError(f"a field twice among {list(found)}")
        return found


def _bytes(written: str) -> int:
    unit = next(name for name in _UNITS if written.endswith(name))
    return int(written.removesuffix(unit).strip()) << _UNITS[unit]
