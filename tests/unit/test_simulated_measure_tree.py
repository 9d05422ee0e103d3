"""The measurement of a folder: any change gives another digest, with and without the digest cache."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.attest.simulated.measure import measure_mounts, tree_digest
from strongroom.attest.simulated.platform import SandboxBundle, bundle_measurement, sandbox_arguments
from strongroom.errors import InputError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "lib/empty").mkdir(parents=True)
    (root / "lib/a.py").write_bytes(b"print(1)\n")
    (root / "lib/b.so").write_bytes(b"\x7fELF" + bytes(1000))
    (root / "lib/b.so").chmod(0o755)
    (root / "link").symlink_to("lib/a.py")
    return root


def flip(path: Path) -> None:
    """Change one byte; size, mtime and atime stay."""
    times, raw = path.stat(), bytearray(path.read_bytes())
    raw[0] ^= 1
    with open(path, "r+b") as file:
        file.write(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def swap_by_rename(path: Path) -> None:
    """Put another inode of the same size and times in place."""
    times, other = path.stat(), path.with_name("other")
    other.write_bytes(b"X" * times.st_size)
    other.chmod(times.st_mode & 0o777)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "one byte, times restored": lambda t: flip(t / "lib/b.so"),
    "same size, another inode": lambda t: swap_by_rename(t / "lib/b.so"),
    "appended": lambda t: (t / "lib/a.py").write_bytes(b"print(1)\n#"),
    "renamed": lambda t: (t / "lib/a.py").rename(t / "lib/c.py"),
    "added": lambda t: (t / "lib/new.py").touch(),
    "added folder": lambda t: (t / "lib/new").mkdir(),
    "removed": lambda t: (t / "lib/a.py").unlink(),
    "removed folder": lambda t: (t / "lib/empty").rmdir(),
    "executable": lambda t: (t / "lib/a.py").chmod(0o755),
    "link target": lambda t: ((t / "link").unlink(), (t / "link").symlink_to("lib/b.so")),
    "link became file": lambda t: ((t / "link").unlink(), shutil.copy(t / "lib/a.py", t / "link")),
    "file became folder": lambda t: ((t / "lib/a.py").unlink(), (t / "lib/a.py").mkdir()),
    "moved": lambda t: (t / "lib/a.py").rename(t / "a.py"),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_gives_another_digest(tree: Path, tmp_path: Path, change: str, cached: bool) -> None:
    cache = tmp_path / "cache" if cached else None
    before = tree_digest(tree, cache)
    assert tree_digest(tree, cache) == before
    CHANGES[change](tree)
    after = tree_digest(tree, cache)
    assert after != before
    assert after == tree_digest(tree, None)


def test_the_digest_depends_on_what_is_seen_inside_only(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy, symlinks=True)
    os.utime(copy / "lib/a.py", (1, 1))
    assert tree_digest(copy, tmp_path / "cache") == tree_digest(tree, None)


def test_names_cannot_imitate_structure(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a").write_bytes(b"")
    (one / "b").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (two / f"a\n{empty}\nb").write_bytes(b"")
    assert tree_digest(one) != tree_digest(two)


def test_what_cannot_be_measured_is_an_error(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(InputError, match="pipe"):
        tree_digest(tree)
    with pytest.raises(InputError, match="nothing"):
        tree_digest(tree / "nothing")


def test_place_order_and_launch_are_covered(tree: Path) -> None:
    base = measure_mounts([("/usr", tree), ("/opt", tree / "lib")], b"launch", None)
    assert measure_mounts([("/opt", tree / "lib"), ("/usr", tree)], b"launch", None) == base
    assert measure_mounts([("/usr", tree / "lib"), ("/opt", tree)], b"launch", None) != base
    assert measure_mounts([("/usr", tree), ("/opx", tree / "lib")], b"launch", None) != base
    assert measure_mounts([("/usr", tree)], b"launch", None) != base
    assert measure_mounts([("/usr", tree), ("/opt", tree / "lib")], b"launcH", None) != base


def test_network_is_measured(tree: Path) -> None:
    off = bundle_measurement({"/usr": tree}, network=False, cache=None)
    assert bundle_measurement({"/usr": tree}, network=True, cache=None) != off


def bundle(folder: Path, **changes: object) -> Path:
    value = {
        "format": 1, "runtimes": {"/usr": "/r"}, "code": {"app.py": "/c/app.py"}, "volumes": [["in", "/v", "ro"]],
        "staged": True, "service": "", "network": False, "scratch_mb": 8, **changes,
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("name", ["../usr", "..", ".", "", "a/b", "/usr", "a\0b", 7])
def test_no_name_in_a_bundle_mounts_over_what_is_measured(tmp_path: Path, name: object) -> None:
    with pytest.raises(InputError, match="plain file name"):
        SandboxBundle.load(bundle(tmp_path, volumes=[[name, "/evil", "ro"]]))
    if isinstance(name, str):
        with pytest.raises(InputError, match="plain file name"):
            SandboxBundle.load(bundle(tmp_path, code={name: "/evil"}))


@pytest.mark.parametrize("field", ["runtimes", "code", "volumes", "staged", "service", "network", "scratch_mb"])
def test_a_bundle_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    bundle(tmp_path)
    value = json.loads((tmp_path / "bundle.json").read_text())
    del value[field]
    (tmp_path / "bundle.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="malformed"):
        SandboxBundle.load(tmp_path)


def test_the_sandbox_is_closed(tmp_path: Path) -> None:
    words = sandbox_arguments(SandboxBundle.load(bundle(tmp_path)))
    for word in ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--clearenv", "--as-pid-1"):
        assert word in words
    text = " ".join(words)
    assert "--cap-drop ALL" in text
    assert "--perms 0000 --dir /sealed" in text
    assert "--ro-bind /v /sealed/in" in text
    assert text.index("--remount-ro / ") > text.index("/sealed/in")
    assert "--unshare-net" not in sandbox_arguments(SandboxBundle.load(bundle(tmp_path, network=True)))
    assert "--perms 0755 --dir /sealed" in " ".join(
        sandbox_arguments(SandboxBundle.load(bundle(tmp_path, staged=False)))
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": 1}', '{"identity": "x", "digest": "zz"}'])
def test_a_damaged_digest_cache_is_not_believed(tree: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache"
    digest = tree_digest(tree, cache)
    for path in cache.iterdir():
        path.write_text(text)
    assert tree_digest(tree, cache) == digest


@pytest.mark.parametrize("digest", ["zz", "", None, 7])
def test_a_damaged_digest_of_the_right_tree_is_not_believed(tree: Path, tmp_path: Path, digest: object) -> None:
    cache = tmp_path / "cache"
    expected = tree_digest(tree, cache)
    for path in cache.iterdir():
        value = json.loads(path.read_text())
        if "digest" in value:
            path.write_text(json.dumps({**value, "digest": digest}))
    assert tree_digest(tree, cache) == expected
