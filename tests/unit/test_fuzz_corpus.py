"""The fuzzers' seeds and past findings (`found-*`), each through its target once: what `make fuzz` starts from."""

from __future__ import annotations

import pytest
from fuzz.run import CORPUS
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_T250_every_kept_input_is_accepted_or_refused_in_order(name: str) -> None:
    target, outcomes = TARGETS[name], {}
    for path in sorted((CORPUS / name).iterdir()):
        try:
            target.run(path.read_bytes())
            outcomes[path.name] = "accepted"
        except target.refusals as refusal:
            outcomes[path.name] = str(refusal)
    # A target whose seeds are all refused looks at nothing: the format changed, and its seeds have to be made anew.
    assert "accepted" in outcomes.values(), outcomes


def test_no_corpus_is_without_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
