from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.stores import open_store

from strongroom.crypto import jose
from strongroom.crypto.proof import DATASET_HEAD_TYPE
from strongroom.errors import InputError, IntegrityError, VerificationError
from strongroom.kms.datasets import DatasetStore, Step
from strongroom.kms.stores.sql import key_versions, owners
from strongroom.kms.stores.sql import keys as keys_table

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNER = ec.generate_private_key(ec.SECP256R1())
STORE = DatasetStore(SIGNER)
ONE, TWO = ("sha256:" + digit * 64 for digit in "12")


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[sa.Connection]:
    with open_store(tmp_path).transaction() as tx:
        _add_keys(tx)
        yield tx


def _add_keys(tx: sa.Connection) -> None:
    for owner in "ab":
        tx.execute(sa.insert(owners).values(id=owner, name=owner, certificate="", created=""))
        tx.execute(sa.insert(keys_table).values(owner=owner, name="sales", exportable=False, created=""))
        for version, state in enumerate(("enabled", "disabled", "destroying", "destroyed"), 1):
            values = {"version": version, "state": state, "wrapped": b"", "created": ""}
            tx.execute(sa.insert(key_versions).values(owner=owner, name="sales", **values))


def _commit(tx: sa.Connection, head: dict[str, Any], new: str, owner: str = "a", **changes: object) -> dict[str, Any]:
    values = {"epoch": head["epoch"], "manifest": head["manifest"], "new_manifest": new, "versions": [1], **changes}
    return STORE.commit(tx, owner, str(head["dataset"]), Step(**values), now=NOW)


def test_a_new_data_set_is_empty(tx: sa.Connection) -> None:
    head = STORE.create(tx, "a", "sales", now=NOW)
    assert (head["epoch"], head["manifest"], head["key"], head["owner"]) == (0, None, "sales", "a")
    assert len(str(head["dataset"])) == 32
    assert STORE.all(tx, "a") == [{**head, "created": NOW.isoformat(), "updated": NOW.isoformat()}]
    assert STORE.all(tx, "b") == []


def test_commit_is_compare_and_swap(tx: sa.Connection) -> None:
    head = STORE.create(tx, "a", "sales", now=NOW)
    first = _commit(tx, head, ONE)
    assert (first["epoch"], first["manifest"]) == (1, ONE)
    for stale in (head, {**first, "epoch": 2}, {**first, "manifest": TWO}, {**first, "manifest": None}):
        with pytest.raises(IntegrityError, match="another run committed first"):
            _commit(tx, stale, TWO)
    assert STORE.head(tx, "a", str(head["dataset"])) == first
    assert _commit(tx, first, TWO)["epoch"] == 2


@pytest.mark.parametrize("manifest", ["", "sha256:", ONE.upper(), ONE + "0", ONE + "\n", "md5:" + "1" * 64])
def test_what_names_no_manifest(tx: sa.Connection, manifest: str) -> None:
    head = STORE.create(tx, "a", "sales", now=NOW)
    with pytest.raises(InputError):
        _commit(tx, head, manifest)
    with pytest.raises(InputError):
        STORE.accept(tx, "a", str(head["dataset"]), manifest=manifest, versions=[1], now=NOW)


@pytest.mark.parametrize("versions", [[], [0], [-5], [4], [5], [1, 999], [True], ["1"], [1.0], [None]])
def test_T167_a_commit_needs_versions_that_are_there(tx: sa.Connection, versions: list[Any]) -> None:
    head = STORE.create(tx, "a", "sales", now=NOW)
    with pytest.raises(InputError, match="version"):
        _commit(tx, head, ONE, versions=versions)
    with pytest.raises(InputError, match="version"):
        STORE.accept(tx, "a", str(head["dataset"]), manifest=ONE, versions=versions, now=NOW)
    assert _commit(tx, head, ONE, versions=[3, 1, 2])["epoch"] == 1


def test_a_restored_backup_gets_a_new_epoch(tx: sa.Connection) -> None:
    head = _commit(tx, _commit(tx, STORE.create(tx, "a", "sales", now=NOW), ONE), TWO)
    accepted = STORE.accept(tx, "a", str(head["dataset"]), manifest=ONE, versions=[1], now=NOW)
    assert (accepted["epoch"], accepted["manifest"]) == (3, ONE)


def test_another_owner_has_none_of_it(tx: sa.Connection) -> None:
    head = STORE.create(tx, "a", "sales", now=NOW)
    dataset = str(head["dataset"])
    for act in (
        lambda: STORE.head(tx, "b", dataset),
        lambda: _commit(tx, head, ONE, owner="b"),
        lambda: STORE.accept(tx, "b", dataset, manifest=ONE, versions=[1], now=NOW),
        lambda: STORE.forget(tx, "b", dataset),
    ):
        with pytest.raises(InputError, match="no data set"):
            act()
    assert STORE.head(tx, "a", dataset) == head
    STORE.forget(tx, "a", dataset)
    with pytest.raises(InputError, match="no data set"):
        STORE.head(tx, "a", dataset)


def test_a_signed_head_is_of_its_type_and_key_only(tx: sa.Connection) -> None:
    head = STORE.create(tx, "a", "sales", now=NOW)
    token = STORE.signed(head)
    assert jose.verify_jws(token, [SIGNER.public_key()], typ=DATASET_HEAD_TYPE) == head
    for keys, typ in (
        ([SIGNER.public_key()], "eat+jwt"),
        ([ec.generate_private_key(ec.SECP256R1()).public_key()], DATASET_HEAD_TYPE),
    ):
        with pytest.raises(VerificationError):
            jose.verify_jws(token, keys, typ=typ)


@settings(max_examples=20, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([ONE, TWO, None])), max_size=12))
def test_epochs_only_grow_by_one(tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str | None]]) -> None:
    with open_store(tmp_path_factory.mktemp("db")).transaction() as tx:
        _add_keys(tx)
        head = STORE.create(tx, "a", "sales", now=NOW)
        for epoch, manifest in moves:
            right = (epoch, manifest) == (head["epoch"], head["manifest"])
            try:
                after = _commit(tx, {**head, "epoch": epoch, "manifest": manifest}, TWO)
            except IntegrityError:
                assert not right
                continue
            assert right
            assert after["epoch"] == epoch + 1
            head = after
