"""The trust service's state in one SQL database: SQLite by default, any SQLAlchemy URL in principle.

A transaction that returned is on disk (`synchronous=FULL`): what was acknowledged survives kill -9 and power loss.
Key material is stored wrapped only (`roots`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from strongroom.errors import InputError, IntegrityError, UnavailableError

__all__ = [
    "SQLStore",
    "Store",
    "audit",
    "datasets",
    "held",
    "key_versions",
    "keys",
    "meta",
    "owners",
    "policies",
    "requests",
]

SCHEMA_VERSION = "2"
_ADDED = {"held"}
"""Tables that databases of this schema made before have not, and do not miss."""
_PATIENCE_S = 30.0

_tables = sa.MetaData()

meta = sa.Table(
    "meta", _tables, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.LargeBinary, nullable=False)
)
owners = sa.Table(
    "owners",
    _tables,
    sa.Column("id", sa.Text, primary_key=True),  # SHA-256 of the certificate
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("certificate", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
keys = sa.Table(
    "keys",
    _tables,
    sa.Column("owner", sa.Text, sa.ForeignKey("owners.id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("exportable", sa.Boolean, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
key_versions = sa.Table(
    "key_versions",
    _tables,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),  # enabled | disabled | destroying | destroyed
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("destroy_at", sa.Text),
    sa.ForeignKeyConstraint(["owner", "name"], ["keys.owner", "keys.name"]),
)
policies = sa.Table(
    "policies",
    _tables,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("updated", sa.Text, nullable=False),
)
datasets = sa.Table(
    "datasets",
    _tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("manifest", sa.Text),
    sa.Column("versions", sa.Text, nullable=False),  # JSON list of key versions its files need
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("updated", sa.Text, nullable=False),
)
held = sa.Table(
    "held",
    _tables,
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),  # of the head that it follows
    sa.Column("manifest", sa.Text),  # likewise
    sa.Column("new_manifest", sa.Text, nullable=False),
    sa.Column("versions", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),  # run, job, claims, inputs
    sa.Column("created", sa.Text, nullable=False),
)
requests = sa.Table(
    "requests",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("measurement", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),  # job document, claims, uses, reasons, difference
    sa.Column("state", sa.Text, nullable=False),  # pending | approved | dismissed
    sa.Column("first_seen", sa.Text, nullable=False),
    sa.Column("last_seen", sa.Text, nullable=False),
    sa.Column("seen", sa.Integer, nullable=False),
    sa.UniqueConstraint("owner", "key", "job", "measurement"),
)
audit = sa.Table(
    "audit",
    _tables,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.Text, nullable=False, index=True),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("record_hash", sa.Text, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("head", sa.Text, nullable=False),
)


class Store(Protocol):
    """The seam: whoever keeps the state runs whole transactions or none."""

    def transaction(self) -> object:
        """Return a context manager whose block is one transaction."""


class SQLStore:
    """State in SQLite at `path`; created if it is not there."""

    def __init__(self, path: Path) -> None:
        self._turn = threading.Lock()
        self._engine = sa.create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": _PATIENCE_S, "check_same_thread": False},
            hide_parameters=True,  # they hold policies, documents and wrapped keys, and tracebacks are logged
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        fresh = not path.exists() or path.stat().st_size == 0
        with self._wrapped():
            with self._engine.connect() as connection:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise _corrupt(path, str(found))
            missing = set(_tables.tables) - _ADDED - set(sa.inspect(self._engine).get_table_names())
            if missing and not fresh:  # never write into what is not ours or not whole
                raise _corrupt(path, f"it has no table {min(missing)}")
            _tables.create_all(self._engine)
        with self.transaction() as tx:
            version = get_meta(tx, "schema")
            if version is None:
                set_meta(tx, "schema", SCHEMA_VERSION.encode())
            elif version != SCHEMA_VERSION.encode():
                raise IntegrityError(
                    f"the database {path} has schema {version!r}, expected {SCHEMA_VERSION}",
                    hint="another version of Strongroom made it: open the data sets with that one and seal them anew",
                )

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Run the block in one write transaction; it is durable when the block has ended."""
        # Threads queue here and not in SQLite, whose waiting is neither fair nor quick.
        if not self._turn.acquire(timeout=_PATIENCE_S):
            raise UnavailableError("the database is busy")
        try:
            with self._wrapped(), self._engine.begin() as connection:
                yield connection
        finally:
            self._turn.release()

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.OperationalError as exc:
            raise UnavailableError(
                f"the database does not take the write: {exc.orig}", hint="check disk space and permissions"
            ) from exc
        except sa.exc.IntegrityError as exc:
            raise InputError(f"the database refuses the change: {exc.orig}") from exc
        except sa.exc.DatabaseError as exc:
            raise _corrupt(Path(str(self._engine.url.database)), str(exc.orig)) from exc

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _corrupt(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the database {path} is damaged: {what}",
        hint="stop the service and restore the newest backup; clients refuse a backup older than what they saw",
    )


def _on_connect(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # we begin transactions ourselves
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def get_meta(tx: sa.Connection, name: str) -> bytes | None:
    """Return the value stored under `name`, or None."""
    value = tx.execute(sa.select(meta.c.value).where(meta.c.name == name)).scalar()
    return None if value is None else bytes(value)


def set_meta(tx: sa.Connection, name: str, value: bytes) -> None:
    """Store `value` under `name`."""
    if tx.execute(sa.update(meta).where(meta.c.name == name).values(value=value)).rowcount == 0:
        tx.execute(sa.insert(meta).values(name=name, value=value))
