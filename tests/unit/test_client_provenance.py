"""What `strongroom model` prints of a job is what its digest covers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from strongroom.attest.policies import job_digest
from strongroom.client.provenance import command_of

DOCUMENT = {"command": ["python3"], "arguments": ["/app/train.py", "3"], "code": {}}


def _command(ran: dict[str, object], kept: object) -> list[str]:
    job = job_digest(ran)
    requests = [{"job": "sha256:00", "job_document": {}}, {"job": job, "job_document": kept}]
    client = SimpleNamespace(call=lambda *_: {"requests": requests})
    return command_of(cast(Any, client), job)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (DOCUMENT, ["python3", "/app/train.py", "3"]),
        ({**DOCUMENT, "arguments": ["/app/train.py", "300"]}, []),
        ({**DOCUMENT, "more": 1}, []),
        ("a text", []),
    ],
)
def test_T363_a_command_is_shown_that_the_jobs_digest_covers(kept: object, said: list[str]) -> None:
    assert _command(DOCUMENT, kept) == said


def test_a_job_of_another_shape_shows_what_it_has() -> None:
    assert _command({"command": "rm", "arguments": ["x", 1]}, {"command": "rm", "arguments": ["x", 1]}) == ["x", "1"]
