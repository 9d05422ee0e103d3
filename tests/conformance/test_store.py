"""The suite of every store: whole transactions or none, one at a time, and nothing lost that was acknowledged."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.fakes.stores import open_store

from strongroom.errors import InputError, IntegrityError
from strongroom.kms.stores.sql import SQLStore, get_meta, meta, owners, set_meta

Factory = Callable[[Path], SQLStore]


_sqlite = open_store


@pytest.fixture(params=[_sqlite])
def factory(request: pytest.FixtureRequest) -> Factory:
    found: Factory = request.param
    return found


def test_what_ended_is_there_after_a_restart(factory: Factory, tmp_path: Path) -> None:
    store = factory(tmp_path)
    with store.transaction() as tx:
        set_meta(tx, "a", b"1")
    store.close()
    with factory(tmp_path).transaction() as tx:
        assert get_meta(tx, "a") == b"1"
        assert get_meta(tx, "b") is None


@pytest.mark.parametrize("failure", [ValueError, InputError, KeyboardInterrupt, SystemExit])
def test_what_failed_left_nothing(factory: Factory, tmp_path: Path, failure: type[BaseException]) -> None:
    store = factory(tmp_path)
    with pytest.raises(failure), store.transaction() as tx:  # noqa: PT012
        set_meta(tx, "a", b"1")
        set_meta(tx, "b", b"2")
        raise failure("stop")
    with store.transaction() as tx:
        assert (get_meta(tx, "a"), get_meta(tx, "b")) == (None, None)


def test_a_refused_statement_undoes_the_whole_block(factory: Factory, tmp_path: Path) -> None:
    store = factory(tmp_path)
    row = {"id": "x", "name": "x", "certificate": "", "created": ""}
    with pytest.raises(InputError, match="refuses the change"), store.transaction() as tx:  # noqa: PT012
        set_meta(tx, "a", b"1")
        tx.execute(sa.insert(owners).values(**row))
        tx.execute(sa.insert(owners).values(**row))
    with store.transaction() as tx:
        assert get_meta(tx, "a") is None


def test_read_and_write_in_one_block_lose_no_update(factory: Factory, tmp_path: Path) -> None:
    store = factory(tmp_path)

    def add() -> None:
        for _ in range(25):
            with store.transaction() as tx:
                set_meta(tx, "n", str(int(get_meta(tx, "n") or b"0") + 1).encode())

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.transaction() as tx:
        assert get_meta(tx, "n") == b"200"


def test_two_stores_on_one_database_lose_no_update(factory: Factory, tmp_path: Path) -> None:
    stores = [factory(tmp_path), factory(tmp_path)]
    for turn in range(20):
        with stores[turn % 2].transaction() as tx:
            set_meta(tx, "n", str(int(get_meta(tx, "n") or b"0") + 1).encode())
    with stores[0].transaction() as tx:
        assert get_meta(tx, "n") == b"20"


def test_whatever_was_done_proves_itself_after_a_restart(factory: Factory, tmp_path: Path) -> None:
    stores, rng, expected = [factory(tmp_path), factory(tmp_path)], random.Random(1), dict[str, bytes]()
    for _ in range(120):
        before, fails = dict(expected), rng.random() < 0.2
        with contextlib.suppress(InputError), rng.choice(stores).transaction() as tx:
            for _ in range(rng.randrange(4)):
                name, value = rng.choice("abcdef"), rng.randbytes(3)
                if rng.random() < 0.3:
                    tx.execute(sa.delete(meta).where(meta.c.name == name))
                    expected.pop(name, None)
                else:
                    set_meta(tx, name, value)
                    expected[name] = value
            if fails:
                raise InputError("stop")
        expected = before if fails else expected
    for store in stores:
        store.close()
    with factory(tmp_path).transaction() as tx:
        found = {row.name: bytes(row.value) for row in tx.execute(sa.select(meta))}
    assert found == {**expected, "schema": found["schema"]}


def test_errors_never_show_values(factory: Factory, tmp_path: Path) -> None:
    store = factory(tmp_path)
    with pytest.raises(Exception) as caught, store.transaction() as tx:  # noqa: PT011, PT012
        set_meta(tx, "a", b"SECRET-VALUE")
        tx.execute(sa.insert(owners).values(id="SECRET-VALUE", name=None, certificate="", created=""))
    shown, exc = "", caught.value
    while exc is not None:
        shown, exc = shown + str(exc), exc.__cause__  # type: ignore[assignment]
    assert "SECRET" not in shown


def test_another_schema_is_refused(factory: Factory, tmp_path: Path) -> None:
    store = factory(tmp_path)
    with store.transaction() as tx:
        set_meta(tx, "schema", b"99")
    store.close()
    with pytest.raises(IntegrityError, match="schema"):
        factory(tmp_path)


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 500)


def _header(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[:16] = bytes(16)
    path.write_bytes(raw)


def _cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2 // 4096 * 4096])


def _page(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[4096:12288] = b"\xff" * 8192
    path.write_bytes(raw)


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table diary (entry text)")
    db.close()


@pytest.mark.parametrize("damage", [_garbage, _header, _cut, _page, _foreign])
def test_a_damaged_database_is_refused_and_left_alone(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = _sqlite(tmp_path)
    with store.transaction() as tx:
        set_meta(tx, "a", b"1" * 10_000)
    store.close()
    path = tmp_path / "state.db"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="damaged") as caught:
        _sqlite(tmp_path)
    assert "backup" in caught.value.hint
    assert path.read_bytes()[100:] == before[100:]
