"""What `doctor` says about swap and the cache."""

from pathlib import Path

import pytest

from strongroom.cli.doctor import _has_swap, _machine
from strongroom.jobs import runtime_cache

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.mark.parametrize(
    ("table", "there"), [(HEAD, False), (HEAD + "/dev/sda2  partition  1048572  0  -2\n", True), ("", False)]
)
def test_swap_is_seen(tmp_path: Path, table: str, there: bool) -> None:
    (tmp_path / "swaps").write_text(table)
    assert _has_swap(tmp_path / "swaps") is there
    assert not _has_swap(tmp_path / "no such file")


def test_it_says_what_the_cache_holds_and_how_to_clear_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_CACHE", str(tmp_path))
    rows = {name: detail for name, _, detail in _machine()}
    assert rows["cache"] == f"empty: {tmp_path}/runtimes"
    one, two = tmp_path / "runtimes/env-1", tmp_path / "runtimes/env-2"
    one.mkdir(parents=True)
    two.mkdir()
    (one / "a").write_bytes(bytes(54 << 20))
    (two / "a").hardlink_to(one / "a")
    rows = {name: detail for name, _, detail in _machine()}
    how = f"unused ones go after 7 days, all if no job runs: rm -r {tmp_path}/runtimes"
    assert rows["cache"] == f"0.1 GiB in 2 runtimes; {how}"
    monkeypatch.setattr(runtime_cache, "_MAX_COUNTED", 0)
    rows = {name: detail for name, _, detail in _machine()}
    assert rows["cache"].startswith("more than 0.0 GiB in 2 runtimes")
