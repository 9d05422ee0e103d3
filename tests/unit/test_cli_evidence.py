"""Evidence and policies as files that somebody else wrote: what is read of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.attest.appraisal import policy_from_json
from strongroom.cli.evidence import read_evidence, read_policy
from strongroom.errors import InputError

STRICT = '"policies": [{"kind": "not_debug"}]'
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "RecursionError"),
        ('{"kind": "all_of", ' + STRICT + ', "policies": [{"kind": "unsafe_accept_simulated"}]}', "is not JSON"),
        ('{"kind": "all_of", "policies": NaN}', "is not JSON"),
        ('{"kind":', "is not JSON"),
    ],
)
@pytest.mark.parametrize("read", [read_policy, read_evidence])
def test_T409_a_file_that_readers_understand_differently_is_refused(
    tmp_path: Path, read: Callable[[Path], object], text: str, reason: str
) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError, match=reason):
        read(tmp_path / "file")


def test_a_policy_as_it_stands(tmp_path: Path) -> None:
    text = '{"kind": "all_of", ' + STRICT + "}"
    (tmp_path / "file").write_text(text)
    assert read_policy(tmp_path / "file") == policy_from_json(json.loads(text))
    with pytest.raises(InputError, match="none is not readable: No such file"):
        read_policy(tmp_path / "none")
