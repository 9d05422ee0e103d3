"""Checkpoints of a staged volume: what is whole while the program runs, and what a failed one leaves."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
from tests.unit.test_guest_volumes import EMPTY, RING, Session, get, volume

from strongroom.errors import IntegrityError, StrongroomError, UnavailableError
from strongroom.guest import staging
from strongroom.guest.staging import Checkpoints, StagedVolume
from strongroom.storage.dataset import DatasetInfo, load_manifest, write_info
from strongroom.storage.leftovers import KEPT_FOLDER


class Shaky(Session):
    """A trust service that is away now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.away: StrongroomError | None = None

    def commit(self, *words: object) -> object:  # type: ignore[override]
        if self.away is not None:
            raise self.away
        return super().commit(*words)  # type: ignore[arg-type]


@pytest.fixture
def session() -> Shaky:
    return Shaky()


@pytest.fixture
def staged(tmp_path: Path) -> StagedVolume:
    write_info(str(tmp_path / "v"), DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me"))
    at = StagedVolume(volume(tmp_path / "v"), tmp_path / "work")
    at.open_all()
    return at


def work(staged: StagedVolume) -> Path:
    return staged._place


def held(staged: StagedVolume, session: Session) -> dict[str, bytes]:
    """Return what the head names, read as the next run does."""
    if session.head.manifest is None:
        return {}
    manifest = load_manifest(str(staged.volume.folder), session.head, RING)
    again = volume(staged.volume.folder, session.head, "ro")
    return {e.path: get(again, e.path) for e in manifest.entries}


def test_whole_files_are_committed_and_changes_follow(staged: StagedVolume, session: Session) -> None:
    (work(staged) / "d").mkdir()
    (work(staged) / "a").write_bytes(b"one")
    (work(staged) / "d/b").write_bytes(b"two")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"one", "d/b": b"two"}
    (work(staged) / "a").write_bytes(b"three")
    (work(staged) / "d/b").unlink()
    (work(staged) / "c").write_bytes(b"four")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"three", "c": b"four"}
    assert not (staged.volume.folder / KEPT_FOLDER).exists()


def test_a_file_that_is_open_or_mapped_for_writing_waits(staged: StagedVolume, session: Session) -> None:
    path = work(staged) / "a"
    path.write_bytes(b"whole")
    staged.checkpoint(session)  # type: ignore[arg-type]
    with open(path, "r+b") as half:
        half.write(b"HA")
        half.flush()
        staged.checkpoint(session)  # type: ignore[arg-type]
        assert held(staged, session) == {"a": b"whole"}
        mapped = mmap.mmap(half.fileno(), 0)
    mapped[2:4] = b"LF"
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"whole"}
    mapped.close()
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"HALFe"}


def test_a_change_in_the_same_tick_is_not_lost(staged: StagedVolume, session: Session) -> None:
    path = work(staged) / "a"
    path.write_bytes(b"1")
    staged.checkpoint(session)  # type: ignore[arg-type]
    info = path.stat()
    with open(path, "r+b") as out:
        out.write(b"2")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"2"}


def test_nothing_new_commits_nothing(staged: StagedVolume, session: Session) -> None:
    staged.checkpoint(session)  # type: ignore[arg-type]
    (work(staged) / "a").write_bytes(b"1")
    time.sleep(2 * staging._TICK_NS / 1e9)
    for _ in range(3):
        staged.checkpoint(session)  # type: ignore[arg-type]
    assert session.commits == 1


def test_a_link_is_neither_followed_nor_the_end(staged: StagedVolume, session: Session, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_bytes(b"secret")
    (work(staged) / "a").write_bytes(b"1")
    (work(staged) / "l").symlink_to(tmp_path / "elsewhere/secret")
    (work(staged) / "f").symlink_to(tmp_path / "elsewhere")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"1"}


def test_a_folder_that_becomes_a_link_meanwhile(staged: StagedVolume, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_bytes(b"secret")
    (work(staged) / "d").symlink_to(tmp_path / "elsewhere")
    assert staged._seal_one("d/secret", running=True) is None
    assert [p.name for p in staged.volume.folder.iterdir()] == [".dataset"]


def test_a_checkpoint_that_fails_leaves_the_last_one_and_the_next_is_whole(
    staged: StagedVolume, session: Shaky
) -> None:
    (work(staged) / "a").write_bytes(b"1")
    staged.checkpoint(session)  # type: ignore[arg-type]
    (work(staged) / "a").write_bytes(b"2")
    (work(staged) / "b").write_bytes(b"new")
    session.away = IntegrityError("another run committed first")
    with pytest.raises(IntegrityError):
        staged.checkpoint(session)  # type: ignore[arg-type]
    session.away = None
    again = StagedVolume(staged.volume, work(staged))
    again._seen = staged._seen
    again.checkpoint(session)  # type: ignore[arg-type]
    assert held(again, session) == {"a": b"2", "b": b"new"}


def test_a_service_that_is_away_stops_the_job_only_if_a_commit_is_open(staged: StagedVolume, session: Shaky) -> None:
    said: list[str] = []
    (work(staged) / "a").write_bytes(b"1")
    session.away = UnavailableError("away")
    checkpoints = Checkpoints([staged], session, 0.01, said.append)  # type: ignore[arg-type]
    checkpoints.start()
    limit = time.monotonic() + 10
    while not said and time.monotonic() < limit:
        time.sleep(0.01)
    checkpoints.stop()
    assert staged.volume.undecided
    assert said == ["no checkpoint could be taken: away"]
