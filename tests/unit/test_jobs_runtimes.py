"""Runtimes that nobody uses any more: removed when another of their kind is built, whole, and never under a job."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from strongroom.attest.simulated import measure
from strongroom.attest.simulated.measure import tree_digest
from strongroom.jobs import runtime_cache
from strongroom.jobs.runtimes import Runtimes

EIGHT_DAYS_S = 8 * 86_400


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "runtimes"


def build(cache: Path, stamp: str, kind: str = "env") -> Path:
    def fill(target: Path) -> None:
        (target / "lib").mkdir()
        (target / "lib" / "module.py").write_text(stamp)

    return Runtimes(cache)._build(kind, [stamp], fill)


def let_go(folder: Path, age_s: float = EIGHT_DAYS_S) -> None:
    """As if the process that used `folder` had ended `age_s` ago."""
    os.close(runtime_cache._held.pop(folder))
    os.utime(folder, (time.time() - age_s,) * 2)


def test_what_nobody_used_for_a_week_goes_when_another_of_its_kind_is_built(cache: Path) -> None:
    old, recent, other = build(cache, "1"), build(cache, "2"), build(cache, "3", "guest")
    let_go(old)
    let_go(recent, 6 * 86_400)
    let_go(other)
    left = cache / ".env-cut-off.x"
    foreign = cache / ".git"
    for folder in (left, foreign):
        folder.mkdir()
        os.utime(folder, (1, 1))
    assert build(cache, "2") == recent  # nothing is built: nothing goes
    assert old.is_dir()
    new = build(cache, "4")
    assert {p.name for p in cache.iterdir()} == {p.name for p in (recent, other, new, foreign)}


def test_a_runtime_that_a_process_shows_stays(cache: Path) -> None:
    shown = build(cache, "1")
    os.utime(shown, (1, 1))
    build(cache, "2")
    assert (shown / "lib" / "module.py").read_text() == "1"
    reader = os.open(shown, os.O_RDONLY)  # a platform that was forked holds it on
    let_go(shown)
    runtime_cache.fcntl.flock(reader, runtime_cache.fcntl.LOCK_SH)
    build(cache, "3")
    assert shown.is_dir()
    os.close(reader)
    build(cache, "4")
    assert not shown.exists()


def test_using_a_runtime_keeps_it_and_not_its_digest(cache: Path, tmp_path: Path) -> None:
    folder = build(cache, "1")
    digest, identity = tree_digest(folder, tmp_path / "digests"), measure._identity(str(folder))
    let_go(folder)
    assert build(cache, "1") == folder
    assert time.time() - folder.stat().st_mtime < 60
    assert (measure._identity(str(folder)), tree_digest(folder)) == (identity, digest)


def test_a_runtime_that_is_removed_while_somebody_asks_for_it_is_built_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = build(cache, "1"), os.open
    let_go(folder)

    def removed_in_between(path: object, *args: int, **named: int) -> int:
        handle = whole(path, *args, **named)  # type: ignore[call-overload]
        if path == folder:
            monkeypatch.undo()
            build(cache, "2")
        return int(handle)

    monkeypatch.setattr(os, "open", removed_in_between)
    assert (build(cache, "1") / "lib" / "module.py").read_text() == "1"
    assert folder in runtime_cache._held


def test_digests_that_nobody_asked_for_go_too(tmp_path: Path) -> None:
    trees = [tmp_path / name for name in ("old", "used", "new")]
    for tree in trees:
        tree.mkdir()
        (tree / "a.py").write_text("")
    digests = tmp_path / "digests"
    for tree in trees[:2]:
        tree_digest(tree, digests)
    for file in digests.iterdir():
        os.utime(file, (1, 1))
    tree_digest(trees[1], digests)
    tree_digest(trees[2], digests)
    assert len(list(digests.iterdir())) == 4
    assert all(time.time() - file.stat().st_mtime < 60 for file in digests.iterdir())


def installed(folder: Path, by: str) -> Path:
    """One package as an installer leaves it in a virtual environment at `folder`, and Strongroom beside it."""
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in ("numpy", "strongroom"):
        info = packages / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(f"# {name}")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "INSTALLER").write_text(by)
        (info / "direct_url.json").write_text(f'{{"url": "file://{folder}"}}')
        lines = [f"{name}/__init__.py,sha256=AA,9", f"{name}-1.dist-info/METADATA,sha256=AA,9"]
        lines += [f"{name}-1.dist-info/{file},," for file in ("RECORD", "INSTALLER", "direct_url.json")]
        lines += [f"../../../bin/f2py,sha256={hash(folder):x},228", f'"../../../etc/{by},x",,']
        if by == "pip":
            lines.insert(0, f"{name}/__pycache__/__init__.cpython-311.pyc,,")
        (info / "RECORD").write_text("".join(f"{line}\n" for line in lines))
    return packages


@pytest.mark.parametrize("brought", [False, True])
def test_an_environment_names_neither_its_machine_nor_its_installer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: bool
) -> None:
    digests = []
    for by in ("pip", "uv"):
        packages = installed(tmp_path / by / "venv", by)
        record = packages / "numpy-1.dist-info" / "RECORD"
        before = record.read_bytes()
        monkeypatch.setattr(sysconfig, "get_path", lambda _name, packages=packages: str(packages))
        env = Runtimes(tmp_path / by / "cache").env(packages.parent.parent.parent if brought else None)
        inside = env / packages.relative_to(packages.parent.parent.parent)
        assert (inside / "numpy-1.dist-info" / "RECORD").read_text() == (
            "numpy-1.dist-info/METADATA,sha256=AA,9\nnumpy-1.dist-info/RECORD,,\nnumpy/__init__.py,sha256=AA,9\n"
        )
        assert record.read_bytes() == before  # the owner's own, to which a runtime may be linked
        assert (inside / "strongroom").exists() == brought  # what programs use of it is a runtime of its own
        digests.append(tree_digest(env, None))
    assert digests[0] == digests[1]
