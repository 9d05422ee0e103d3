from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.stores import open_store

from strongroom._secret import SecretBytes
from strongroom.errors import DeniedError, InputError, IntegrityError, UnavailableError
from strongroom.kms.datasets import DatasetStore, Step
from strongroom.kms.keys import KeyStore
from strongroom.kms.roots import AESRootKey
from strongroom.kms.stores.sql import key_versions, owners, set_meta

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WEEK = timedelta(days=7)
ROOT, NEW = AESRootKey(SecretBytes(b"r" * 32), "keyfile"), AESRootKey(SecretBytes(b"n" * 32), "keyfile")
SIGNER = ec.generate_private_key(ec.SECP256R1())
MANIFEST = "sha256:" + "5" * 64


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[sa.Connection]:
    store = open_store(tmp_path)
    with store.transaction() as tx:
        for name in ("a", "b"):
            tx.execute(sa.insert(owners).values(id=name, name=name, certificate="", created=""))
        set_meta(tx, "root", ROOT.id.encode())
        KeyStore(ROOT).create(tx, "a", "sales", exportable=False, now=NOW)
        yield tx


def _states(tx: sa.Connection) -> dict[int, str]:
    return {v["version"]: v["state"] for v in KeyStore(ROOT).describe(tx, "a", "sales")["versions"]}  # type: ignore[union-attr]


def _secret(tx: sa.Connection, version: int) -> SecretBytes:
    return KeyStore(ROOT).release(tx, "a", "sales")[version]


def test_a_new_key_has_one_enabled_version(tx: sa.Connection) -> None:
    released = KeyStore(ROOT).release(tx, "a", "sales")
    assert set(released) == {1}
    assert len(released[1]) == 32
    assert not KeyStore(ROOT).exportable(tx, "a", "sales")


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "x" * 65, "\u00e4", ".a", "a\n", "a/b"])
def test_names_that_cannot_be(tx: sa.Connection, name: str) -> None:
    with pytest.raises(InputError):
        KeyStore(ROOT).create(tx, "a", name, exportable=False, now=NOW)


def test_a_name_belongs_to_one_owner(tx: sa.Connection) -> None:
    keys = KeyStore(ROOT)
    with pytest.raises(InputError, match="exists"):
        keys.create(tx, "a", "sales", exportable=False, now=NOW)
    with pytest.raises(InputError, match="no key"):
        keys.describe(tx, "b", "sales")
    keys.create(tx, "b", "sales", exportable=True, now=NOW)
    assert keys.release(tx, "b", "sales")[1] != _secret(tx, 1)
    assert keys.exportable(tx, "b", "sales")
    assert not keys.exportable(tx, "a", "sales")


def test_rotation_keeps_old_versions_and_writes_with_the_new(tx: sa.Connection) -> None:
    first = _secret(tx, 1)
    assert KeyStore(ROOT).rotate(tx, "a", "sales", now=NOW) == 2
    released = KeyStore(ROOT).release(tx, "a", "sales")
    assert max(released) == 2
    assert released[1] == first
    assert released[2] != first
    with pytest.raises(InputError, match="no key"):
        KeyStore(ROOT).rotate(tx, "b", "sales", now=NOW)


def test_a_disabled_version_is_not_released(tx: sa.Connection) -> None:
    keys = KeyStore(ROOT)
    keys.rotate(tx, "a", "sales", now=NOW)
    keys.set_enabled(tx, "a", "sales", 2, False)
    assert set(keys.release(tx, "a", "sales")) == {1}
    keys.set_enabled(tx, "a", "sales", 1, False)
    with pytest.raises(DeniedError, match="enabled"):
        keys.release(tx, "a", "sales")
    keys.set_enabled(tx, "a", "sales", 1, True)
    assert max(keys.release(tx, "a", "sales")) == 1
    with pytest.raises(InputError, match="no version 9"):
        keys.set_enabled(tx, "a", "sales", 9, True)


def test_destruction_waits_and_is_final(tx: sa.Connection) -> None:
    keys = KeyStore(ROOT)
    keys.rotate(tx, "a", "sales", now=NOW)
    when = keys.schedule_destroy(tx, "a", "sales", 1, now=NOW, wait=WEEK)
    assert when == NOW + WEEK
    assert _states(tx) == {1: "destroying", 2: "enabled"}
    assert set(keys.release(tx, "a", "sales")) == {2}
    assert keys.destroy_due(tx, now=when - timedelta(microseconds=1)) == []
    assert keys.destroy_due(tx, now=when) == [("a", "sales", 1)]
    assert keys.destroy_due(tx, now=when) == []
    assert _states(tx) == {1: "destroyed", 2: "enabled"}
    wrapped = tx.execute(sa.select(key_versions.c.wrapped).where(key_versions.c.version == 1)).scalar()
    assert wrapped == b""
    for again in (
        lambda: keys.set_enabled(tx, "a", "sales", 1, True),
        lambda: keys.schedule_destroy(tx, "a", "sales", 1, now=NOW, wait=WEEK),
    ):
        with pytest.raises(InputError, match="destroyed"):
            again()
    assert keys.rotate(tx, "a", "sales", now=NOW) == 3, "numbers are never used twice"


def test_enabling_cancels_a_destruction_and_disabling_does_not(tx: sa.Connection) -> None:
    keys = KeyStore(ROOT)
    keys.schedule_destroy(tx, "a", "sales", 1, now=NOW, wait=WEEK)
    keys.set_enabled(tx, "a", "sales", 1, False)
    assert _states(tx) == {1: "destroying"}
    keys.set_enabled(tx, "a", "sales", 1, True)
    assert keys.destroy_due(tx, now=NOW + 2 * WEEK) == []
    assert _states(tx) == {1: "enabled"}


def test_a_version_that_data_needs_is_not_destroyed(tx: sa.Connection) -> None:
    keys, datasets = KeyStore(ROOT), DatasetStore(SIGNER)
    dataset = str(datasets.create(tx, "a", "sales", now=NOW)["dataset"])
    step = Step(epoch=0, manifest=None, new_manifest=MANIFEST, versions=[1])
    datasets.commit(tx, "a", dataset, step, now=NOW)
    with pytest.raises(InputError, match=dataset):
        keys.schedule_destroy(tx, "a", "sales", 1, now=NOW, wait=WEEK)
    datasets.forget(tx, "a", dataset)
    keys.schedule_destroy(tx, "a", "sales", 1, now=NOW, wait=WEEK)


def test_a_version_that_data_came_to_need_while_it_waited_survives(tx: sa.Connection) -> None:
    keys, datasets = KeyStore(ROOT), DatasetStore(SIGNER)
    secret = _secret(tx, 1)
    dataset = str(datasets.create(tx, "a", "sales", now=NOW)["dataset"])
    keys.schedule_destroy(tx, "a", "sales", 1, now=NOW, wait=WEEK)
    datasets.accept(tx, "a", dataset, manifest=MANIFEST, versions=[1], now=NOW)
    assert keys.destroy_due(tx, now=NOW + WEEK) == []
    assert _states(tx) == {1: "disabled"}
    keys.set_enabled(tx, "a", "sales", 1, True)
    assert _secret(tx, 1) == secret


def test_all_versions_move_to_a_new_root(tx: sa.Connection) -> None:
    keys = KeyStore(ROOT)
    keys.rotate(tx, "a", "sales", now=NOW)
    keys.create(tx, "b", "other", exportable=False, now=NOW)
    keys.set_enabled(tx, "a", "sales", 1, False)
    keys.schedule_destroy(tx, "b", "other", 1, now=NOW, wait=timedelta(0))
    keys.destroy_due(tx, now=NOW)
    second = _secret(tx, 2)
    assert keys.rewrap_all(tx, NEW) == 2
    set_meta(tx, "root", NEW.id.encode())
    keys.use(NEW)
    assert keys.release(tx, "a", "sales") == {2: second}
    keys.set_enabled(tx, "a", "sales", 1, True)
    assert set(keys.release(tx, "a", "sales")) == {1, 2}


def test_nothing_is_wrapped_or_read_under_a_root_that_is_not_in_force(tx: sa.Connection) -> None:
    keys = KeyStore(ROOT)
    keys.rewrap_all(tx, NEW)
    set_meta(tx, "root", NEW.id.encode())
    for act in (
        lambda: keys.create(tx, "a", "late", exportable=False, now=NOW),
        lambda: keys.rotate(tx, "a", "sales", now=NOW),
        lambda: keys.release(tx, "a", "sales"),
        lambda: keys.rewrap_all(tx, ROOT),
    ):
        with pytest.raises(UnavailableError, match="being rotated"):
            act()


@pytest.mark.parametrize("column", ["owner", "name", "version", "wrapped"])
def test_a_stored_key_that_was_moved_or_altered_does_not_open(tx: sa.Connection, column: str) -> None:
    keys = KeyStore(ROOT)
    keys.create(tx, "b", "sales", exportable=False, now=NOW)
    keys.create(tx, "a", "other", exportable=False, now=NOW)
    row = tx.execute(sa.select(key_versions).where(key_versions.c.owner == "a", key_versions.c.name == "sales")).one()
    at, target = {
        "owner": (("b", "sales"), {"wrapped": row.wrapped}),
        "name": (("a", "other"), {"wrapped": row.wrapped}),
        "version": (("a", "sales"), {"version": 2}),
        "wrapped": (("a", "sales"), {"wrapped": row.wrapped[:-1] + bytes([row.wrapped[-1] ^ 1])}),
    }[column]
    tx.execute(
        sa.update(key_versions).where(key_versions.c.owner == at[0], key_versions.c.name == at[1]).values(**target)
    )
    with pytest.raises(IntegrityError, match="altered or moved"):
        keys.release(tx, *at)
