"""Sessions of guests: what they hold is counted as they come and go, and costs no look at all of them."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

from strongroom.errors import UnavailableError
from strongroom.service import sessions
from strongroom.service.sessions import Sessions


def _guest(expires_at: float = 3600.0) -> Any:
    return SimpleNamespace(claims=SimpleNamespace(root_fingerprint="r"), expires_at=expires_at)


def test_what_is_held_stays_bounded_whoever_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_HELD_CHARS", 5000)
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 40)
    uptime, dice = [0.0], random.Random(7)
    found = Sessions(lambda: uptime[0])
    for number in range(2000):
        name = str(number)
        held = dice.choice((10, 200, 900))
        others = [one.held_chars for one in found._attested.values()]
        found.add(name, _guest(uptime[0] + 50), changes=0, held_chars=held, token=f"token {name}")
        if len(others) < 40 and sum(others) + held > 5000:
            assert max((one.held_chars for one in found._attested.values()), default=0) <= max([*others, held])
            assert (name in found._attested) == (held < 900 or max(others) == 900), "the largest, oldest first, goes"
        uptime[0] += dice.random()
        if number % 7 == 0:
            found.begin("sgx")  # forgets the old
        if number % 11 == 0:
            found.guest(dice.choice(list(found._attested)), lambda _: 1)  # trust was taken back
        assert found._held == sum(one.held_chars for one in found._attested.values()) <= 5000
        assert len(found._attested) <= 40
        assert {one.session for one in found._tokens.values()} == set(found._attested)
        assert len(found._largest) <= 2 * 40 + 1, "nothing is kept of who has gone"


@pytest.mark.parametrize("full", [False, True])
def test_one_more_guest_among_many_costs_little(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    count = 20_000
    monkeypatch.setattr(sessions, "MAX_HELD_CHARS", 10 * count if full else 1 << 30)
    found = Sessions(lambda: 0.0)
    for number in range(count):
        found.add(str(number), _guest(), changes=0, held_chars=10, token=str(number))
    started = time.process_time()
    for number in range(count, count + 2000):
        found.add(str(number), _guest(), changes=0, held_chars=10, token=str(number))
    assert time.process_time() - started < 1.0, "at a millisecond and more each, the event loop waits for it"
    assert len(found._attested) == (count if full else count + 2000)


def test_a_token_stands_for_its_session_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_BY_TOKEN", 2)
    found = Sessions(lambda: 0.0)
    found.add("one", _guest(), changes=0, held_chars=1, token="first")
    found.add("two", _guest(), changes=0, held_chars=1, token="second")
    assert [found.by_token(token) for token in ("first", "", "other", "one", "first")] == ["one", "", "", "", "one"]
    with pytest.raises(UnavailableError, match="token"):
        found.by_token("first")
    assert found.by_token("second") == "two"
    assert found.guest("one", lambda _: 0) is not None
    found.guest("two", lambda _: 1)
    assert found.by_token("second") == "", "it ends with its session"
