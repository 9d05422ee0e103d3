"""What `doctor` says about swap."""

from pathlib import Path

import pytest

from strongroom.cli.doctor import _has_swap

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.mark.parametrize(
    ("table", "there"), [(HEAD, False), (HEAD + "/dev/sda2  partition  1048572  0  -2\n", True), ("", False)]
)
def test_swap_is_seen(tmp_path: Path, table: str, there: bool) -> None:
    (tmp_path / "swaps").write_text(table)
    assert _has_swap(tmp_path / "swaps") is there
    assert not _has_swap(tmp_path / "no such file")
