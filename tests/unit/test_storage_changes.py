"""Single files that an owner writes, renames and removes: all of a change, or nothing of it, wherever it is cut off."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.test_storage_trees import INFO, V1, Heads, content, make

from strongroom.errors import InputError, IntegrityError, UnavailableError
from strongroom.storage import changes, leftovers
from strongroom.storage.changes import NewFile, change_files
from strongroom.storage.dataset import load_manifest
from strongroom.storage.places import LocalPlace
from strongroom.storage.trees import open_tree, seal_tree, verify_tree

OLD = {"a": b"old", "b": b"b", "sub/c": b"c"}
NEW = {"a": b"new", "moved/c": b"c", "n": b"n"}


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    found = Heads()
    seal_tree(
        make(tmp_path / "in", **{k.replace("/", "__"): v for k, v in OLD.items()}), tmp_path / "s", V1, found, info=INFO
    )
    return found


def written(at: LocalPlace, path: str, data: bytes) -> NewFile:
    file = NewFile(at, V1, INFO.dataset, path)
    file.write(data)
    file.close()
    return file


def change(at: LocalPlace, heads: Heads) -> None:
    new = [written(at, "a", b"new"), written(at, "n", b"n")]
    change_files(at, V1, heads, INFO.dataset, new=new, removed=["b"], moved={"sub/c": "moved/c"})


def opened(tmp_path: Path, heads: Heads) -> dict[str, bytes]:
    verify_tree(tmp_path / "s", V1, heads.head)
    target = tmp_path / f"out-{os.urandom(4).hex()}"
    open_tree(tmp_path / "s", target, V1, heads.head)
    return content(target)


def test_everything_changes_in_one_commit(tmp_path: Path, heads: Heads) -> None:
    change(LocalPlace(tmp_path / "s"), heads)
    assert (heads.head.epoch, opened(tmp_path, heads)) == (2, NEW)
    assert not (tmp_path / "s/sub").exists()
    at = LocalPlace(tmp_path / "s")
    change_files(at, V1, heads, INFO.dataset, moved={"a": "n", "n": "a"})  # each takes the other's name
    assert opened(tmp_path, heads) == {**NEW, "a": b"n", "n": b"new"}


STEPS = [(LocalPlace, "move"), (NewFile, "put"), (LocalPlace, "settle"), (changes, "write_manifest"), (Heads, "commit")]


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s[1])
def test_T291_a_change_that_is_cut_off_loses_nothing(
    tmp_path: Path, heads: Heads, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str], number: int, killed: bool
) -> None:
    """Before the first call of each step, or before the second: by an error, or by the end of the process."""
    owner, name = step
    whole: Callable[..., object] = getattr(owner, name)
    calls = [0]

    def cut_off(*args: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] != number:
            return whole(*args, **named)
        if killed:
            os._exit(7)
        raise InputError("cut off")

    at = LocalPlace(tmp_path / "s")
    child = os.fork() if killed else 0
    if child == 0:
        monkeypatch.setattr(owner, name, cut_off)
        try:
            change(at, heads)
            done = True
        except InputError:
            done = False
        if killed:
            os._exit(0)
    done = done if not killed else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monkeypatch.undo()
    if killed and not done:
        with pytest.raises(UnavailableError, match="did not end"):
            change_files(at, V1, heads, INFO.dataset, removed=["b"])
        leftovers.restore(at, load_manifest(at, heads.head, V1))
        at.tidy()
    if not killed or not done:
        assert opened(tmp_path, heads) == (NEW if done else OLD)
        assert sorted(p.name for p in (tmp_path / "s").iterdir() if p.is_file()) == sorted(
            {"a", "n"} if done else {"a", "b"}
        )


def test_refusals_change_nothing(tmp_path: Path, heads: Heads) -> None:
    at = LocalPlace(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        change_files(at, V1, heads, INFO.dataset, new=[written(at, "n", b"")], removed=["none"])
    with pytest.raises(InputError, match="reserved"):
        NewFile(at, V1, INFO.dataset, ".dataset/id.json")
    with pytest.raises(InputError, match="cannot list"):
        change_files(at, V1, heads, INFO.dataset, moved={"a": "b/a"})
    (tmp_path / "s/.dataset" / (heads.head.manifest or "").removeprefix("sha256:")).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="altered"):
        change_files(at, V1, heads, INFO.dataset, removed=["b"])
    assert heads.head.epoch == 1
    assert not (tmp_path / "s/n").exists()
