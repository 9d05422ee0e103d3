# ruff: noqa: E501  # programs and tables
"""SealedVolume: what a file may become while a job runs, and what a commit accepts."""

import errno
import io
import os
import resource
import shutil
import threading
import types
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from strongroom._secret import SecretBytes
from strongroom.crypto.header import PREFIX_BYTES
from strongroom.crypto.keys import StaticKeyRing
from strongroom.crypto.stream import Reader, Writer
from strongroom.errors import DeniedError, InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.guest.session import Grant
from strongroom.guest.staging import StagedVolume
from strongroom.guest.straight import StraightFile, walk
from strongroom.guest.volumes import SealedVolume
from strongroom.keyagent.protocol import FOLDER, OPEN_FILE
from strongroom.storage.dataset import DatasetInfo, Head, load_manifest, write_info

KEY = SecretBytes(b"1" * 32)
RING = StaticKeyRing("sales", {1: KEY})
RUN = b"r" * 16
EMPTY = Head(dataset="ab" * 16, epoch=0, key="sales", manifest=None, owner="me")


class Session:
    """The trust service as a volume sees it: one head, compare and swap."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.head = EMPTY
        self.commits = 0

    def commit(self, owner: str, expected: Head, manifest: str, versions: list[int]) -> Head:
        if expected != self.head:
            raise IntegrityError("another run committed first")
        self.commits += 1
        self.head = Head(
            dataset=expected.dataset, epoch=expected.epoch + 1, key="sales", manifest=manifest, owner=owner
        )
        return self.head

    def key(self, owner: str, name: str) -> Grant:
        return Grant(ring=RING, heads={self.head.dataset: self.head}, run_id=RUN, ends_at=1e9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_info(str(tmp_path / "v"), DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me"))
    return tmp_path / "v"


def volume(folder: Path, head: Head = EMPTY, mode: str = "rw", ring: StaticKeyRing = RING) -> SealedVolume:
    return SealedVolume(name="out", folder=folder, mode=mode, ring=ring, head=head, run_id=RUN)


def put(at: SealedVolume, path: str, data: bytes = b"data") -> None:
    prefix, secret = at.create(path)
    (at.folder / path).parent.mkdir(parents=True, exist_ok=True)
    with open(at.folder / path, "wb", buffering=0) as out, Writer(out, prefix, secret) as writer:
        writer.copy_from(io.BytesIO(data))
    at.finish(path, len(data))


def get(at: SealedVolume, path: str) -> bytes:
    raw = (at.folder / path).read_bytes()
    secret, size = at.open(path, raw[:PREFIX_BYTES])
    opened = Reader(io.BytesIO(raw), secret).readall()
    assert len(opened) == size
    return opened


@pytest.fixture
def committed(folder: Path) -> tuple[Session, Path]:
    session, first = Session(), volume(folder)
    put(first, "a")
    put(first, "d/b", b"bb")
    assert first.commit(session) == session.head  # type: ignore[arg-type]
    return session, folder


def test_a_created_file_is_not_there_before_finish(folder: Path) -> None:
    at = volume(folder)
    prefix, _ = at.create("x")
    assert at.list("") == {"x": OPEN_FILE}
    assert at.paths() == []
    with pytest.raises(IntegrityError, match="x: added"):
        at.open("x", prefix)
    at.finish("x", 4)
    assert at.list("") == {"x": 4}


def test_round_trip_before_and_after_commit(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    again = volume(folder, session.head, "ro")
    assert (get(again, "a"), get(again, "d/b")) == (b"data", b"bb")
    assert again.paths() == [("a", 4), ("d/b", 2)]
    assert again.list("") == {"a": 4, "d": FOLDER}
    assert again.list("d") == {"b": 2}
    assert again.list("nothing") == {}


def test_abort_and_finish_of_what_was_not_created(folder: Path) -> None:
    at = volume(folder)
    at.create("x")
    at.abort("x")
    for path in ("x", "never"):
        with pytest.raises(InputError, match="not created"):
            at.finish(path, 1)
    at.abort("never")
    assert at.list("") == {}


def test_finish_with_an_impossible_size(folder: Path) -> None:
    at = volume(folder)
    at.create("x")
    for size in (FOLDER, OPEN_FILE, 1 << 53):
        with pytest.raises(InputError, match="cannot hold"):
            at.finish("x", size)


def test_rename_of_files_folders_and_open_files(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    at.create("d/open")
    at.rename("d", "e")
    at.rename("a", "e/a")
    assert at.list("") == {"e": FOLDER}
    assert at.list("e") == {"b": 2, "a": 4, "open": OPEN_FILE}
    assert [at.stat(path) for path in ("e", "e/b", "e/open", "e/none", "none")] == [FOLDER, 2, OPEN_FILE, None, None]
    at.finish("e/open", 1)
    at.rename("unknown", "else")
    with pytest.raises(IntegrityError, match="d/b: added"):
        at.open("d/b", bytes(PREFIX_BYTES))


def test_rename_does_not_touch_names_that_only_begin_alike(folder: Path) -> None:
    at = volume(folder)
    put(at, "dir/a")
    put(at, "dirty")
    at.rename("dir", "x")
    assert at.list("") == {"x": FOLDER, "dirty": 4}
    at.delete("di")
    at.delete("x")
    assert at.list("") == {"dirty": 4}


def test_rename_onto_a_file_replaces_it_and_commits(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    os.replace(folder / "a", folder / "d/b")
    at.rename("a", "d/b")
    at.commit(session)  # type: ignore[arg-type]
    assert get(volume(folder, session.head), "d/b") == b"data"


def test_delete_of_everything(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    at.create("open")
    at.delete("")
    assert at.list("") == {}
    for path in ("a", "d/b"):
        (folder / path).unlink()
    assert at.commit(session) is not None  # type: ignore[arg-type]
    assert load_manifest(str(folder), session.head, RING).entries == ()


def test_unchanged_and_read_only_volumes_do_not_commit(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    assert volume(folder, session.head).commit(session) is None  # type: ignore[arg-type]
    assert volume(folder, session.head, "ro").commit(session) is None  # type: ignore[arg-type]
    assert session.commits == 1


def test_read_only_refuses_every_change(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head, "ro")
    for change in (
        lambda: at.create("x"),
        lambda: at.finish("a", 4),
        lambda: at.rename("a", "x"),
        lambda: at.delete("a"),
        lambda: at.delete(""),
        lambda: at.keep("a"),
        lambda: at.keep(""),
        lambda: at.abort("a"),
    ):
        with pytest.raises(DeniedError, match="read-only"):
            change()
    assert at.list("") == {"a": 4, "d": FOLDER}


BAD = ["../x", "/etc/passwd", "a/../b", "", ".", "..", "a//b", "a/", "a\0b", "a\nb", ".dataset/x", "d/.dataset", ".~strongroom-1",
       "e\u0301", "x" * 5000, "\udcff"]  # fmt: skip


@pytest.mark.parametrize("path", BAD)
def test_strange_names_are_refused_by_every_operation(folder: Path, path: str) -> None:
    at = volume(folder)
    put(at, "ok")
    operations = [
        lambda: at.open(path, bytes(PREFIX_BYTES)),
        lambda: at.create(path),
        lambda: at.finish(path, 1),
        lambda: at.rename(path, "x"),
        lambda: at.rename("ok", path),
        lambda: at.abort(path),
    ]
    if path:
        operations += [lambda: at.delete(path), lambda: at.list(path)]
    for operation in operations:
        with pytest.raises(InputError):
            operation()
    assert at.list("") == {"ok": 4}


def test_open_says_how_a_file_is_wrong(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    good, other = (folder / "a").read_bytes()[:PREFIX_BYTES], (folder / "d/b").read_bytes()[:PREFIX_BYTES]
    with pytest.raises(IntegrityError, match="a: swapped"):
        at.open("a", other)
    with pytest.raises(IntegrityError, match="a: truncated"):
        at.open("a", good[:-1])
    with pytest.raises(IntegrityError, match="a: swapped"):
        at.open("a", bytes(PREFIX_BYTES))
    for place in range(0, PREFIX_BYTES, 7):  # any byte of header, salt or commitment
        changed = bytearray(good)
        changed[place] ^= 1
        with pytest.raises(StrongroomError):
            at.open("a", bytes(changed))
    strange = SealedVolume(
        name="o", folder=folder, mode="ro", ring=StaticKeyRing("other", {1: KEY}),
        head=Head(dataset="cd" * 16, epoch=0, key="other", manifest=None, owner="me"), run_id=RUN,
    )  # fmt: skip
    strange._files = dict(at._files)
    with pytest.raises(IntegrityError, match="another key or data set"):
        strange.open("a", good)


DISK = {
    "plain text instead": ("a: swapped", lambda f: (f / "a").write_bytes(b"plain text")),
    "plain file added": ("plain: added", lambda f: (f / "plain").write_bytes(b"plain text")),
    "sealed copy added": ("copy: added", lambda f: (f / "copy").write_bytes((f / "a").read_bytes())),
    "dropped": ("a: dropped", lambda f: (f / "a").unlink()),
    "cut": ("a: truncated", lambda f: os.truncate(f / "a", (f / "a").stat().st_size - 1)),
    "extended": ("a: truncated", lambda f: (f / "a").open("ab").write(b"x")),
    "swapped": (
        "swapped",
        lambda f: ((f / "a").rename(f / "x"), (f / "d/b").rename(f / "a"), (f / "x").rename(f / "d/b")),
    ),
    "link to itself elsewhere": (
        "a: swapped",
        lambda f: ((f / "a").rename(f.parent / "a"), (f / "a").symlink_to(f.parent / "a")),
    ),
    "pipe": ("a: swapped", lambda f: ((f / "a").unlink(), os.mkfifo(f / "a"))),
    "folder": ("a: dropped", lambda f: ((f / "a").unlink(), (f / "a").mkdir())),
    "added link": ("l: added", lambda f: (f / "l").symlink_to("a")),
    "added link to a folder": ("l: added", lambda f: (f / "l").symlink_to("/etc")),
    "added pipe": ("p: added", lambda f: os.mkfifo(f / "p")),
}


@pytest.mark.parametrize("change", DISK)
def test_commit_refuses_a_folder_that_is_not_the_view(committed: tuple[Session, Path], change: str) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    put(at, "new")
    match, act = DISK[change]
    act(folder)
    with pytest.raises(IntegrityError, match=match):
        at.commit(session)  # type: ignore[arg-type]
    assert session.commits == 1


def test_what_a_killed_run_left_does_not_block_the_next(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    (folder / ".~strongroom-0123").write_bytes(b"left")
    (folder / "d/.~strongroom-4567").write_bytes(b"left")
    at = volume(folder, session.head)
    with at.changing(session):  # type: ignore[arg-type]
        put(at, "new")
        assert at.commit(session) is not None  # type: ignore[arg-type]
    assert not list(folder.rglob(".~strongroom-*"))


def test_the_loser_of_two_runs_changes_nothing(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    winner, loser = volume(folder, session.head), volume(folder, session.head)
    put(winner, "a", b"winner")
    winner.commit(session)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="another run committed"), loser.changing(session):  # type: ignore[arg-type]
        raise AssertionError
    assert get(volume(folder, session.head), "a") == b"winner"


def test_the_loser_of_two_first_runs_changes_nothing(folder: Path) -> None:
    session, winner, loser = Session(), volume(folder), volume(folder)
    put(winner, "a", b"winner")
    winner.commit(session)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="another run committed"), loser.changing(session):  # type: ignore[arg-type]
        raise AssertionError
    assert get(volume(folder, session.head), "a") == b"winner"


# --- staged


@pytest.fixture
def staged(committed: tuple[Session, Path], tmp_path: Path) -> StagedVolume:
    at = StagedVolume(volume(committed[1], committed[0].head), tmp_path / "work")
    at.open_all()
    return at


def publish(at: StagedVolume, session: Session, left_out: Collection[str] = ()) -> Head | None:
    with at.volume.changing(session):  # type: ignore[arg-type]
        at.seal_changes(left_out)
        return at.volume.commit(session)  # type: ignore[arg-type]


def test_what_is_sealed_is_on_the_disk_before_it_has_its_name(
    staged: StagedVolume, committed: tuple[Session, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.add(os.fstat(handle).st_ino), fsync(handle)))

    def checked(path: Path, target: Path) -> Path:
        assert path.stat().st_ino in flushed
        moved.append(target)
        return replace(path, target)

    moved: list[Path] = []
    monkeypatch.setattr(Path, "replace", checked)
    for number in range(40):
        (staged.place / f"new{number}").write_bytes(b"new")
    publish(staged, committed[0])
    assert len(moved) == 40


def test_staged_files_are_opened_changed_and_sealed(
    staged: StagedVolume, committed: tuple[Session, Path], tmp_path: Path
) -> None:
    session, folder = committed
    work = tmp_path / "work"
    assert (work / "d/b").read_bytes() == b"bb"
    assert publish(staged, session) is None
    (work / "a").write_bytes(b"changed")
    (work / "d/b").unlink()
    (work / "d").rmdir()
    (work / "d").write_bytes(b"a file where a folder was")
    (work / "n/e").mkdir(parents=True)
    (work / "n/e/w").write_bytes(bytes(40_000))
    assert publish(staged, session) is not None
    after = volume(folder, session.head)
    assert [p for p, _ in after.paths()] == ["a", "d", "n/e/w"]
    assert get(after, "a") == b"changed"
    assert get(after, "d") == b"a file where a folder was"


def test_a_change_with_size_and_mtime_restored_is_not_lost(
    staged: StagedVolume, committed: tuple[Session, Path], tmp_path: Path
) -> None:
    path = tmp_path / "work/a"
    times = path.stat()
    with open(path, "r+b") as file:
        file.write(b"DATA")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert publish(staged, committed[0]) is not None
    assert get(volume(committed[1], committed[0].head), "a") == b"DATA"


def test_links_to_files_of_the_volume_are_sealed_as_what_they_lead_to(
    staged: StagedVolume, committed: tuple[Session, Path], tmp_path: Path
) -> None:
    work = staged.place
    (work / "ckpt-3").write_bytes(b"three")
    for name, text in {
        "latest": "ckpt-3", "best": "latest", "d/up": "../latest", "whole": f"{work}/ckpt-3", "again": f"{work}/./d/../whole",
        "a": "d/b",
    }.items():  # fmt: skip
        (work / name).unlink(missing_ok=True)
        (work / name).symlink_to(text)
    os.link(work / "ckpt-3", work / "same")
    publish(staged, committed[0])
    after = volume(committed[1], committed[0].head)
    names = ["again", "best", "ckpt-3", "d/up", "latest", "same", "whole"]
    assert {path: get(after, path) for path, _ in after.paths()} == {"a": b"bb", "d/b": b"bb"} | dict.fromkeys(
        names, b"three"
    )
    assert staged.volume.left_out == {}
    again = StagedVolume(after, tmp_path / "again")
    again.open_all()
    assert not any((again.place / path).is_symlink() for path, _ in after.paths())


LEFT_OUT = {
    "outside": ("out of the volume", lambda at: at.symlink_to("/etc/passwd")),
    "outside from here": ("out of the volume", lambda at: at.symlink_to("d/../../v/a")),
    "beside": ("out of the volume", lambda at: at.symlink_to(f"{at.parent}2/a")),
    "by a link": (
        "out of the volume",
        lambda at: ((at.parent / f"{at.name}e").symlink_to(".."), at.symlink_to(f"{at.name}e/v/a")),
    ),
    "nothing": ("a link to nothing", lambda at: at.symlink_to("nowhere")),
    "below a file": ("a link to nothing", lambda at: at.symlink_to("new/part")),
    "a long name": ("a link to nothing", lambda at: at.symlink_to("x" * 300)),
    "nothing above": ("out of the volume", lambda at: at.symlink_to("/nowhere")),
    "folder": ("not to a file", lambda at: at.symlink_to("d")),
    "volume": ("not to a file", lambda at: at.symlink_to(at.parent)),
    "circle": ("in a circle", lambda at: at.symlink_to("z")),
    "pipe": ("neither a file nor a folder", os.mkfifo),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_T365_what_is_no_file_of_the_volume_is_left_out_by_name_and_nothing_else_is_lost(
    staged: StagedVolume, committed: tuple[Session, Path], kind: str
) -> None:
    reason, leave = LEFT_OUT[kind]
    (staged.place / "new").write_bytes(b"hours of work")
    leave(staged.place / "z")
    (staged.place / "a").unlink()
    leave(staged.place / "a")  # where a file was, that stays
    publish(staged, committed[0])
    after = volume(committed[1], committed[0].head)
    assert {p: get(after, p) for p, _ in after.paths()} == {"a": b"data", "d/b": b"bb", "new": b"hours of work"}
    left = staged.volume.left_out
    assert left.keys() - {"ae", "ze"} == {"a", "z"}
    assert reason in left["z"]


def test_T365_what_a_process_with_files_of_its_own_left_out(
    staged: StagedVolume, committed: tuple[Session, Path]
) -> None:
    (staged.place / "a").unlink()  # as it is where no link came over the pipe
    shutil.rmtree(staged.place / "d")
    publish(staged, committed[0], ["a", "d", "z"])
    after = volume(committed[1], committed[0].head)
    assert {p: get(after, p) for p, _ in after.paths()} == {"a": b"data", "d/b": b"bb"}
    assert staged.volume.left_out.keys() == {"a", "d", "z"}


def test_T417_what_a_process_left_out_that_is_refused_leaves_nothing_sealed(
    staged: StagedVolume, committed: tuple[Session, Path]
) -> None:
    (staged.place / "new").write_bytes(b"new")
    before = sorted(path.name for path in committed[1].rglob("*"))
    with pytest.raises(DeniedError, match="folder names are visible"):
        staged.seal_changes(["day=monday/link"])
    assert sorted(path.name for path in committed[1].rglob("*")) == before


def test_a_folder_that_left_the_volume_behind_a_link_loses_nothing(
    staged: StagedVolume, committed: tuple[Session, Path], tmp_path: Path
) -> None:
    (staged.place / "d").rename(tmp_path / "moved")
    (staged.place / "d").symlink_to(tmp_path / "moved")
    (staged.place / "new").write_bytes(b"new")
    publish(staged, committed[0])
    after = volume(committed[1], committed[0].head)
    assert {p: get(after, p) for p, _ in after.paths()} == {"a": b"data", "d/b": b"bb", "new": b"new"}
    assert staged.volume.left_out == {"d": "a link out of the volume"}


def test_names_that_are_left_out_and_look_alike_are_counted(
    staged: StagedVolume, committed: tuple[Session, Path]
) -> None:
    for number in range(3):
        (staged.place / ("n" * 100 + str(number))).symlink_to("nowhere")
    publish(staged, committed[0])
    assert staged.volume.left_out == {"n" * 100: "a link to nothing", "...": "and others"}


def test_where_holes_are_not_zeros_every_zero_is_written(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    at = StagedVolume(volume(folder, session.head), tmp_path / "work")
    at.open_all()
    (at.place / "zeros").write_bytes(bytes(70_000))
    publish(at, session)
    again = StagedVolume(volume(folder, session.head), tmp_path / "again", holes=False)
    again.open_all()
    assert (again.place / "zeros").read_bytes() == bytes(70_000)
    assert (again.place / "zeros").stat().st_blocks * 512 >= 70_000


def test_holes_stay_holes_and_other_zeros_become_some(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    at = StagedVolume(volume(folder, session.head), tmp_path / "work")
    at.open_all()
    page, parts = (
        b"x" * 4096,
        {0: b"begin", 5_000: bytes(9000) + b"\0y", (3 << 20) - 1: b"z", (12 << 20) + 4096: b"w" * 8192},
    )
    with open(at.place / "sparse", "wb") as file:
        for start, data in parts.items():
            file.seek(start)
            file.write(data)
        file.truncate((20 << 20) + 77)
    for name, data in {
        "zeros": bytes(70_000),
        "one": b"\0",
        "none": b"",
        "all": page * 300,
        "odd": page + bytes(5),
    }.items():
        (at.place / name).write_bytes(data)
    publish(at, session)
    again = StagedVolume(volume(folder, session.head), tmp_path / "again")
    again.open_all()
    for path in (at.place / name for name in ("sparse", "zeros", "one", "none", "all", "odd")):
        assert (again.place / path.name).read_bytes() == path.read_bytes()
    blocks = {name: (again.place / name).stat().st_blocks * 512 for name in ("sparse", "zeros", "all")}
    assert blocks["sparse"] < 100_000
    assert blocks["zeros"] == 0
    assert publish(again, session) is None


def test_what_fits_only_in_part_is_not_opened_cut_off(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    first = volume(folder, session.head)
    with first.changing(session):  # type: ignore[arg-type]
        put(first, "big", b"x" * 150_000)
        first.commit(session)  # type: ignore[arg-type]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the kernel then writes some, and fails the next
    try:
        with pytest.raises(UnavailableError, match="big does not fit into enclave memory"):
            StagedVolume(volume(folder, session.head), tmp_path / "work").open_all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_sparse_file_that_no_disk_holds_is_refused_before_it_is_written(
    staged: StagedVolume, committed: tuple[Session, Path]
) -> None:
    session, folder = committed
    before = on_disk(folder)
    (staged.place / "a").write_bytes(b"changed")
    with open(staged.place / "big.mdb", "wb") as file:
        file.truncate(1 << 43)
    for act in (
        lambda: publish(staged, session),
        lambda: staged.checkpoint(session),  # type: ignore[arg-type]
        lambda: staged.sync(None, session),  # type: ignore[arg-type]
    ):
        with pytest.raises(
            UnavailableError, match=r"output out/big.mdb could not be written: it has 8796093022208 bytes.*disk"
        ) as refused:
            act()
        assert isinstance(refused.value.__cause__, OSError)
        assert refused.value.__cause__.errno == errno.ENOSPC
        assert on_disk(folder) == before


def test_a_file_system_that_does_not_say_what_it_has_is_written_to(
    staged: StagedVolume, committed: tuple[Session, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: (_ for _ in ()).throw(OSError(errno.ENOSYS, "not here")))
    with open(staged.place / "big", "wb") as file:
        file.truncate(17 << 20)
    assert publish(staged, committed[0]) is not None


def test_a_libos_has_no_holes_and_says_a_constant_of_any_disk(
    committed: tuple[Session, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = StagedVolume(volume(committed[1], committed[0].head), tmp_path / "work", holes=False)
    at.open_all()
    constant = types.SimpleNamespace(f_bavail=1, f_frsize=4096, f_blocks=2)
    monkeypatch.setattr(os, "statvfs", lambda _path: constant)
    with open(at.place / "big", "wb") as file:
        file.truncate(17 << 20)
    assert publish(at, committed[0]) is not None


def test_names_that_are_left_out_count_as_output(committed: tuple[Session, Path], tmp_path: Path) -> None:
    at = StagedVolume(volume(committed[1], committed[0].head), tmp_path / "work")
    at.volume._max_bytes = 150
    at.open_all()
    for number in range(3):
        (at.place / f"{number}{'x' * 70}").symlink_to("/nowhere")
    with pytest.raises(DeniedError):
        publish(at, committed[0])


def test_links_by_links_to_what_was_sealed_as_it_was_written(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    file, place = StraightFile(at), f"{tmp_path}/.sealed/out/m"
    file.write(0, memoryview(b"large"))
    file.closing = True
    file.finish()
    staged = StagedVolume(at, tmp_path / "work", lambda link: file if link == place else None)
    staged.open_all()
    for name, text in {"m": place, "latest": "m", "d/up": "../latest", "other": "../.sealed/out/./m"}.items():
        (staged.place / name).symlink_to(text)
    publish(staged, session)
    after = volume(folder, session.head)
    assert {p: get(after, p) for p, _ in after.paths() if p not in ("a", "d/b")} == dict.fromkeys(
        ("m", "latest", "d/up", "other"), b"large"
    )


def _nest(folder: Path, depth: int, name: str = "n") -> str:
    """Make folders in folders below `folder`, which may be too many for one path; return the path of the last."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=at))
    os.close(at)
    return "/".join([name] * depth)


def test_T367_files_in_a_thousand_folders_are_sealed_and_opened(
    staged: StagedVolume, committed: tuple[Session, Path], deep_path: Path
) -> None:
    session, folder = committed
    deep = f"{_nest(staged.place, 1200)}/file"
    publish(staged, session)
    again = StagedVolume(volume(folder, session.head), deep_path / "again", holes=False)
    again.open_all()
    assert (deep_path / "again" / deep).read_bytes() == b""


def test_T367_folders_nested_deeper_than_a_name_can_say_are_refused_in_order(
    staged: StagedVolume, committed: tuple[Session, Path], deep_path: Path
) -> None:
    del deep_path
    _nest(staged.place, 3000)
    with pytest.raises(UnavailableError, match="a folder of volume out cannot be listed: File name too long"):
        publish(staged, committed[0])
    assert committed[0].commits == 1


def test_T367_a_walk_sees_what_is_there_and_looks_at_nothing_else(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "left/out", "gone/x", "swapped/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "link").symlink_to("a")
    seen, descriptors = dict[str, object](), len(os.listdir("/proc/self/fd"))
    for found in walk(tmp_path, ["left", "link"]):
        seen[found.path] = found.link
        if found.path == "gone":
            shutil.rmtree(tmp_path / "gone")
        if found.path == "swapped":
            shutil.rmtree(tmp_path / "swapped")
            (tmp_path / "swapped").symlink_to("left")
        if found.path == "a/b":  # in the middle of it what is above becomes a link
            (tmp_path / "a").rename(tmp_path / "moved")
            (tmp_path / "a").symlink_to("left")
    assert {"left", "left/out", "a/b/out", "swapped/out"}.isdisjoint(seen)
    assert seen.keys() >= {"a", "gone", "swapped"}
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert {f.path: f.link for f in walk(tmp_path, ["left"])} == {
        "moved": None, "moved/b": None, "moved/b/c": None, "moved/b/file": None, "moved/d": None,
        "a": "left", "link": "a", "swapped": "left",
    }  # fmt: skip


@pytest.mark.parametrize("link", ["{}/.sealed/out/model", "../.sealed/out/model", "z"])
def test_a_link_to_what_was_not_written_whole_where_it_is_sealed_at_once_fails(
    staged: StagedVolume, committed: tuple[Session, Path], link: str
) -> None:
    (staged.place / "model").symlink_to(link.format(staged.place.parent))
    if link == "z":
        (staged.place / "z").symlink_to("../.sealed/out/model")
    with pytest.raises(InputError, match=r"out/[mz].* cannot be sealed: it was not written whole"):
        publish(staged, committed[0])
    assert committed[0].commits == 1


@pytest.mark.parametrize("name", ["e\u0301", "a\nb", ".dataset", os.fsdecode(b"\xff")])
def test_outputs_with_names_that_no_data_set_holds_are_refused(
    staged: StagedVolume, committed: tuple[Session, Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "work" / name).write_bytes(b"x")
    with pytest.raises(InputError, match="name"):
        publish(staged, committed[0])
    assert committed[0].commits == 1


@pytest.mark.parametrize(
    "name", [*list(DISK)[:1], "dropped", "cut", "extended", "swapped", "link to itself elsewhere", "pipe", "folder"]
)
def test_staging_refuses_a_tampered_file_by_name(committed: tuple[Session, Path], tmp_path: Path, name: str) -> None:
    session, folder = committed
    at = StagedVolume(volume(folder, session.head), tmp_path / "work")
    DISK[name][1](folder)
    with pytest.raises(IntegrityError, match=r"(a|d/b): "):
        at.open_all()


# --- undoing


def on_disk(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_in_place(at: SealedVolume, path: str, data: bytes = b"new") -> None:
    """What the sealed FileSystem does for an overwriting write."""
    for old, name in at.keep(path).items():
        (at.folder / old).rename(at.folder / ".dataset/kept" / name)
    at.delete(path)
    put(at, path, data)


class Killed(BaseException):
    pass


def run_that_fails(at: SealedVolume, session: Session, act: Callable[[], object]) -> None:
    with at.changing(session):  # type: ignore[arg-type]
        act()
        raise Killed


@pytest.mark.parametrize("kind", ["overwritten", "deleted", "renamed", "added", "swapped"])
def test_T133b_a_run_that_fails_is_undone(committed: tuple[Session, Path], kind: str) -> None:
    session, folder = committed
    before = on_disk(folder)
    at = volume(folder, session.head)
    with pytest.raises(Killed):
        run_that_fails(at, session, lambda: _change(at, folder, kind))
    assert on_disk(folder) == before


def _change(at: SealedVolume, folder: Path, kind: str) -> None:
    if kind == "overwritten":
        write_in_place(at, "a")
    elif kind == "deleted":
        for old, name in at.keep("d").items():
            (folder / old).rename(folder / ".dataset/kept" / name)
        (folder / "d").rmdir()
        at.delete("d")
    elif kind == "renamed":
        (folder / "moved").mkdir()
        (folder / "a").rename(folder / "moved/z")
        at.rename("a", "moved/z")
    elif kind == "swapped":
        for source, target in (("a", "x"), ("d/b", "a"), ("x", "d/b")):
            (folder / source).rename(folder / target)
            at.rename(source, target)
    else:
        put(at, "new/deep/file")


@pytest.mark.parametrize("kind", ["overwritten", "deleted", "renamed", "added", "swapped"])
def test_a_run_that_was_killed_is_undone_by_the_next(committed: tuple[Session, Path], kind: str) -> None:
    session, folder = committed
    before = on_disk(folder)
    pid = os.fork()
    if pid == 0:
        at = volume(folder, session.head)
        with at.changing(session):  # type: ignore[arg-type]
            _change(at, folder, kind)
            os._exit(9)
    os.waitpid(pid, 0)
    assert on_disk(folder) != before
    with volume(folder, session.head).changing(session):  # type: ignore[arg-type]
        pass
    assert on_disk(folder) == before


def test_undoing_replaces_what_lies_in_a_kept_files_place(committed: tuple[Session, Path]) -> None:
    """The machine died while a file was overwritten: nothing, or a piece of the prefix, has arrived."""
    session, folder = committed
    before = on_disk(folder)
    for begun in (b"", b"STRG", b"not sealed at all"):
        at = volume(folder, session.head)
        with pytest.raises(Killed):
            run_that_fails(
                at, session, lambda at=at, begun=begun: (_change(at, folder, "overwritten"), (folder / "a").write_bytes(begun))
            )  # fmt: skip
        assert on_disk(folder) == before
    with pytest.raises(Killed):
        run_that_fails(at, session, lambda: (at.create("new"), (folder / "new").write_bytes(b"")))
    assert on_disk(folder) == before


def test_undoing_keeps_what_it_cannot_put_back(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)

    def act() -> None:
        for old, name in at.keep("a").items():
            (folder / old).rename(folder / ".dataset/kept" / name)
        at.delete("a")
        (folder / "a").mkdir()
        (folder / "a/strange").write_text("from the host")

    with pytest.raises(InputError, match="in the way"):
        run_that_fails(at, session, act)
    assert len(list((folder / ".dataset/kept").iterdir())) == 1
    (folder / "a/strange").unlink()
    with volume(folder, session.head).changing(session):  # type: ignore[arg-type]
        pass
    assert get(volume(folder, session.head), "a") == b"data"


def test_a_run_with_an_older_head_undoes_nothing(committed: tuple[Session, Path]) -> None:
    """One run died after its commit: its kept folder and both manifests are there, and only the service knows."""
    session, folder = committed
    old = session.head
    waiting = volume(folder, old)
    manifest = folder / ".dataset" / (old.manifest or "").removeprefix("sha256:")
    raw = manifest.read_bytes()
    with volume(folder, old).changing(session):  # type: ignore[arg-type]
        pass
    winner = volume(folder, old)
    with winner.changing(session):  # type: ignore[arg-type]
        write_in_place(winner, "a", b"winner")
        winner.commit(session)  # type: ignore[arg-type]
    manifest.write_bytes(raw)
    (folder / ".dataset/kept").mkdir()
    with pytest.raises(IntegrityError, match="another run committed"), waiting.changing(session):  # type: ignore[arg-type]
        raise AssertionError
    assert get(volume(folder, session.head), "a") == b"winner"


def test_T293_who_reads_finds_what_a_change_has_moved_and_nothing_else(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    reader, at = volume(folder, session.head, "ro"), volume(folder, session.head)
    kept = folder / ".dataset/kept" / at._files["a"].salt.hex()
    with at.changing(session):  # type: ignore[arg-type]
        write_in_place(at, "a")
        assert kept.exists()
        assert get_by_reader(reader, "a") == b"data"
        with pytest.raises(IntegrityError, match="swapped"):
            volume(folder, session.head).reader("a")  # who writes has its own
        raw, other = kept.read_bytes(), (folder / "a").read_bytes()
        kept.write_bytes(other)
        with pytest.raises(IntegrityError, match="salt"):
            reader.reader("a")
        kept.unlink()
        (folder / "elsewhere").write_bytes(raw)
        kept.symlink_to(folder / "elsewhere")
        with pytest.raises(IntegrityError, match="link"):
            reader.reader("a")
        kept.unlink()
        (folder / "elsewhere").rename(kept)
    assert get_by_reader(reader, "a") == b"data"


def get_by_reader(at: SealedVolume, path: str) -> bytes:
    with at.reader(path) as reader:
        return reader.readall()


def test_an_unanswered_commit_is_decided_by_the_next_run(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    head = session.head
    at = volume(folder, head)

    class Lost(Session):
        def commit(self, *words: object) -> Head:
            session.commit(*words)  # type: ignore[arg-type]
            raise UnavailableError("no answer")

    with at.changing(session):  # type: ignore[arg-type]
        write_in_place(at, "a")
        with pytest.raises(UnavailableError):
            at.commit(Lost())  # type: ignore[arg-type]
    assert session.head != head
    with volume(folder, session.head).changing(session):  # type: ignore[arg-type]
        pass
    after = volume(folder, session.head)
    assert get(after, "a") == b"new"
    assert not (folder / ".dataset/kept").exists()


def test_a_second_writer_is_told_and_changes_nothing(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    first, second = volume(folder, session.head), volume(folder, session.head)
    with (
        first.changing(session),  # type: ignore[arg-type]
        pytest.raises(UnavailableError, match="another run is writing"),
        second.changing(session, 0.1),  # type: ignore[arg-type]
    ):
        raise AssertionError


def test_undoing_leaves_what_is_not_ours(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    (folder / "plain.csv").write_text("from the host")
    with pytest.raises(Killed):
        run_that_fails(at, session, lambda: put(at, "new"))
    assert (folder / "plain.csv").read_text() == "from the host"
    assert not (folder / "new").exists()


def test_commit_while_running_leaves_open_files_out(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    with at.changing(session):  # type: ignore[arg-type]
        put(at, "batch/1")
        prefix, _ = at.create("batch/2")
        (folder / "batch/2").write_bytes(prefix)
        assert at.commit(session, running=True) is not None  # type: ignore[arg-type]
        assert at.commit(session, running=True) is None  # type: ignore[arg-type]
    assert [p for p, _ in volume(folder, session.head).paths()] == ["a", "batch/1", "d/b"]
    assert not (folder / "batch/2").exists()


def test_a_commit_while_running_forgets_what_was_deleted_before_it(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    kept = folder / ".dataset/kept"
    with at.changing(session):  # type: ignore[arg-type]
        write_in_place(at, "a")
        assert len(list(kept.iterdir())) == 1
        at.commit(session, running=True)  # type: ignore[arg-type]
        assert list(kept.iterdir()) == []


def test_values_in_folder_names_are_for_jobs_that_may_show_them(committed: tuple[Session, Path]) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    for path in ("t/country=FR/part-0", "a=1/b/c"):
        with pytest.raises(DeniedError, match="visible to the host") as refused:
            at.create(path)
        assert "FR" not in str(refused.value)  # the message goes to the host
        with pytest.raises(DeniedError):
            at.rename("a", path)
    with pytest.raises(DeniedError, match="visible to the host"):
        at.rename("d", "country=FR")  # the folder itself, with the file in it
    assert [path for path, _ in at.paths()] == ["a", "d/b"]
    put(at, "t/a=b.csv")  # a file name is the program's own choice
    shown = SealedVolume(
        name="out", folder=folder, mode="rw", ring=RING, head=session.head, run_id=RUN, visible_names=True
    )
    put(shown, "t/country=FR/part-0")
