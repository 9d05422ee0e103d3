"""The trust service's state in one SQLite database, which nobody but the service can alter unnoticed (`mirror`).

A transaction that returned is on disk (`synchronous=FULL`): what was acknowledged survives kill -9 and power loss.
Key material is stored wrapped only (`roots`). Table names mean the disk's tables while the store is sealed, for reading
only, and the memory's once it is not; the audit log, which its readers check, is on the disk always.
"""

from __future__ import annotations

import functools
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from strongroom._secret import SecretBytes
from strongroom.errors import InputError, IntegrityError, UnavailableError
from strongroom.kms.stores.mirror import Mirror, damaged

__all__ = [
    "SQLStore",
    "audit",
    "audit_head",
    "datasets",
    "held",
    "key_versions",
    "keys",
    "meta",
    "owners",
    "policies",
    "requests",
]

SCHEMA_VERSION = "3"
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
audit_head = sa.Table(  # of the newest record: ties the state to the log
    "audit_head",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("head", sa.Text, nullable=False),
)
_OPEN = {
    audit,
    sa.Table(
        "tags",
        _tables,
        sa.Column("tbl", sa.Text, primary_key=True),
        sa.Column("row", sa.Text, primary_key=True),
        sa.Column("tag", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,  # a page less to write
    ),
    sa.Table(
        "seal",
        _tables,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("counter", sa.Integer, nullable=False),
        sa.Column("tags", sa.LargeBinary, nullable=False),
    ),
}
"""Tables that are on the disk alone; all others are authentic."""


class SQLStore:
    """State in SQLite at `path`; created if it is not there. Sealed, and for reading only, until `unseal`."""

    def __init__(self, path: Path) -> None:
        self._turn = threading.Lock()
        self._path = path
        self._mirror: Mirror | None = None
        self._engine = sa.create_engine(
            "sqlite://",  # one connection: a database in memory, and the disk's attached to it
            connect_args={"timeout": _PATIENCE_S, "check_same_thread": False},
            poolclass=sa.StaticPool,
            hide_parameters=True,  # they hold policies, documents and wrapped keys, and tracebacks are logged
        )
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", self._on_begin)
        fresh = not path.exists() or path.stat().st_size == 0
        on_disk = self._engine.execution_options(schema_translate_map={None: "disk"})
        with self._wrapped(), on_disk.begin() as connection:
            found = connection.exec_driver_sql("PRAGMA disk.quick_check(1)").scalar()
            if found != "ok":
                raise self._corrupt(str(found))
            if fresh:
                connection.exec_driver_sql("PRAGMA query_only=0")
                _tables.create_all(connection)
                return
            missing = set(_tables.tables) - set(sa.inspect(connection).get_table_names("disk"))
            version = SCHEMA_VERSION.encode() if "meta" in missing else get_meta(connection, "schema")
            if version != SCHEMA_VERSION.encode():
                raise IntegrityError(
                    f"the database {path} has schema {version!r}, expected {SCHEMA_VERSION}",
                    hint="another version of Strongroom made it: open the data sets with that one and seal them anew",
                )
            if missing:  # never write into what is not ours or not whole
                raise self._corrupt(f"it has no table {min(missing)}")
            _check_schema(connection)

    def unseal(self, key: SecretBytes, *, fresh: bool = False) -> None:
        """Believe what is on the disk, once all of it is authentic under `key`; then changes are possible.

        Args:
            key: The state key, 32 bytes.
            fresh: The database was made just now, and is empty.

        Raises:
            IntegrityError: Names the row or table that was altered, removed or brought back.
        """
        with self._in_turn():
            if self._mirror is not None:
                return
            self._mirror = Mirror([table for table in _tables.sorted_tables if table not in _OPEN], key)
            try:
                with self._wrapped(), self._engine.begin() as tx:
                    _check_schema(tx)
                    self._mirror.open(tx, fresh=fresh)
                    if fresh:
                        set_meta(tx, "schema", SCHEMA_VERSION.encode())
                    self._mirror.save(tx)
            except BaseException:
                self._mirror = None
                raise
            self._mirror.done()

    def rekey(self, key: SecretBytes) -> None:
        """Authenticate everything under `key`, with the transaction that this is called in."""
        assert self._mirror is not None
        self._mirror.rekey(key)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Run the block in one write transaction; it is durable when the block has ended."""
        with self._in_turn():
            mirror = self._mirror
            with self._wrapped(), self._engine.begin() as connection:
                _check_schema(connection)
                if mirror is not None and not mirror.begin(connection):
                    _reload(mirror, connection)
                yield connection
                if mirror is not None:
                    mirror.save(connection)
            if mirror is not None:
                mirror.done()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        # Threads queue here and not in SQLite, whose waiting is neither fair nor quick.
        if not self._turn.acquire(timeout=_PATIENCE_S):
            raise UnavailableError("the database is busy")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.OperationalError, sqlite3.OperationalError) as exc:
            raise UnavailableError(
                f"the database does not take the write: {_original(exc)}", hint="check disk space and permissions"
            ) from exc
        except sa.exc.IntegrityError as exc:
            raise InputError(f"the database refuses the change: {exc.orig}") from exc
        except (sa.exc.DatabaseError, sqlite3.DatabaseError) as exc:
            raise self._corrupt(str(_original(exc))) from exc

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _corrupt(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the database {self._path} is damaged: {what}",
            hint="stop the service and restore the newest backup; clients refuse a backup older than what they saw",
        )

    def _on_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        if self._mirror is not None:  # in a new connection the memory's names would mean the disk's tables
            raise UnavailableError("the database was closed", hint="start the trust service again")
        connection.isolation_level = None  # we begin transactions ourselves
        for pragma in (
            "trusted_schema=OFF",
            "cell_size_check=ON",
            "foreign_keys=ON",
            "secure_delete=ON",
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("ATTACH DATABASE ? AS disk", (str(self._path),))
        for pragma in ("disk.journal_mode=WAL", "disk.synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    def _on_begin(self, connection: sa.Connection) -> None:
        sealed = self._mirror is None
        connection.exec_driver_sql(f"PRAGMA query_only={int(sealed)}")
        connection.exec_driver_sql("BEGIN" if sealed else "BEGIN IMMEDIATE")


_SCHEMA = "SELECT type, name, tbl_name, sql FROM {}.sqlite_master"


def _check_schema(tx: sa.Connection) -> None:
    # Triggers, constraints and expressions of the disk's schema run with our statements: it may have ours alone.
    raw = tx.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    if other := _not_ours(frozenset(raw.execute(_SCHEMA.format("disk")).fetchall())):
        raise damaged(f"{other} of its schema is not as the service made it")


@functools.lru_cache(maxsize=1)
def _not_ours(shown: frozenset[tuple[str | None, ...]]) -> str:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        _tables.create_all(connection)
        ours = {_spaced(row) for row in connection.exec_driver_sql(_SCHEMA.format("main"))}
    engine.dispose()
    return min((f"{row[0]} {row[1]}" for row in ours ^ {_spaced(row) for row in shown}), default="")


def _spaced(row: Iterable[object]) -> tuple[str | None, ...]:
    return tuple(None if value is None else " ".join(str(value).split()) for value in row)


def _reload(mirror: Mirror, tx: sa.Connection) -> None:
    # Another process went on from here, or from an older state: that one is no later state of this.
    from strongroom.kms.audit import AuditLog  # noqa: PLC0415  # which stands on this module
    from strongroom.kms.audit_chain import AuditHead  # noqa: PLC0415  # which stands on this module

    last = tx.execute(sa.select(audit_head.c.seq, audit_head.c.chain)).first()
    mirror.load(tx)
    if last is not None:
        AuditLog.check_extends(tx, AuditHead(seq=last.seq, chain=last.chain))


def _original(exc: Exception) -> object:
    return exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc  # the mirror's statements go to the driver


def get_meta(tx: sa.Connection, name: str) -> bytes | None:
    """Return the value stored under `name`, or None."""
    value = tx.execute(sa.select(meta.c.value).where(meta.c.name == name)).scalar()
    return None if value is None else bytes(value)


def set_meta(tx: sa.Connection, name: str, value: bytes) -> None:
    """Store `value` under `name`."""
    if tx.execute(sa.update(meta).where(meta.c.name == name).values(value=value)).rowcount == 0:
        tx.execute(sa.insert(meta).values(name=name, value=value))
