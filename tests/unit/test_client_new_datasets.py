from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strongroom.client.new_datasets import new_dataset
from strongroom.storage.dataset import Head
from strongroom.storage.places import place


@pytest.mark.parametrize(("epoch", "gone"), [(0, ["DELETE /v1/datasets/" + "ab" * 16]), (1, [])])
def test_a_data_set_that_was_committed_is_not_forgotten_when_its_disk_goes(
    tmp_path: Path, epoch: int, gone: list[str]
) -> None:
    asked: list[str] = []
    head = Head(dataset="ab" * 16, epoch=epoch, key="sales", manifest=None, owner="me")
    client: Any = SimpleNamespace(
        owner="me",
        create_dataset=lambda _: head,
        current=lambda _: head,
        call=lambda method, path: asked.append(f"{method} {path}"),
    )
    with pytest.raises(OSError, match="gone"), new_dataset(client, "sales", place(str(tmp_path / "disk"))):
        raise OSError("the disk is gone")
    assert asked == gone
