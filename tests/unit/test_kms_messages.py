"""What the service's messages take: whole texts, and nothing behind them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from strongroom.kms.messages import Digest
from strongroom.service.guest_messages import CommitStatement
from strongroom.service.openapi import openapi

STATEMENT = {
    "dataset": "d", "epoch": 1, "manifest": None, "new_manifest": f"sha256:{'0' * 64}", "versions": [1],
    "inputs": {"v": {"epoch": 1, "manifest": f"sha256:{'1' * 64}"}},
}  # fmt: skip


def test_a_digest_has_no_line_end() -> None:
    assert msgspec.convert(STATEMENT, CommitStatement).new_manifest == STATEMENT["new_manifest"]
    for text in (f"sha256:{'0' * 64}\n", f"sha256:{'0' * 63}", f"sha256:{'0' * 65}", f"\nsha256:{'0' * 64}"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, Digest)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**STATEMENT, "inputs": {"v": {"epoch": 1, "manifest": text}}}, CommitStatement)


def test_every_pattern_of_a_body_ends_where_the_text_does() -> None:
    found = list(patterns(openapi()["components"]))
    assert len(found) >= 5
    for schema in found:
        assert "maxLength" in schema or schema["pattern"].endswith(r"$(?!\n)"), schema


def patterns(value: object) -> Iterator[dict[str, object]]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value
        for inner in value.values():
            yield from patterns(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from patterns(inner)
