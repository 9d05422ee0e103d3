"""A hostile workload against the key agent. T124-T127, T171-T173 of docs/threat-model.md."""

from pathlib import Path

import pytest
from tests.unit.test_guest_agent import (  # noqa: F401  # fixtures, and tests that belong to both pages
    agent,
    path,
    test_T124_a_volume_that_the_job_has_not,
    test_T127_nothing_is_read_after_the_lease_ended,
    test_T171_a_column_key_that_the_job_has_not,
    test_T172_wrapping_with_a_key_for_reading,
    test_T173_a_column_key_of_another_named_key_or_altered,
)

from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.keyagent.client import KeyAgentClient
from strongroom.keyagent.protocol import Operation

NAMES = ["../x", "/etc/passwd", "a/../../b", "a\0b", ".dataset/id.json", "..", "", "a//b"]


@pytest.mark.parametrize("name", NAMES)
def test_T125_path_traversal_at_the_key_agent(path: str, name: str) -> None:  # noqa: F811
    with KeyAgentClient(path) as client:
        client.call(Operation.CREATE, "out", "good")
        client.call(Operation.FINISH, "out", "good", 1)
        for operation, fields in (
            (Operation.CREATE, (name,)),
            (Operation.OPEN, (name, bytes(184))),
            (Operation.FINISH, (name, 1)),
            (Operation.RENAME, ("good", name)),
            (Operation.RENAME, (name, "good")),
            (Operation.ABORT, (name,)),
        ):
            with pytest.raises(InputError):
                client.call(operation, "out", *fields)
        assert client.call(Operation.LIST, "out", "")[0] == b"good"


def test_T126_open_with_a_swapped_prefix(path: str) -> None:  # noqa: F811
    with KeyAgentClient(path) as client:
        prefixes = {}
        for name in ("a", "b"):
            prefixes[name], _ = client.call(Operation.CREATE, "out", name)
            client.call(Operation.FINISH, "out", name, 1)
        with pytest.raises(IntegrityError, match="a: swapped"):
            client.call(Operation.OPEN, "out", "a", prefixes["b"])


def test_T126_writing_a_read_only_volume(path: str) -> None:  # noqa: F811
    with KeyAgentClient(path) as client, pytest.raises(DeniedError, match="read-only"):
        client.call(Operation.CREATE, "in", "a")


def test_T126_finish_of_a_file_never_created(path: str, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "out" / "plain").write_text("plaintext put there by other means")
    with KeyAgentClient(path) as client, pytest.raises(InputError, match="not created"):
        client.call(Operation.FINISH, "out", "plain", 34)
