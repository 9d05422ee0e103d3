"""Saving straight into the sealed form: a link where the guest has a place for it, the plain way elsewhere."""

from pathlib import Path

import pytest

from strongroom.models import straight


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work/v/model").mkdir(parents=True)
    monkeypatch.setattr(straight, "_WORK", tmp_path / "work")
    monkeypatch.setattr(straight, "_PLACE", tmp_path / "work/.sealed")
    return tmp_path / "work/v/model"


def test_a_link_stands_for_the_file_and_is_replaced_by_the_next(volume: Path) -> None:
    place = straight._PLACE / "v"
    place.mkdir(parents=True)
    target = volume / "model.safetensors"
    for content in (b"first", b"second"):
        assert straight.save_straight(lambda path, content=content: path.write_bytes(content), target)  # type: ignore[misc]
        assert target.is_symlink()
        assert target.readlink().parent == place
        assert target.readlink().suffix == ".safetensors"
        assert target.read_bytes() == content
    assert [path.name for path in volume.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("why", ["no place", "another folder", "it fails", "it could not be finished"])
def test_whatever_keeps_it_from_that_leaves_everything_as_it_was(volume: Path, tmp_path: Path, why: str) -> None:
    place = straight._PLACE / "v"
    if why != "no place":
        place.mkdir(parents=True)
    target = (tmp_path if why == "another folder" else volume) / "model.safetensors"
    target.write_bytes(b"before")

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        if why == "it fails":
            raise OSError
        path.unlink()  # as the guest does with what it could not seal

    assert not straight.save_straight(write, target)
    assert target.read_bytes() == b"before"
    assert [path.name for path in target.parent.iterdir() if path.is_file()] == ["model.safetensors"]
    assert why == "no place" or list(place.iterdir()) == []
