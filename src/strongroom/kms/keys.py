"""Named keys: versions, states, rotation, destruction, and the re-wrapping of all under a new root key.

A version is `enabled` (used for new writes if it is the newest, and released), `disabled` (neither), `destroying`
(disabled, and destroyed when its waiting time is over) or `destroyed` (its bytes are gone). Every function works
inside the caller's transaction.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import sqlalchemy as sa

from strongroom._encoding import canonical_json
from strongroom._secret import SecretBytes
from strongroom.crypto.header import check_key_name
from strongroom.errors import DeniedError, InputError, UnavailableError
from strongroom.kms.owners import check_room
from strongroom.kms.roots import RootKey
from strongroom.kms.stores.sql import datasets, get_meta, held, key_versions, keys

__all__ = ["KeyStore"]

KEY_BYTES = 32


class KeyStore:
    """The named keys in a store, wrapped under `root`."""

    def __init__(self, root: RootKey) -> None:
        self._root = root

    def use(self, root: RootKey) -> None:
        """Wrap and unwrap under `root` from now on. Call it inside the transaction that ends with `rewrap_all`."""
        self._root = root

    def _root_of(self, tx: sa.Connection) -> RootKey:
        # A key wrapped under another root than the database names would be lost with that root.
        root = self._root
        if get_meta(tx, "root") != root.id.encode():
            raise UnavailableError("the root key is being rotated", hint="try again")
        return root

    def create(self, tx: sa.Connection, owner: str, name: str, *, exportable: bool, now: datetime) -> None:
        """Make key `name` with version 1.

        Raises:
            InputError: Not a key name, or the owner has such a key.
        """
        check_key_name(name)
        if tx.execute(sa.select(keys).where(keys.c.owner == owner, keys.c.name == name)).first():
            raise InputError(f"key {name!r} exists", hint="`strongroom key rotate` makes a new version")
        tx.execute(sa.insert(keys).values(owner=owner, name=name, exportable=exportable, created=now.isoformat()))
        self._add_version(tx, owner, name, 1, now)

    def rotate(self, tx: sa.Connection, owner: str, name: str, *, now: datetime) -> int:
        """Make a new version for new writes; return its number."""
        self.describe(tx, owner, name)
        newest = int(tx.execute(sa.select(sa.func.max(key_versions.c.version)).where(*_is(owner, name))).scalar_one())
        self._add_version(tx, owner, name, newest + 1, now)
        return newest + 1

    def _add_version(self, tx: sa.Connection, owner: str, name: str, version: int, now: datetime) -> None:
        wrapped = self._root_of(tx).wrap(SecretBytes.random(KEY_BYTES), _context(owner, name, version))
        tx.execute(
            sa.insert(key_versions).values(
                owner=owner, name=name, version=version, state="enabled", wrapped=wrapped, created=now.isoformat()
            )
        )
        check_room(tx, owner)

    def names(self, tx: sa.Connection, owner: str) -> list[str]:
        """Return the owner's key names."""
        return list(tx.execute(sa.select(keys.c.name).where(keys.c.owner == owner).order_by(keys.c.name)).scalars())

    def describe(self, tx: sa.Connection, owner: str, name: str) -> dict[str, object]:
        """Return the public facts of a key.

        Raises:
            InputError: The owner has no such key.
        """
        key = tx.execute(sa.select(keys).where(keys.c.owner == owner, keys.c.name == name)).first()
        if key is None:
            known = ", ".join(self.names(tx, owner)) or "none"
            raise InputError(f"there is no key {name!r}", hint=f"your keys: {known}; `strongroom key create {name}`")
        rows = tx.execute(_of(owner, name).order_by(key_versions.c.version))
        versions = [
            {"version": r.version, "state": r.state, "created": r.created, "destroy_at": r.destroy_at} for r in rows
        ]
        return {
            "name": name,
            "owner": owner,
            "exportable": key.exportable,
            "created": key.created,
            "versions": versions,
        }

    def set_exportable(self, tx: sa.Connection, owner: str, name: str, exportable: bool) -> None:
        """Grant or take back the permission to export the key."""
        self.describe(tx, owner, name)
        tx.execute(sa.update(keys).where(keys.c.owner == owner, keys.c.name == name).values(exportable=exportable))

    def set_enabled(self, tx: sa.Connection, owner: str, name: str, version: int, enabled: bool) -> None:
        """Enable or disable a version; only enabling cancels a destruction that is still waiting."""
        state = self._state(tx, owner, name, version)
        if state == "destroyed":
            raise InputError(f"version {version} of key {name!r} is destroyed")
        if state == "destroying" and not enabled:
            return
        values = {"state": "enabled" if enabled else "disabled", "destroy_at": None}
        tx.execute(_at(sa.update(key_versions), owner, name, version).values(**values))

    def schedule_destroy(
        self, tx: sa.Connection, owner: str, name: str, version: int, *, now: datetime, wait: timedelta
    ) -> datetime:
        """Disable a version now and destroy its bytes after `wait`; return when.

        Raises:
            InputError: Recorded data sets still need the version.
        """
        if self._state(tx, owner, name, version) == "destroyed":
            raise InputError(f"version {version} of key {name!r} is destroyed")
        needed = self._needed_by(tx, owner, name, version)
        if needed:
            raise InputError(
                f"version {version} of key {name!r} is needed by {len(needed)} data set(s): {', '.join(needed[:5])}",
                hint="move them to a newer version with `strongroom data reseal`, or forget them with `data forget`",
            )
        when = now + wait
        values = {"state": "destroying", "destroy_at": when.isoformat()}
        tx.execute(_at(sa.update(key_versions), owner, name, version).values(**values))
        return when

    def destroy_due(self, tx: sa.Connection, *, now: datetime) -> list[tuple[str, str, int]]:
        """Destroy the bytes of versions whose waiting time is over; return them.

        One that a data set came to need while it waited stays disabled instead: its bytes may be the last.
        """
        due = tx.execute(
            sa.select(key_versions).where(
                key_versions.c.state == "destroying", key_versions.c.destroy_at <= now.isoformat()
            )
        ).all()
        destroyed = []
        for row in due:
            values: dict[str, object] = {"state": "destroyed", "wrapped": b""}
            if self._needed_by(tx, row.owner, row.name, row.version):
                values = {"state": "disabled", "destroy_at": None}
            else:
                destroyed.append((row.owner, row.name, row.version))
            tx.execute(_at(sa.update(key_versions), row.owner, row.name, row.version).values(**values))
        return destroyed

    def release(self, tx: sa.Connection, owner: str, name: str) -> dict[int, SecretBytes]:
        """Return the key's enabled versions, unwrapped; new writes are under the highest.

        Only `broker` calls this.

        Raises:
            DeniedError: No version is enabled.
        """
        self.check_enabled(tx, owner, name)
        rows = tx.execute(_of(owner, name).where(key_versions.c.state == "enabled")).all()
        root = self._root_of(tx)
        return {r.version: root.unwrap(r.wrapped, _context(owner, name, r.version)) for r in rows}

    def check_enabled(self, tx: sa.Connection, owner: str, name: str) -> None:
        """Return only if the key has an enabled version: without one, its owner wants nobody to use it.

        Raises:
            DeniedError: None is enabled.
        """
        self.describe(tx, owner, name)
        if not tx.execute(_of(owner, name).where(key_versions.c.state == "enabled")).first():
            raise DeniedError(f"no version of key {name!r} is enabled", hint="`strongroom key enable`")

    def exportable(self, tx: sa.Connection, owner: str, name: str) -> bool:
        """Return whether the owner may export the key's bytes."""
        return bool(self.describe(tx, owner, name)["exportable"])

    def rewrap_all(self, tx: sa.Connection, new: RootKey) -> int:
        """Wrap every stored version under `new`; return how many."""
        old = self._root_of(tx)
        rows = tx.execute(sa.select(key_versions).where(key_versions.c.state != "destroyed")).all()
        for row in rows:
            context = _context(row.owner, row.name, row.version)
            wrapped = new.wrap(old.unwrap(row.wrapped, context), context)
            tx.execute(_at(sa.update(key_versions), row.owner, row.name, row.version).values(wrapped=wrapped))
        return len(rows)

    def _state(self, tx: sa.Connection, owner: str, name: str, version: int) -> str:
        self.describe(tx, owner, name)
        row = tx.execute(_of(owner, name).where(key_versions.c.version == version)).first()
        if row is None:
            raise InputError(f"key {name!r} has no version {version}")
        return str(row.state)

    @staticmethod
    def _needed_by(tx: sa.Connection, owner: str, name: str, version: int) -> list[str]:
        rows = tx.execute(sa.select(datasets).where(datasets.c.owner == owner, datasets.c.key == name))
        waiting = sa.select(held.c.dataset, held.c.versions).join(datasets, datasets.c.id == held.c.dataset)
        waiting = waiting.where(datasets.c.owner == owner, datasets.c.key == name)
        found = [(row.id, row.versions) for row in rows]
        found += [(row.dataset, row.versions) for row in tx.execute(waiting)]
        return list(dict.fromkeys(dataset for dataset, versions in found if version in json.loads(versions)))


def _context(owner: str, name: str, version: int) -> bytes:
    return canonical_json({"key": name, "owner": owner, "use": "strongroom-key-v1", "version": version})


def _is(owner: str, name: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return (key_versions.c.owner == owner, key_versions.c.name == name)


def _of(owner: str, name: str) -> sa.Select[tuple[object, ...]]:
    return sa.select(key_versions).where(*_is(owner, name))


def _at(statement: sa.Update, owner: str, name: str, version: int) -> sa.Update:
    return statement.where(
        key_versions.c.owner == owner, key_versions.c.name == name, key_versions.c.version == version
    )
