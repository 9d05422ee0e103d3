from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.stores import open_store

from strongroom.errors import InputError
from strongroom.kms.policies import PolicyStore, difference

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STORE = PolicyStore()
POLICY = {"kind": "all_of", "policies": [{"kind": "measurement", "values": ["a1" * 32]}, {"kind": "not_debug"}]}


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[sa.Connection]:
    with open_store(tmp_path).transaction() as tx:
        yield tx


def _refuse(tx: sa.Connection, owner: str = "a", job: str = "sha256:1", **document: object) -> int:
    return STORE.record_refusal(tx, owner, "sales", job=job, measurement="a1", document={"d": 1, **document}, now=NOW)


def test_no_policy_is_no_policy(tx: sa.Connection) -> None:
    assert STORE.get(tx, "a", "sales")["revision"] == 0
    assert STORE.policy(STORE.get(tx, "a", "sales"), "read") is None


def test_each_use_has_its_own_policy(tx: sa.Connection) -> None:
    assert STORE.put(tx, "a", "sales", {"read": POLICY}, now=NOW) == 1
    assert STORE.policy(STORE.get(tx, "a", "sales"), "read") is not None
    assert STORE.policy(STORE.get(tx, "a", "sales"), "write") is None
    assert STORE.policy(STORE.get(tx, "b", "sales"), "read") is None
    assert STORE.put(tx, "a", "sales", {"write": POLICY}, now=NOW) == 2
    assert STORE.policy(STORE.get(tx, "a", "sales"), "read") is None, "the whole document is replaced"


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "x",
        {"execute": POLICY},
        {"read": {}},
        {"read": {"kind": "always"}},
        {"read": {**POLICY, "x": 1}},
        {"read": []},
    ],
)
def test_what_is_no_policy_changes_nothing(tx: sa.Connection, document: object) -> None:
    STORE.put(tx, "a", "sales", {"read": POLICY}, now=NOW)
    with pytest.raises(InputError):
        STORE.put(tx, "a", "sales", document, now=NOW)
    assert STORE.get(tx, "a", "sales")["revision"] == 1


def test_a_job_refused_again_is_one_request(tx: sa.Connection) -> None:
    number = _refuse(tx)
    assert _refuse(tx, reasons=["x"]) == number
    assert _refuse(tx, job="sha256:2") != number
    found = STORE.request(tx, "a", number)
    assert (found["seen"], found["state"], found["reasons"]) == (2, "pending", ["x"])
    assert len(STORE.requests(tx, "a")) == 2


def test_requests_belong_to_their_owner(tx: sa.Connection) -> None:
    number = _refuse(tx)
    assert STORE.requests(tx, "b") == []
    for act in (
        lambda: STORE.request(tx, "b", number),
        lambda: STORE.close_request(tx, "b", number, "approved"),
    ):
        with pytest.raises(InputError, match="no request"):
            act()
    assert STORE.last_approved(tx, "b", "sales") is None


def test_the_last_approved_job_is_remembered(tx: sa.Connection) -> None:
    assert STORE.last_approved(tx, "a", "sales") is None
    for turn in range(3):
        later = NOW + timedelta(minutes=turn)
        values = {"job": f"sha256:{turn}", "measurement": "a1", "document": {"turn": turn}, "now": later}
        STORE.record_approval(tx, "a", "sales", **values)  # type: ignore[arg-type]
    assert STORE.last_approved(tx, "a", "sales") == {"turn": 2}
    assert STORE.last_approved(tx, "a", "other") is None


def test_strangers_cannot_fill_the_list(tx: sa.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.kms.policies._MAX_PENDING", 5)
    mine = _refuse(tx, owner="b")
    for turn in range(20):
        _refuse(tx, job=f"sha256:{turn}")
    assert len(STORE.requests(tx, "a")) <= 6
    assert STORE.request(tx, "b", mine)["id"] == mine


def test_strangers_do_not_push_out_what_was_approved(tx: sa.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.kms.policies._MAX_PENDING", 5)
    STORE.record_approval(tx, "a", "sales", job="sha256:good", measurement="a1", document={"d": 0}, now=NOW)
    for turn in range(20):
        _refuse(tx, job=f"sha256:{turn}")
    assert STORE.last_approved(tx, "a", "sales") == {"d": 0}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(old=json_values, new=json_values)
def test_a_difference_is_empty_exactly_for_equal_documents(old: object, new: object) -> None:
    assert difference(old, old) == []
    if repr(old) == repr(new):
        assert difference(old, new) == []


def test_a_difference_names_the_place() -> None:
    old = {"arguments": ["app.py", "1"], "environment": {"A": "x"}}
    new = {"arguments": ["app.py", "2"], "environment": {"A": "x", "B": "y"}}
    assert difference(old, new) == ['arguments[1]: "1" -> "2"', 'environment.B: (none) -> "y"']
