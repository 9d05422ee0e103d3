"""What the trust service believes of its own state: a copy in memory, which the disk had to prove, whole, once.

Trusts this process's memory and the state key, which rests under the root key. Does not trust the disk, whose host may
alter, move, add, remove or bring back rows at any time. docs/formats/service-state.md; the rules:

1. Every row is read from the disk once and checked before it is used; then each question is answered from memory.
2. Triggers note each change, by whatever statement, in a table in memory. It goes to the disk in the same transaction,
   with the row's tag and a seal over all rows and a counter. No function of ours is known to SQLite: whatever a schema
   on the disk can name, its host can have called (SQLite lets a CHECK there call any), and no schema names another
   database's tables.
3. Nothing is taken from a disk whose seal is not the one left there, unless it is a later one that proves itself anew:
   a commit that failed only seemingly, or another process.
"""

# ruff: noqa: S608  # names in statements are those of our tables
from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from strongroom._encoding import labelled_hash
from strongroom._secret import SecretBytes
from strongroom.errors import IntegrityError

__all__ = ["Mirror", "damaged"]

_Value = str | int | float | bytes | None
_Row = tuple[_Value, ...]
_Seal = tuple[int, bytes]
_MODULUS = 1 << 256
_CHANGES = "strongroom_changes"


@dataclass(frozen=True, slots=True)
class _State:
    key: bytes
    sums: Mapping[str, int]  # by table, of its rows' secret values; never leave the memory
    seal: _Seal | None  # as it lies on the disk


class Mirror:
    """Keeps `tables` in memory and, authentic, in the attached database `disk`. Not for several threads at once."""

    def __init__(self, tables: Sequence[sa.Table], key: SecretBytes) -> None:
        self._tables = {table.name: table for table in tables}
        with key as raw:
            self._state = self._pending = _State(raw, dict.fromkeys(self._tables, 0), None)

    def open(self, tx: sa.Connection, *, fresh: bool) -> None:
        """Fill the memory from the disk; leave it empty if `fresh`, for a disk on which there is nothing.

        Raises:
            IntegrityError: Names the first row or table that does not hold.
        """
        widest = max(len(table.c) for table in self._tables.values())
        columns = ", ".join(f"c{at}" for at in range(2 * widest))
        _driver(tx).execute(f"CREATE TABLE main.{_CHANGES} (tbl, event, {columns})")
        for name, table in self._tables.items():
            tx.execute(CreateTable(table))
            for event, rows in (("INSERT", ["NEW"]), ("UPDATE", ["OLD", "NEW"]), ("DELETE", ["OLD"])):
                values = ", ".join(f'{row}."{column.name}"' for row in rows for column in table.c)
                nulls = ", NULL" * (2 * widest - len(rows) * len(table.c))
                _driver(tx).execute(
                    f'CREATE TEMP TRIGGER "{name}_{event}" AFTER {event} ON main."{name}" '
                    f"BEGIN INSERT INTO {_CHANGES} VALUES ('{name}', '{event}', {values}{nulls}); END"
                )
        if not fresh:
            self.load(tx)

    def begin(self, tx: sa.Connection) -> bool:
        """Begin a transaction, in which the memory is what the disk's seal is of; return False if it has to be read.

        Raises:
            IntegrityError: The disk has an earlier seal, or another.
        """
        self._pending = state = self._state
        shown = _shown(tx)
        if shown == state.seal:
            return True
        if shown is None or state.seal is None or shown[0] <= state.seal[0]:
            raise damaged("its seal is not the one that this process left there")
        return False

    def save(self, tx: sa.Connection) -> None:
        """Write what changed, and the seal, to the disk."""
        changes = self._taken(tx)
        if not changes and self._pending.key == self._state.key:
            return
        key, sums = self._pending.key, dict(self._pending.sums)
        final: dict[tuple[str, _Row], _Row | None] = {}
        for name, old, new in changes:
            for row, sign in ((old, -1), (new, 1)):
                if row is not None:
                    sums[name] = (sums[name] + sign * _secret_value(key, name, row)) % _MODULUS
                    final[name, self._primary(name, row)] = row if sign > 0 else None
        if key != self._state.key:  # under a new key every row is written anew
            for name in self._tables:
                rows = self._rows(tx, "main", name)
                sums[name] = sum(_secret_value(key, name, one) for one in rows) % _MODULUS
                final |= {(name, self._primary(name, one)): one for one in rows}
        for (name, primary), left in final.items():
            if left is None:
                at = " AND ".join(f'"{column.name}" = ?' for column in self._tables[name].primary_key)
                _driver(tx).execute(f'DELETE FROM disk."{name}" WHERE {at}', primary)
                _driver(tx).execute("DELETE FROM disk.tags WHERE tbl = ? AND row = ?", (name, _named(primary)))
            else:
                marks = ", ".join("?" * len(left))
                _driver(tx).execute(f'INSERT OR REPLACE INTO disk."{name}" VALUES ({marks})', left)
                tag = (name, _named(primary), _tag(key, name, left))
                _driver(tx).execute("INSERT OR REPLACE INTO disk.tags VALUES (?, ?, ?)", tag)
        counter = (self._pending.seal or (0,))[0] + 1
        seal = (counter, b"".join(_table_tags(key, counter, sums).values()))
        _driver(tx).execute("INSERT OR REPLACE INTO disk.seal VALUES (1, ?, ?)", seal)
        self._pending = _State(key, sums, seal)

    def done(self) -> None:
        """Go on from what was saved; called once it is on the disk."""
        self._state = self._pending

    def rekey(self, key: SecretBytes) -> None:
        """Authenticate everything under a new key, with the transaction that runs."""
        with key as raw:
            self._pending = replace(self._pending, key=raw)

    def load(self, tx: sa.Connection) -> None:
        """Read all from the disk, and check it.

        Raises:
            IntegrityError: Names the first row or table that does not hold.
        """
        key, sums, seal = self._state.key, dict.fromkeys(self._tables, 0), _shown(tx)
        if seal is None:
            raise damaged("it has no seal")
        found = {}
        for name in self._tables:
            rows, tags = self._rows(tx, "disk", name), _tags(tx, name)
            for row in rows:
                at = _named(self._primary(name, row))
                if not hmac.compare_digest(tags.pop(at, b""), _tag(key, name, row)):
                    raise damaged(f"row {at} of table {name} was altered, added or moved there")
                sums[name] = (sums[name] + _secret_value(key, name, row)) % _MODULUS
            if tags:
                raise damaged(f"row {min(tags)} of table {name} is missing")
            found[name] = rows
        size, tables = hashlib.sha256().digest_size, _table_tags(key, seal[0], sums)
        parts = {name: seal[1][at * size :][:size] for at, name in enumerate(tables)}
        wrong = [name for name, tag in tables.items() if not hmac.compare_digest(tag, parts[name])]
        if len(wrong) == len(tables) or len(seal[1]) != size * len(tables):
            raise damaged("its seal was altered, or is of another state")
        if wrong:
            raise damaged(f"rows of table {wrong[0]} were removed or added, or are older ones")
        for name in reversed(self._tables):
            _driver(tx).execute(f'DELETE FROM main."{name}"')
        for name, rows in found.items():
            for row in rows:
                _driver(tx).execute(f'INSERT INTO main."{name}" VALUES ({", ".join("?" * len(row))})', row)
        _driver(tx).execute(f"DELETE FROM main.{_CHANGES}")  # what was read is no change
        self._pending = _State(key, sums, seal)

    def _rows(self, tx: sa.Connection, schema: str, name: str) -> list[_Row]:
        columns = ", ".join(f'"{column.name}"' for column in self._tables[name].c)
        return _read(tx, f'SELECT {columns} FROM {schema}."{name}"')

    def _primary(self, name: str, row: _Row) -> _Row:
        return tuple(value for value, column in zip(row, self._tables[name].c, strict=True) if column.primary_key)

    def _taken(self, tx: sa.Connection) -> list[tuple[str, _Row | None, _Row | None]]:
        # What changed since it was asked last, oldest first: table, row before, row after.
        rows = _read(tx, f"SELECT * FROM main.{_CHANGES} ORDER BY rowid")
        found: list[tuple[str, _Row | None, _Row | None]] = []
        for name, event, *values in rows:
            size = len(self._tables[str(name)].c)
            first, second = tuple(values[:size]), tuple(values[size : 2 * size])
            old, new = {"INSERT": (None, first), "UPDATE": (first, second), "DELETE": (first, None)}[str(event)]
            if old != new:
                found.append((str(name), old, new))
        if rows:
            _driver(tx).execute(f"DELETE FROM main.{_CHANGES}")
        return found


def damaged(what: str) -> IntegrityError:
    """Return the error that says that the database is not what the service left."""
    return IntegrityError(
        f"the trust service's database was altered: {what}",
        hint="stop the service and restore the newest backup; clients refuse a backup older than what they saw",
    )


def _driver(tx: sa.Connection) -> sqlite3.Connection:
    # Statements of the mirror's own go there directly: each exchange has some, and SQLAlchemy takes 50 us for one.
    connection = tx.connection.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    return connection


def _shown(tx: sa.Connection) -> _Seal | None:
    for counter, tags in _read(tx, "SELECT counter, tags FROM disk.seal WHERE id = 1"):
        if type(counter) is int and type(tags) is bytes:
            return counter, tags
        raise damaged("its seal is none")
    return None


def _tags(tx: sa.Connection, name: str) -> dict[str, bytes]:
    rows = _read(tx, "SELECT row, tag FROM disk.tags WHERE tbl = ?", name)
    return {str(row): tag if isinstance(tag, bytes) else b"" for row, tag in rows}


def _read(tx: sa.Connection, statement: str, *values: str) -> list[_Row]:
    # The disk may have anything for a text: what is not UTF-8 has to get as far as the check, and fails there.
    connection = _driver(tx)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.text_factory = str


def _named(primary: _Row) -> str:
    return json.dumps(primary, default=repr)


def _mac(key: bytes, label: str, fields: Iterable[bytes]) -> bytes:
    return hmac.digest(key, labelled_hash(label, fields), "sha256")


def _fields(name: str, row: _Row) -> list[bytes]:
    texts = (v if isinstance(v, bytes) else str(v).encode("utf-8", "surrogateescape") for v in row)
    return [name.encode(), *(type(v).__name__.encode() + b":" + text for v, text in zip(row, texts, strict=True))]


def _tag(key: bytes, name: str, row: _Row) -> bytes:
    return _mac(key, "strongroom-state-row-v1", _fields(name, row))


def _secret_value(key: bytes, name: str, row: _Row) -> int:
    # Another value than the tag, which lies open: who knew the values of rows could find others of the same sum.
    return int.from_bytes(_mac(key, "strongroom-state-value-v1", _fields(name, row)))


def _table_tags(key: bytes, counter: int, sums: Mapping[str, int]) -> dict[str, bytes]:
    return {
        name: _mac(key, "strongroom-state-table-v1", [name.encode(), str(counter).encode(), total.to_bytes(32)])
        for name, total in sorted(sums.items())
    }
