"""Whole data sets: seal, add, replace, open, verify, reseal, resume; local, remote, one process and several."""

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from strongroom._secret import SecretBytes
from strongroom._unix import make_folders
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import DeniedError, InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.storage import pool, tree_write
from strongroom.storage.dataset import DatasetInfo, Head, load_manifest
from strongroom.storage.leftovers import begin_changes, restore
from strongroom.storage.places import LocalPlace
from strongroom.storage.tree_run import refuse
from strongroom.storage.trees import Progress, open_tree, reseal_tree, seal_tree, verify_tree
from strongroom.storage.worker import Task

KEYS = {1: SecretBytes(b"1" * 32), 2: SecretBytes(b"2" * 32)}
V1 = StaticKeyRing("sales", {1: KEYS[1]})
V2 = StaticKeyRing("sales", KEYS)
INFO = DatasetInfo(dataset="ab" * 16, key="sales", owner="me")


class Heads:
    """A head store in memory."""

    def __init__(self) -> None:
        self.head = Head(dataset=INFO.dataset, epoch=0, key="sales", manifest=None, owner="me")

    def current(self, dataset: str) -> Head:
        return self.head

    def commit(self, expected: Head, manifest: str, versions: Sequence[int] = ()) -> Head:
        if expected != self.head:
            raise IntegrityError("someone else committed")
        self.head = replace(expected, epoch=expected.epoch + 1, manifest=manifest)
        return self.head


def make(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FILES = {"a": b"", "b": b"x" * 16_384, "sub__c": os.urandom(2_000_000), "sub__deep__d": b"d"}


@pytest.mark.parametrize("workers", [1, 2, None])
def test_seal_verify_open(tmp_path: Path, workers: int | None) -> None:
    source, heads, seen = make(tmp_path / "in", **FILES), Heads(), list[Progress]()
    done = seal_tree(source, tmp_path / "s", V1, heads, info=INFO, workers=workers, progress=seen.append)
    assert (done.files, done.written, done.kept, done.head.epoch) == (4, 4, 0, 1)
    assert seen[-1] == Progress(files_done=4, files_total=4, bytes_done=done.size_bytes, bytes_total=done.size_bytes)
    assert verify_tree(tmp_path / "s", V1, done.head, workers=workers).written == 4
    opened = open_tree(tmp_path / "s", tmp_path / "out", V1, done.head, workers=workers)
    assert opened.written == 4
    assert content(tmp_path / "out") == content(source)
    assert not [n for n in content(tmp_path / "s") if ".~strongroom-" in n]


def test_files_in_a_thousand_folders(deep_path: Path) -> None:
    tmp_path = deep_path
    deep, heads = tmp_path / "in" / "/".join(["n"] * 1200), Heads()
    make_folders(deep)
    (deep / "file").write_bytes(b"deep")
    done = seal_tree(tmp_path / "in", tmp_path / "s", V1, heads, info=INFO)
    assert reseal_tree(tmp_path / "s", V2, heads).head.epoch == 2
    open_tree(tmp_path / "s", tmp_path / "out", V2, heads.head)
    assert (tmp_path / "out" / deep.relative_to(tmp_path / "in") / "file").read_bytes() == b"deep"
    begin_changes(LocalPlace(tmp_path / "s"))
    found = restore(LocalPlace(tmp_path / "s"), load_manifest(tmp_path / "s", heads.head, V2))
    assert (done.files, found.removed) == (1, 0)


@pytest.mark.parametrize("workers", [1, 2, None])
def test_no_file_is_passed_over_by_an_error_that_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    (tmp_path / "plain").mkdir()
    for number in range(20):
        (tmp_path / f"plain/{number}").write_text("text")
    real = pool.perform

    def perform(task: Task, *rest: Any) -> Any:
        if task.path == "7":
            raise IndexError
        return real(task, *rest)

    monkeypatch.setattr(pool, "perform", perform)
    with pytest.raises(IndexError):
        seal_tree(str(tmp_path / "plain"), str(tmp_path / "sealed"), V1, Heads(), info=INFO, workers=workers)


def test_remote_target_and_source(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    url = f"memory://trees{tmp_path}"
    first = seal_tree(source, url, V1, heads, info=INFO, workers=3)
    again = seal_tree(source, url, V1, heads, info=INFO)
    assert (again.head, again.kept) == (first.head, 4)
    verify_tree(url, V1, first.head)
    open_tree(url, tmp_path / "out", V1, first.head)
    assert content(tmp_path / "out") == content(source)
    reseal_tree(url, V2, heads)
    open_tree(url, tmp_path / "out2", V2, heads.head)
    assert content(tmp_path / "out2") == content(source)


def test_one_file_is_a_data_set(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", one=b"1", two=b"2"), Heads()
    assert seal_tree(source / "one", tmp_path / "s", V1, heads, info=INFO).files == 1
    open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head)
    assert content(tmp_path / "out") == {"one": b"1"}


def test_empty_folder_keeps_epoch_zero(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert seal_tree(tmp_path / "in", tmp_path / "s", V1, Heads(), info=INFO).head.epoch == 0


def test_second_run_keeps_what_did_not_change(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    first = seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    again = seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    assert (again.head, again.written, again.kept) == (first.head, 0, 4)
    make(source, b=b"y" * 16_384, new=b"n")
    (source / "a").unlink()
    third = seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    assert (third.files, third.written, third.kept, third.head.epoch) == (5, 2, 2, 2)
    open_tree(tmp_path / "s", tmp_path / "out", V1, third.head)
    assert content(tmp_path / "out") == content(source) | {"a": b""}
    assert len(list((tmp_path / "s/.dataset").iterdir())) == 3  # id, manifest, journal


def test_same_size_and_mtime_is_still_a_change(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", a=b"one"), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    stat = (source / "a").stat()
    (source / "a").write_bytes(b"two")
    os.utime(source / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head)
    assert content(tmp_path / "out") == {"a": b"two"}


def test_interrupted_seal_goes_on(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()

    def stop(progress: Progress) -> None:
        if progress.files_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal_tree(source, tmp_path / "s", V1, heads, info=INFO, workers=1, progress=stop)
    (source / "b").unlink()  # sealed by then; gone from the source: an orphan that the next run removes
    done = seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    assert (done.kept, done.files) == (1, 3)
    open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head)
    assert content(tmp_path / "out") == content(source)


def test_lost_commit_race_is_reported_and_repeatable(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    ours = replace(heads.head)
    heads.current = lambda dataset: ours  # type: ignore[method-assign]
    heads.head = replace(heads.head, owner="another run")
    with pytest.raises(IntegrityError, match="someone else"):
        seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    heads.head = ours
    assert seal_tree(source, tmp_path / "s", V1, heads, info=INFO).kept == 4


def test_rotated_key_seals_anew(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    assert seal_tree(source, tmp_path / "s", V2, heads, info=INFO).written == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_reseal_moves_every_file_to_the_current_version(tmp_path: Path, workers: int) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    done = reseal_tree(tmp_path / "s", V2, heads, workers=workers)
    assert (done.written, done.head.epoch) == (4, 2)
    only_new = StaticKeyRing("sales", {2: KEYS[2]})
    open_tree(tmp_path / "s", tmp_path / "out", only_new, heads.head)
    assert content(tmp_path / "out") == content(source)
    assert reseal_tree(tmp_path / "s", V2, heads).head == done.head
    with pytest.raises(DeniedError):
        reseal_tree(tmp_path / "s", V1, heads)


def interrupted_reseal(tmp_path: Path, heads: Heads) -> None:
    def stop(progress: Progress) -> None:
        if progress.files_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reseal_tree(tmp_path / "s", V2, heads, workers=1, progress=stop)


def test_interrupted_reseal_goes_on(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    interrupted_reseal(tmp_path, heads)
    with pytest.raises(IntegrityError):
        verify_tree(tmp_path / "s", V2, heads.head)
    assert reseal_tree(tmp_path / "s", V2, heads).written == 2
    open_tree(tmp_path / "s", tmp_path / "out", V2, heads.head)
    assert content(tmp_path / "out") == content(source)


def test_T28b_interrupted_reseal_then_another_seal_loses_nothing(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    interrupted_reseal(tmp_path, heads)
    seal_tree(make(tmp_path / "in2", new=b"n"), tmp_path / "s", V2, heads, info=INFO)
    verify_tree(tmp_path / "s", V2, heads.head)
    reseal_tree(tmp_path / "s", V2, heads)
    assert {e.key_version for e in load_manifest(tmp_path / "s", heads.head, V2).entries} == {2}


V3 = StaticKeyRing("sales", {**KEYS, 3: SecretBytes(b"3" * 32)})


@pytest.mark.parametrize("workers", [1, 2])
def test_T28b_reseal_killed_at_any_moment_loses_nothing(tmp_path: Path, workers: int) -> None:
    """Also when the key was rotated between two killed runs."""
    source, heads = make(tmp_path / "in", **{f"f{i}": bytes([i]) * 5000 for i in range(8)}), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    for ring, files in ((V2, 5), (V3, 3), (V3, 1)):
        pid = os.fork()
        if pid == 0:

            def die(state: Progress, files: int = files) -> None:
                if state.files_done >= files:
                    os.kill(0 if workers > 1 else os.getpid(), signal.SIGKILL)

            os.setsid()
            with contextlib.suppress(BaseException):
                reseal_tree(tmp_path / "s", ring, heads, workers=workers, progress=die)
            os._exit(0)
        os.waitpid(pid, 0)
    reseal_tree(tmp_path / "s", V3, heads)
    open_tree(tmp_path / "s", tmp_path / "out", V3, heads.head)
    assert content(tmp_path / "out") == content(source)
    assert {e.key_version for e in load_manifest(tmp_path / "s", heads.head, V3).entries} == {3}


def test_a_remote_file_is_not_removed_before_its_successor_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, "memory://once", V1, heads, info=INFO)
    store = fsspec.filesystem("memory")
    broken = [True]
    for name in ("mv", "cp_file"):
        real = getattr(type(store), name)

        def fail_once(self: object, *words: object, real: Any = real, **more: object) -> object:
            if broken and broken.pop():
                raise ConnectionResetError(104, "connection reset")
            return real(self, *words, **more)

        monkeypatch.setattr(type(store), name, fail_once)
    with pytest.raises(StrongroomError):
        reseal_tree("memory://once", V2, heads, workers=1)
    assert not broken
    reseal_tree("memory://once", V2, heads)
    open_tree("memory://once", tmp_path / "out", V2, heads.head)
    assert content(tmp_path / "out") == content(source)


def test_open_keeps_equal_files_and_refuses_others(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    make(tmp_path / "out", a=b"", b=b"x" * 16_384)
    assert open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head).kept == 2
    for other in (b"z" * 16_384, b"short"):
        make(tmp_path / "out", b=other)
        with pytest.raises(InputError, match="already there"):
            open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head)
        assert (tmp_path / "out/b").read_bytes() == other
    open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head, overwrite=True)
    assert content(tmp_path / "out") == content(source)


def test_sources_that_no_data_set_can_hold(tmp_path: Path) -> None:
    source = make(tmp_path / "in", good=b"1")
    (source / "link").symlink_to("good")
    (source / "linked").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(source / "pipe")
    (source / "e\u0301").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        seal_tree(source, tmp_path / "s", V1, Heads(), info=INFO)
    for name in ("link is a symbolic link", "linked is a symbolic link", "pipe is not a regular file", "NFC"):
        assert name in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_targets_that_are_refused(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    with pytest.raises(InputError, match="not empty"):
        seal_tree(source, make(tmp_path / "full", x=b""), V1, heads, info=INFO)
    with pytest.raises(InputError, match="lie in each other"):
        seal_tree(source, source / "s", V1, heads, info=INFO)
    with pytest.raises(InputError, match="is a file"):
        seal_tree(source, tmp_path / "full/x", V1, heads, info=INFO)
    with pytest.raises(InputError, match="does not exist"):
        seal_tree(tmp_path / "nowhere", tmp_path / "s", V1, heads, info=INFO)
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    with pytest.raises(InputError):
        seal_tree(source, tmp_path / "s", V1, heads, info=replace(INFO, dataset="cd" * 16))
    make(tmp_path / "s", stranger=b"x")
    with pytest.raises(InputError, match="stranger"):
        seal_tree(source, tmp_path / "s", V1, heads, info=INFO)


def test_source_that_changes_while_it_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "in", a=b"one")
    scan = tree_write._scan_source

    def scan_then_change(here: LocalPlace) -> object:
        found = scan(here)
        (source / "a").write_bytes(b"longer")
        return found

    monkeypatch.setattr(tree_write, "_scan_source", scan_then_change)
    with pytest.raises(InputError, match="changed while"):
        seal_tree(source, tmp_path / "s", V1, Heads(), info=INFO)


def test_second_writer_waits_its_turn(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    at = LocalPlace(tmp_path / "s")
    with at.locked(), pytest.raises(UnavailableError, match="another run"), LocalPlace(tmp_path / "s").locked(0):
        pass


def test_worker_process_error_keeps_its_class(tmp_path: Path) -> None:
    source, heads = make(tmp_path / "in", **FILES), Heads()
    seal_tree(source, tmp_path / "s", V1, heads, info=INFO)
    blob = bytearray((tmp_path / "s/sub/c").read_bytes())
    blob[1_000_000] ^= 1
    (tmp_path / "s/sub/c").write_bytes(blob)
    for workers in (1, 2):
        with pytest.raises(IntegrityError, match="sub/c: chunk 60") as caught:
            open_tree(tmp_path / "s", tmp_path / "out", V1, heads.head, workers=workers)
        assert caught.value.details["class"] == "chunk"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_only_what_was_altered_is_put_back() -> None:
    altered = IntegrityError("a: chunk 1 was altered", details={"path": "a"})
    unread = InputError("b may not be read", hint="check the permissions")
    for problems, hint in (
        ([altered], "put the files back"),
        ([altered, altered], "put the files back"),
        ([unread], "check the permissions"),
        ([unread, altered], "check the permissions"),
        ([UnavailableError("a worker process ended early")], ""),
    ):
        altered.hint = ""
        with pytest.raises(StrongroomError) as caught:
            refuse(problems)
        assert caught.value.hint.startswith(hint)
        assert ("accept-epoch" in caught.value.hint) is hint.startswith("put")
