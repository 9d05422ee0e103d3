"""`strongroom data restore` beside a job that ends at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from tests.unit.test_guest_volumes import EMPTY, RING, put, volume

from strongroom.cli import data
from strongroom.errors import InputError
from strongroom.storage.dataset import DatasetInfo, write_info
from strongroom.storage.leftovers import begin_changes
from strongroom.storage.places import LocalPlace


def test_T408_restore_leaves_an_output_that_waits_by_the_time_it_holds_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me")
    write_info(str(tmp_path / "v"), info)
    waiting: list[dict[str, object]] = []
    client = SimpleNamespace(
        call=lambda *_: {"outputs": list(waiting)}, current=lambda _: EMPTY, key_ring=lambda _: RING
    )

    @contextmanager
    def held(folder: str, _client: object) -> Iterator[LocalPlace]:
        at = LocalPlace(folder)  # a job had it until now, and has handed in its output
        begin_changes(at)
        put(volume(tmp_path / "v"), "report", b"for its owner to look at")
        waiting.append({"dataset": EMPTY.dataset})
        yield at

    monkeypatch.setattr(data, "owner", lambda: client)
    monkeypatch.setattr(data, "owned", lambda *_: info)
    monkeypatch.setattr(data, "held", held)
    done = CliRunner().invoke(data.command, ["restore", str(tmp_path / "v")])
    assert isinstance(done.exception, InputError), done.output
    assert "waits for you" in str(done.exception)
    assert (tmp_path / "v/report").exists()
