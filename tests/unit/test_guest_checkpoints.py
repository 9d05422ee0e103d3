"""Checkpoints of a staged volume: what is whole while the program runs, and what a failed one leaves."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
from tests.unit.test_guest_volumes import EMPTY, RING, Session, get, volume

from strongroom.errors import DeniedError, IntegrityError, StrongroomError, UnavailableError
from strongroom.guest import staging
from strongroom.guest.checkpoints import Checkpoints
from strongroom.guest.staging import StagedVolume
from strongroom.guest.volumes import SealedVolume
from strongroom.storage.dataset import DatasetInfo, load_manifest, write_info
from strongroom.storage.leftovers import KEPT_FOLDER
from strongroom.storage.places import LocalPlace


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
    return staged.place


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
    (work(staged) / "n").symlink_to("nothing")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"1"}
    assert staged.volume.left_out == {}


def test_a_link_to_a_file_is_followed_as_it_changes(staged: StagedVolume, session: Session) -> None:
    def checkpoint() -> dict[str, bytes]:
        time.sleep(2 * staging._TICK_NS / 1e9)
        staged.checkpoint(session)  # type: ignore[arg-type]
        return held(staged, session)

    (work(staged) / "1").write_bytes(b"one")
    (work(staged) / "2").write_bytes(b"two")
    (work(staged) / "latest").symlink_to("1")
    both = {"1": b"one", "2": b"two"}
    assert checkpoint() == both | {"latest": b"one"}
    assert checkpoint() == both | {"latest": b"one"}
    assert session.commits == 1
    (work(staged) / "new").symlink_to("2")
    (work(staged) / "new").rename(work(staged) / "latest")
    assert checkpoint() == both | {"latest": b"two"}
    with open(work(staged) / "2", "r+b") as half:
        half.write(b"TW")
        half.flush()
        assert checkpoint() == both | {"latest": b"two"}
    assert checkpoint() == {"1": b"one", "2": b"TWo", "latest": b"TWo"}
    (work(staged) / "2").unlink()  # what it was stays until the end
    assert checkpoint() == {"1": b"one", "latest": b"TWo"}
    commits = session.commits
    assert staged.sync(None, session) == {(work(staged) / "latest").lstat().st_ino}  # type: ignore[arg-type]
    (work(staged) / "latest").unlink()
    (work(staged) / "latest").symlink_to("1")
    assert staged.sync(None, session) == set()  # type: ignore[arg-type]
    assert session.commits == commits + 1
    assert held(staged, session) == {"1": b"one", "latest": b"one"}
    with open(work(staged) / "latest", "r+b") as file:  # by the link: who reads it there next must find it
        file.write(b"two")
        file.flush()
        assert staged.sync({os.fstat(file.fileno()).st_ino}, session) == set()  # type: ignore[arg-type]
    assert held(staged, session) == {"1": b"two", "latest": b"two"}


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
    checkpoints = Checkpoints([staged], session, 0.01, lambda: None, said.append)  # type: ignore[arg-type]
    checkpoints.start()
    limit = time.monotonic() + 10
    while not said and time.monotonic() < limit:
        time.sleep(0.01)
    checkpoints.stop()
    assert staged.volume.undecided
    assert said == ["no checkpoint could be taken: away"]


def test_a_folder_that_is_renamed_meanwhile_stays_whole(
    staged: StagedVolume, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, step: bytes) -> None:
        folder.mkdir()
        for name in ("model", "optim"):
            (folder / name).write_bytes(step)

    write(work(staged) / "ckpt", b"1")
    staged.checkpoint(session)  # type: ignore[arg-type]
    write(work(staged) / "new", b"2")
    seal = StagedVolume._seal_one

    def rename_between(self: StagedVolume, path: str, *, running: bool, as_is: bool) -> object:
        found = seal(self, path, running=running, as_is=as_is)
        if (work(staged) / "new").exists():
            (work(staged) / "ckpt").rename(work(staged) / "old")
            (work(staged) / "new").rename(work(staged) / "ckpt")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(StagedVolume, "_seal_one", rename_between)
        with pytest.raises(UnavailableError, match="moved"):
            staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"ckpt/model": b"1", "ckpt/optim": b"1"}
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {
        "ckpt/model": b"2", "ckpt/optim": b"2", "old/model": b"1", "old/optim": b"1"
    }  # fmt: skip


def test_a_page_written_through_a_mapping_is_not_lost(staged: StagedVolume, session: Session) -> None:
    path = work(staged) / "a"
    path.write_bytes(b"0" * 4096)
    time.sleep(2 * staging._TICK_NS / 1e9)
    staged.checkpoint(session)  # type: ignore[arg-type]
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:4] == b"0000"  # from now on the page can be written without a fault
        mapped[:4] = b"LATE"
    with staged.volume.changing(session):  # type: ignore[arg-type]
        staged.seal_changes()
        staged.volume.commit(session)  # type: ignore[arg-type]
    assert held(staged, session)["a"][:4] == b"LATE"


def test_a_name_that_no_data_set_holds_waits_for_the_end(staged: StagedVolume, session: Session) -> None:
    (work(staged) / "a").write_bytes(b"1")
    (work(staged) / "k=1").mkdir()
    for name in ("k=1/b", "tab\t", os.fsdecode(b"\xff")):
        (work(staged) / name).write_bytes(b"2")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"1"}


def test_a_job_that_has_failed_commits_no_more(staged: StagedVolume, session: Session) -> None:
    def check() -> None:
        if list(staged.volume.folder.glob(".*strongroom*")):  # something was sealed by then
            raise IntegrityError("an input was altered")

    (work(staged) / "a").write_bytes(b"1")
    with pytest.raises(IntegrityError):
        staged.checkpoint(session, check)  # type: ignore[arg-type]
    assert session.commits == 0
    assert [p.name for p in staged.volume.folder.iterdir()] == [".dataset"]


def test_a_removal_that_fails_loses_nothing(
    staged: StagedVolume, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (work(staged) / name).write_bytes(name.encode())
    staged.checkpoint(session)  # type: ignore[arg-type]
    for name in ("a", "b"):
        (work(staged) / name).unlink()
    move, moved = LocalPlace.move, []

    def fail(self: LocalPlace, path: str, target: str) -> None:
        moved.append(path)
        if moved == ["a", "b"]:
            raise OSError(28, "No space left on device")
        move(self, path, target)

    with monkeypatch.context() as patched:
        patched.setattr(LocalPlace, "move", fail)
        with pytest.raises(UnavailableError):
            staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"a", "b": b"b"}


def test_what_is_written_counts_before_it_is_there_and_for_ever(tmp_path: Path, session: Session) -> None:
    write_info(str(tmp_path / "v"), DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me"))
    limited = SealedVolume(
        name="out", folder=tmp_path / "v", mode="rw", ring=RING, head=EMPTY, run_id=b"r" * 16, max_bytes=1000
    )
    at = StagedVolume(limited, tmp_path / "work")
    at.open_all()
    (work(at) / "a").write_bytes(b"x" * 900)
    at.checkpoint(session)  # type: ignore[arg-type]
    (work(at) / "a").unlink()
    (work(at) / "b").write_bytes(b"y" * 900)
    with pytest.raises(DeniedError, match="allows 1000"):
        at.checkpoint(session)  # type: ignore[arg-type]
    assert [p.name for p in limited.folder.iterdir() if p.name != ".dataset"] == ["a"]


def test_a_folder_in_place_of_a_file_and_back(staged: StagedVolume, session: Session) -> None:
    (work(staged) / "a").write_bytes(b"1")
    staged.checkpoint(session)  # type: ignore[arg-type]
    (work(staged) / "a").unlink()
    (work(staged) / "a").mkdir()
    (work(staged) / "a/b").write_bytes(b"2")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a/b": b"2"}
    (work(staged) / "a/b").unlink()
    (work(staged) / "a").rmdir()
    (work(staged) / "a").write_bytes(b"3")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"3"}


def test_a_file_that_a_checkpoint_missed_on_its_way_is_not_taken_for_removed(
    staged: StagedVolume, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work(staged) / "a").write_bytes(b"1")
    staged.checkpoint(session)  # type: ignore[arg-type]
    (work(staged) / "a").rename(work(staged) / "b")
    with monkeypatch.context() as patched:
        patched.setattr(StagedVolume, "_outputs", lambda _self: iter(()))  # one folder was listed before, one after
        with pytest.raises(UnavailableError, match="moved"):
            staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"1"}
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"b": b"1"}


def test_a_sync_during_which_its_file_was_moved_commits_nothing(
    staged: StagedVolume, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work(staged) / "a").write_bytes(b"mine")
    (work(staged) / "other").write_bytes(b"other")
    wanted = {(work(staged) / "a").stat().st_ino}
    seal = StagedVolume._seal_one
    for back in (False, True):  # and when all is as it was in the end

        def swap(self: StagedVolume, path: str, *, back: bool = back, **how: bool) -> object:
            (work(self) / "a").rename(work(self) / "b")
            (work(self) / "other").rename(work(self) / "a")
            found = seal(self, path, **how)  # type: ignore[arg-type]
            if back:
                (work(self) / "a").rename(work(self) / "other")
                (work(self) / "b").rename(work(self) / "a")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(StagedVolume, "_seal_one", swap)
            with pytest.raises(UnavailableError, match="moved"):
                staged.sync(wanted, session)  # type: ignore[arg-type]
        if not back:
            (work(staged) / "a").rename(work(staged) / "other")
            (work(staged) / "b").rename(work(staged) / "a")
    assert (session.commits, [p.name for p in staged.volume.folder.iterdir()]) == (0, [".dataset"])
    assert staged.sync(wanted, session) == set()  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"mine"}


def test_a_file_with_two_names_waits_under_both_while_it_is_written(staged: StagedVolume, session: Session) -> None:
    (work(staged) / "a").write_bytes(b"whole")
    (work(staged) / "b").hardlink_to(work(staged) / "a")
    staged.checkpoint(session)  # type: ignore[arg-type]
    with open(work(staged) / "a", "wb") as half:
        half.write(b"ha")
        half.flush()
        staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"whole", "b": b"whole"}
    assert staged.sync({(work(staged) / "b").stat().st_ino}, session) == set()  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"ha", "b": b"ha"}


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_that_is_renamed_to_where_it_cannot_be_sealed_stays_where_it_was(
    staged: StagedVolume, session: Session, synced: bool
) -> None:
    (work(staged) / "a").write_bytes(b"1")
    staged.checkpoint(session)  # type: ignore[arg-type]
    target = (work(staged) / "a").rename(work(staged) / "tab\t")
    inode = target.stat().st_ino
    if synced:
        assert staged.sync({inode}, session) == {inode}  # type: ignore[arg-type]
    else:
        staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"a": b"1"}
    target.rename(work(staged) / "b")
    staged.checkpoint(session)  # type: ignore[arg-type]
    assert held(staged, session) == {"b": b"1"}
