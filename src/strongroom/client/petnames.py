"""Petnames: what this workspace calls other owners, in `owners.json`.

An owner is a fingerprint. A name means the owner to whom a person gave it here, never one that a data set, a job or the
trust service says; so a name stays with its owner, and an owner with its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from strongroom._unix import write_whole
from strongroom.client.workspace import Workspace
from strongroom.errors import InputError, IntegrityError

__all__ = ["Petnames", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_OWNER = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """Return `name` if an owner may be called so.

    Raises:
        InputError: It cannot stand in KEY@OWNER.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name[:80]!r} is not a name for an owner", hint="letters, digits, dot, dash, underscore")
    return name


@dataclass(slots=True)
class Petnames:
    """The names in one workspace.

    Attributes:
        path: The file.
        own: The workspace's own owner.
        owners: Name -> fingerprint; holds the own name too.
    """

    path: Path
    own: str
    owners: dict[str, str]

    @classmethod
    def load(cls, workspace: Workspace) -> Petnames:
        """Return the names in a workspace.

        Raises:
            IntegrityError: The file is damaged.
        """
        path = workspace.folder / "owners.json"
        try:
            found = json.loads(path.read_text()) if path.exists() else {}
            owners = {check_name(name): _fingerprint(owner) for name, owner in found.items()}
        except (ValueError, AttributeError, TypeError, InputError) as exc:
            raise IntegrityError(f"{path} is damaged: {exc}", hint="restore it, or name the owners again") from exc
        return cls(path=path, own=workspace.owner, owners={**owners, workspace.name: workspace.owner})

    def find(self, name: str) -> str:
        """Return the fingerprint of the owner called `name`.

        Raises:
            InputError: Nobody is.
        """
        if name not in self.owners:
            raise InputError(
                f"no owner is called {name[:80]!r} here",
                hint="`strongroom owner list`, `strongroom owner name NAME OWNER`",
            )
        return self.owners[name]

    def name(self, owner: str) -> str:
        """Return what people read: the owner's name with the start of the fingerprint, or all of the fingerprint."""
        called = next((name for name, found in self.owners.items() if found == owner), None)
        if called is None:
            return (owner if _OWNER.fullmatch(owner) else ascii(owner[:80])) + " (no name here)"
        return f"{called} ({owner[:16]}{', you' if owner == self.own else ''})"

    def check_free(self, name: str, owner: str) -> None:
        """Return if `owner` may be called `name` from now on.

        Raises:
            InputError: The name is another owner's, or the owner has another name.
        """
        if self.owners.get(check_name(name), _fingerprint(owner)) != owner:
            raise InputError(f"{name!r} is already the name of owner {self.owners[name]}", hint="choose another name")
        called = next((n for n, found in self.owners.items() if found == owner), name)
        if called != name:
            raise InputError(f"owner {owner[:16]} is already called {called!r}", hint=f"use {called!r}")

    def add(self, name: str, owner: str) -> None:
        """Call `owner` by `name` from now on; see `check_free`."""
        self.check_free(name, owner)
        others: Mapping[str, str] = {n: o for n, o in self.owners.items() if o != self.own}
        write_whole(self.path, json.dumps({**others, **({name: owner} if owner != self.own else {})}, indent=1))
        self.owners[name] = owner


def _fingerprint(text: object) -> str:
    if not isinstance(text, str) or not _OWNER.fullmatch(text):
        raise InputError(
            f"{str(text)[:80]!r} is not an owner's fingerprint", hint="64 hex digits, as `owner list` shows"
        )
    return text
