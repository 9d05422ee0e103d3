"""What `strongroom model` prints of a job is what its digest covers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from strongroom.attest.policies import job_digest
from strongroom.cli.model import _Model

DOCUMENT = {"command": ["python3"], "arguments": ["/app/train.py", "3"], "code": {}}


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
    job = job_digest(DOCUMENT)
    requests = [{"job": "sha256:00", "job_document": {}}, {"job": job, "job_document": kept}]
    client = SimpleNamespace(call=lambda *_: {"requests": requests})
    none = cast(Any, None)
    model = _Model(folder="m", client=cast(Any, client), ring=none, head=none, manifest=none)
    assert model.command(job) == said
