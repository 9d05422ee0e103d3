"""One sealed file on disk: whole or not there, checked against what the caller expects, errors in one sentence."""

import os
from pathlib import Path

import fsspec
import pytest

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import StaticKeyRing
from strongroom.crypto.stream import sealed_size
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.storage.files import Expected, open_file, seal_file
from strongroom.storage.places import TEMPORARY, LocalPlace, place

RING = StaticKeyRing("sales", {1: SecretBytes(b"1" * 32), 2: SecretBytes(b"2" * 32)})
DATASET = b"d" * 16
EXPECT = Expected(dataset_id=DATASET)


def test_seal_and_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    sealed = seal_file(tmp_path / "a", tmp_path / "b", RING, dataset_id=DATASET)
    assert (sealed.size, sealed.key_version) == (100_000, 2)
    assert (tmp_path / "b").stat().st_size == sealed_size(100_000)
    assert open_file(tmp_path / "b", tmp_path / "c", RING, expect=EXPECT) == sealed
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_memory_urls(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    seal_file(tmp_path / "a", "memory://one/b", RING, dataset_id=DATASET)
    open_file("memory://one/b", "memory://one/c", RING, expect=EXPECT)
    assert fsspec.filesystem("memory").cat("/one/c") == b"plain"
    assert not [n for n in fsspec.filesystem("memory").find("/one") if TEMPORARY in n]


@pytest.mark.parametrize(
    "expect",
    [
        Expected(dataset_id=b"x" * 16),
        Expected(dataset_id=DATASET, salt=b"x" * 24),
        Expected(dataset_id=DATASET, size=4),
        Expected(dataset_id=DATASET, run_id=b"r" * 16),
    ],
)
def test_genuine_but_not_expected(tmp_path: Path, expect: Expected) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    seal_file(tmp_path / "a", tmp_path / "b", RING, dataset_id=DATASET)
    with pytest.raises(IntegrityError, match=str(tmp_path / "b")):
        open_file(tmp_path / "b", tmp_path / "c", RING, expect=expect)
    assert not (tmp_path / "c").exists()


def test_other_ring_and_missing_version(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    seal_file(tmp_path / "a", tmp_path / "b", RING, dataset_id=DATASET)
    with pytest.raises(IntegrityError):
        open_file(tmp_path / "b", tmp_path / "c", StaticKeyRing("hr", {2: SecretBytes(b"2" * 32)}), expect=EXPECT)
    with pytest.raises(DeniedError):
        open_file(tmp_path / "b", tmp_path / "c", StaticKeyRing("sales", {1: SecretBytes(b"1" * 32)}), expect=EXPECT)


def test_altered_late_chunk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    seal_file(tmp_path / "a", tmp_path / "b", RING, dataset_id=DATASET)
    blob = bytearray((tmp_path / "b").read_bytes())
    blob[2_500_000] ^= 1
    (tmp_path / "b").write_bytes(blob)
    (tmp_path / "c").write_bytes(b"older")
    with pytest.raises(IntegrityError, match="chunk 152"):
        open_file(tmp_path / "b", tmp_path / "c", RING, expect=EXPECT)
    assert (tmp_path / "c").read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["missing", "folder", "link", "pipe", "a/under"])
def test_sources_that_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as caught:
        seal_file(tmp_path / name, tmp_path / "b", RING, dataset_id=DATASET)
    assert name in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_target_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    with pytest.raises(InputError):
        seal_file(tmp_path / "a", tmp_path / "a" / "b", RING, dataset_id=DATASET)


def test_leftovers_go_work_in_progress_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / f"{TEMPORARY}dead").write_bytes(b"half")
    with LocalPlace(tmp_path).create("slow") as raw:
        raw.write(memoryview(b"half"))
        seal_file(tmp_path / "a", tmp_path / "b", RING, dataset_id=DATASET)
        assert len([p for p in tmp_path.iterdir() if p.name.startswith(TEMPORARY)]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "slow"]


def test_unknown_scheme_is_an_input_error() -> None:
    with pytest.raises(InputError, match="nosuch"):
        place("nosuch://x")


def test_local_work_does_not_load_fsspec() -> None:
    import subprocess
    import sys

    code = "import sys, strongroom.storage.trees; sys.exit('fsspec' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode
        == 0
    )
