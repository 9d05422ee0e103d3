from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.client.seen import Seen
from strongroom.errors import IntegrityError
from strongroom.kms.audit_chain import AuditHead


def _head(seq: int, chain: str = "") -> AuditHead:
    return AuditHead(seq=seq, chain=chain or f"{seq:064x}")


def test_what_was_seen_survives(tmp_path: Path) -> None:
    seen = Seen.load(tmp_path / "seen.json")
    seen.see_head(_head(5))
    seen.see_epoch("d", 3)
    again = Seen.load(tmp_path / "seen.json")
    assert (again.head, again.epochs) == (_head(5), {"d": 3})


def test_less_than_what_was_seen_is_refused(tmp_path: Path) -> None:
    seen = Seen(path=tmp_path / "seen.json")
    seen.see_head(_head(5))
    seen.see_epoch("d", 3)
    seen.see_head(_head(5))
    seen.see_epoch("d", 3)
    for act, words in (
        (lambda: seen.see_head(_head(4)), "older database"),
        (lambda: seen.see_head(_head(5, "f" * 64)), "rewritten"),
        (lambda: seen.see_epoch("d", 2), "older database"),
    ):
        with pytest.raises(IntegrityError, match=words):
            act()
    assert Seen.load(tmp_path / "seen.json").head == _head(5)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"head": {}, "epochs": {}}', '{"head": null}'])
def test_a_damaged_memory_is_not_forgotten(tmp_path: Path, text: str) -> None:
    (tmp_path / "seen.json").write_text(text)
    with pytest.raises(IntegrityError, match="damaged"):
        Seen.load(tmp_path / "seen.json")


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=20))
def test_commands_side_by_side_take_nothing_back(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[bool, int]]
) -> None:
    path = tmp_path_factory.mktemp("seen") / "seen.json"
    both = [Seen(path=path), Seen(path=path)]
    highest = 0
    for first, seq in turns:
        try:
            both[first].see_head(_head(seq))
            both[first].see_epoch("d", seq)
        except IntegrityError:
            continue
        highest = max(highest, seq)
        found = Seen.load(path)
        assert found.head == _head(highest)
        assert found.epochs == {"d": highest}
