"""What the gate reads in a job document: which keys the job uses and how, what it read, how long it may run.

The document is a host's choice, bound by evidence but not yet accepted by anybody: every reader refuses another form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.errors import InputError

__all__ = ["KeyWanted", "made_from", "max_runtime_s", "needed", "uses", "volumes"]

_EPOCH = re.compile("[0-9]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWanted:
    """A named key of an owner."""

    owner: str
    name: str


def volumes(document: Mapping[str, object]) -> list[dict[str, str]]:
    """Return the volumes whose keys are here."""
    found = document.get("volumes")
    if not isinstance(found, list) or not all(isinstance(v, dict) for v in found):
        raise InputError("the job document has no list of volumes")
    members = ("name", "dataset", "key", "owner", "mode")
    for volume in found:
        if any(not isinstance(volume.get(k), str) for k in members) or volume["mode"] not in ("ro", "rw"):
            raise InputError(f"a volume of the job document has {', '.join(members)}, mode ro or rw")
    at_kbs = document.get("kbs")
    names = [str(v.get("name")) for v in (*found, *(at_kbs if isinstance(at_kbs, list) else ())) if isinstance(v, dict)]
    if len(set(names)) != len(names):
        raise InputError("two volumes of the job document have one name")
    return [{k: str(v) for k, v in volume.items()} for volume in found]


def made_from(
    document: Mapping[str, object], read: Mapping[str, Mapping[str, object]], owner: str
) -> list[dict[str, object]]:
    """Return what a commit of `document` was made from, for the log of `owner`; `read` is the guest's word."""
    # Of another owner's volume the log of this one has the name in the job, no more.
    found: list[dict[str, object]] = []
    listed = volumes(document)
    if set(read) != {volume["name"] for volume in listed}:
        raise InputError("commit: inputs names the volumes of the job, each of them")
    for volume in listed:
        own = {k: volume[k] for k in ("dataset", "key")} | {**read.get(volume["name"], {})}
        found.append({"volume": volume["name"], **(own if volume["owner"] == owner else {})})
    # What a KBS has the key of is pinned by the document; last, for a commit is found by the first of its data set.
    at_kbs = document.get("kbs", [])
    if not isinstance(at_kbs, list) or not all(
        isinstance(v, dict) and _EPOCH.fullmatch(str(v.get("epoch"))) for v in at_kbs
    ):
        raise InputError("kbs of the job document is no list of pinned volumes")
    pinned = [{k: str(v.get(k)) for k in ("dataset", "key", "manifest")} | {"epoch": int(v["epoch"])} for v in at_kbs]
    return found + [
        {"volume": str(v["name"]), "kbs": str(v["owner"]), **own} for v, own in zip(at_kbs, pinned, strict=True)
    ]


def _keys(document: Mapping[str, object]) -> list[tuple[KeyWanted, str]]:
    """Return each key that the job uses, for a volume or for columns, with the mode."""
    found = [(KeyWanted(owner=v["owner"], name=v["key"]), v["mode"]) for v in volumes(document)]
    keys = document.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(k, dict) for k in keys):
        raise InputError("the keys of the job document are no list of objects")
    for key in keys:
        if any(not isinstance(key.get(k), str) for k in ("name", "owner")) or key.get("mode") not in ("ro", "rw"):
            raise InputError("a key of the job document has name, owner, mode ro or rw")
        found.append((KeyWanted(owner=key["owner"], name=key["name"]), key["mode"]))
    return found


def needed(document: Mapping[str, object]) -> list[KeyWanted]:
    """Return each key that the job uses, once."""
    return list(dict.fromkeys(wanted for wanted, _ in _keys(document)))


def uses(document: Mapping[str, object], wanted: KeyWanted) -> list[str]:
    """Return what the job uses a key for: nothing, `read`, or `read` and `write`."""
    modes = {mode for key, mode in _keys(document) if key == wanted}
    return (["read"] if modes else []) + (["write"] if "rw" in modes else [])


def max_runtime_s(document: Mapping[str, object]) -> int:
    """Return for how many seconds the job may run: a day, if it does not say."""
    limits = document.get("limits")
    value = limits.get("max_runtime_s") if isinstance(limits, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 86_400
