"""A run that dies at any moment leaves the version before or the new one, whole, and the next run finds that."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.unit.test_guest_volumes import EMPTY, Session, get, on_disk, publish, volume

from strongroom._encoding import canonical_json, parse_json
from strongroom.guest import staging
from strongroom.guest.staging import StagedVolume
from strongroom.storage.dataset import DatasetInfo, Head, write_info
from strongroom.storage.leftovers import KEPT_FOLDER, was_interrupted
from strongroom.storage.places import TEMPORARY, LocalPlace

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir")
MARKER = b"nobody else's business"
OLD = {"a": MARKER, "d/b": MARKER + b"2", "stays": b"same", "moved/from": b"moved" + MARKER}
NEW = {
    "a": MARKER + b"new", "d": MARKER, "n/e/w": MARKER * 1000, "stays": b"same", "moved-to": b"moved" + MARKER,
    "l": b"same",
}  # fmt: skip


class Kept(Session):
    """A trust service that outlives the guest."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        if file.exists():
            self.head = Head(**parse_json(file.read_bytes(), "head"))  # type: ignore[arg-type]

    def commit(self, *words: object) -> Head:  # type: ignore[override]
        head = super().commit(*words)  # type: ignore[arg-type]
        self._file.write_bytes(canonical_json(asdict(head)))
        return head


def dies(step: int, act: Callable[[Callable[[], None]], None]) -> bool:
    """Run `act` in a process that dies right after its `step`th change of a file system; return whether it did."""
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        return status == 9
    try:
        steps = itertools.count(1)

        def count() -> None:
            if next(steps) == step:
                os._exit(9)

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def change(*words: object, **named: object) -> object:
                found = call(*words, **named)
                count()
                return found

            return change

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        staging._write = counted(staging._write)  # type: ignore[assignment]
        act(count)
    except BaseException as exc:
        print(repr(exc))
        os._exit(1)
    os._exit(0)


def run(root: Path, count: Callable[[], None]) -> None:
    """Change the volume as a job does."""
    session = Kept(root / "head")
    at = StagedVolume(volume(root / "v", session.head), root / "work")
    at.open_all()
    for path in ("d/b", "moved/from"):
        (at.place / path).unlink()
        (at.place / path).parent.rmdir()
    for path, data in NEW.items():
        if OLD.get(path) != data and path != "l":
            (at.place / path).parent.mkdir(parents=True, exist_ok=True)
            (at.place / path).write_bytes(data)
    (at.place / "l").symlink_to("stays")
    commit = session.commit

    def committed(*words: object) -> Head:
        count()
        head = commit(*words)
        count()
        return head

    session.commit = committed  # type: ignore[method-assign, assignment]
    publish(at, session)


def next_run(root: Path) -> None:
    """Begin as `guest/run.py` does, then change nothing."""
    session = Kept(root / "head")
    if was_interrupted(LocalPlace(root / "v")):
        with volume(root / "v", session.head).changing(session):  # type: ignore[arg-type]
            pass
    opened = StagedVolume(volume(root / "v", session.head), root / f"work-{os.urandom(4).hex()}")
    opened.open_all()
    with opened.volume.changing(session):  # type: ignore[arg-type]
        pass


def whole(root: Path) -> int:
    """Return the version, 1 or 2, that is there and nothing else."""
    session, folder = Kept(root / "head"), root / "v"
    after = volume(folder, session.head)
    found = {path: get(after, path) for path, _ in after.paths()}
    assert found in (OLD, NEW)
    disk = on_disk(folder)
    assert not any(MARKER in raw for raw in disk.values())
    manifest = (session.head.manifest or "").removeprefix("sha256:")
    assert disk.keys() == {*found, ".dataset/id.json", f".dataset/{manifest}"}, sorted(disk)
    assert not (folder / KEPT_FOLDER).exists()
    assert not list(folder.rglob(f"{TEMPORARY}*"))
    assert session.head.epoch == (1 if found == OLD else 2)
    return session.head.epoch


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crashes") / "before"
    write_info(str(root / "v"), DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me"))
    session = Kept(root / "head")
    at = StagedVolume(volume(root / "v"), root / "first")
    at.open_all()
    for path, data in OLD.items():
        (at.place / path).parent.mkdir(parents=True, exist_ok=True)
        (at.place / path).write_bytes(data)
    publish(at, session)
    shutil.rmtree(root / "first")
    return root


@pytest.fixture(autouse=True)
def the_machine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def test_T366_a_run_that_dies_at_any_moment_leaves_one_version_whole(before: Path, tmp_path: Path) -> None:
    versions = []
    for step in itertools.count(1):
        root = Path(shutil.copytree(before, tmp_path / str(step)))
        died = dies(step, lambda count, root=root: run(root, count))
        assert not any(MARKER in raw for raw in on_disk(root / "v").values())
        next_run(root)
        versions.append(whole(root))
        if not died:
            break
    assert len(versions) > 20
    assert versions == sorted(versions)  # it is the old one until it is the new one
    assert set(versions) == {1, 2}

    committed = versions.index(2) + 1
    for step, version in ((committed - 1, 1), (committed, 2)):  # who undoes or ends it dies too
        for later in itertools.count(1):
            root = Path(shutil.copytree(before, tmp_path / f"{step}-{later}"))
            assert dies(step, lambda count, root=root: run(root, count))
            died = dies(later, lambda _count, root=root: next_run(root))
            next_run(root)
            assert whole(root) == version
            if not died:
                break


def test_T366_every_name_is_on_the_disk_before_the_commit_that_counts_on_it(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut may take are names whose folder was not flushed since, and files that were not."""
    root = Path(shutil.copytree(before, tmp_path / "cut"))
    old = {p.stat().st_ino for p in (root / "v").rglob("*")}
    folders, files, flushed = set[int](), set[int](), set[int]()
    commits = []

    def noted(name: str) -> Callable[..., object]:
        call = getattr(os, name)

        def change(*words: object, **named: object) -> object:
            found = call(*words, **named)
            at = Path(os.fsdecode(words[0 if name == "mkdir" else 1]))  # type: ignore[arg-type]
            if at.is_relative_to(root / "v"):
                folders.add(at.parent.stat().st_ino)
                files.update({at.stat().st_ino} - old if at.is_file() else ())
            return found

        return change

    def fsync(handle: int) -> None:
        number = os.fstat(handle).st_ino
        folders.discard(number)
        flushed.add(number)

    for name in ("replace", "rename", "mkdir"):
        monkeypatch.setattr(os, name, noted(name))
    monkeypatch.setattr(os, "fsync", fsync)
    real = Kept.commit

    def commit(self: Kept, *words: object) -> Head:
        commits.append((set(folders), files - flushed))
        return real(self, *words)

    monkeypatch.setattr(Kept, "commit", commit)
    run(root, lambda: None)
    assert commits == [(set(), set())]
    assert len(files) == 6  # five of the program's and the list of them
