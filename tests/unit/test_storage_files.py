"""One sealed file on disk: whole or not there, checked against what the caller expects, errors in one sentence."""

import os
from pathlib import Path

import fsspec
import pytest

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import StaticKeyRing
from strongroom.crypto.stream import sealed_size, write_all
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.storage.files import Expected, SealedEntry, open_sealed, seal_stream, sealed_by
from strongroom.storage.places import TEMPORARY, LocalPlace, Place, place

RING = StaticKeyRing("sales", {1: SecretBytes(b"1" * 32), 2: SecretBytes(b"2" * 32)})
DATASET = b"d" * 16
EXPECT = Expected(dataset_id=DATASET)


def seal(here: Place, name: str, there: Place, sealed: str) -> SealedEntry:
    with here.read(name) as raw, there.create(sealed) as out:
        return seal_stream(raw, out, RING, dataset_id=DATASET)


def open_(
    here: Place, name: str, there: Place, plain: str, ring: StaticKeyRing = RING, expect: Expected = EXPECT
) -> SealedEntry:
    with here.read(name) as raw, sealed_by(f"{here.url}/{name}"):
        opened = open_sealed(raw, ring, expect)
        with there.create(plain) as out:
            opened.reader.copy_to(lambda view: write_all(out, view))
    return opened.entry


def test_seal_and_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    at = LocalPlace(tmp_path)
    sealed = seal(at, "a", at, "b")
    assert (sealed.size, sealed.key_version) == (100_000, 2)
    assert (tmp_path / "b").stat().st_size == sealed_size(100_000)
    assert open_(at, "b", at, "c") == sealed
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_memory_urls(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    memory = place("memory://one")
    seal(LocalPlace(tmp_path), "a", memory, "b")
    open_(memory, "b", memory, "c")
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
    at = LocalPlace(tmp_path)
    seal(at, "a", at, "b")
    with pytest.raises(IntegrityError, match=str(tmp_path / "b")):
        open_(at, "b", at, "c", expect=expect)
    assert not (tmp_path / "c").exists()


def test_other_ring_and_missing_version(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    at = LocalPlace(tmp_path)
    seal(at, "a", at, "b")
    with pytest.raises(IntegrityError):
        open_(at, "b", at, "c", StaticKeyRing("hr", {2: SecretBytes(b"2" * 32)}))
    with pytest.raises(DeniedError):
        open_(at, "b", at, "c", StaticKeyRing("sales", {1: SecretBytes(b"1" * 32)}))


def test_altered_late_chunk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    at = LocalPlace(tmp_path)
    seal(at, "a", at, "b")
    blob = bytearray((tmp_path / "b").read_bytes())
    blob[2_500_000] ^= 1
    (tmp_path / "b").write_bytes(blob)
    (tmp_path / "c").write_bytes(b"older")
    with pytest.raises(IntegrityError, match="chunk 152"):
        open_(at, "b", at, "c")
    assert (tmp_path / "c").read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["missing", "folder", "link", "pipe", "a/under"])
def test_sources_that_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as caught:
        seal(LocalPlace(tmp_path), name, LocalPlace(tmp_path), "b")
    assert name in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_target_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    with pytest.raises(InputError):
        seal(LocalPlace(tmp_path), "a", LocalPlace(tmp_path), "a/b")


def test_leftovers_go_work_in_progress_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / f"{TEMPORARY}dead").write_bytes(b"half")
    with LocalPlace(tmp_path).create("slow") as raw:
        raw.write(memoryview(b"half"))
        LocalPlace(tmp_path).tidy()
        assert len([p for p in tmp_path.iterdir() if p.name.startswith(TEMPORARY)]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "slow"]


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
