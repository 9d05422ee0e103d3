"""The host against a sealed data set: it owns folder, disk and processes. T20-T29 of docs/threat-model.md."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import tiny_disk

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import InputError, IntegrityError, UnavailableError
from strongroom.storage.dataset import DatasetInfo, Head, Manifest, ManifestEntry, write_info, write_manifest
from strongroom.storage.files import seal_stream
from strongroom.storage.trees import open_tree, reseal_tree, seal_tree, verify_tree

KEY = SecretBytes(b"1" * 32)
RING = StaticKeyRing("sales", {1: KEY})
INFO = DatasetInfo(dataset="ab" * 16, key="sales", owner="me")
FILES = {"a.csv": b"a" * 20_000, "b.csv": b"b" * 20_000, "sub/c.csv": b"c" * 100}


class Heads:
    def __init__(self, info: DatasetInfo = INFO) -> None:
        self.head = Head(dataset=info.dataset, epoch=0, key=info.key, manifest=None, owner=info.owner)

    def current(self, dataset: str) -> Head:
        assert dataset == self.head.dataset
        return self.head

    def commit(self, expected: Head, manifest: str, versions: Sequence[int] = ()) -> Head:
        if expected != self.head:
            raise IntegrityError("someone else committed")
        self.head = replace(expected, epoch=expected.epoch + 1, manifest=manifest)
        return self.head


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def heads() -> Heads:
    return Heads()


@pytest.fixture
def sealed(tmp_path: Path, heads: Heads) -> Path:
    seal_tree(make(tmp_path / "in", FILES), tmp_path / "s", RING, heads, info=INFO)
    return tmp_path / "s"


def refuses(folder: Path, head: Head, path: str, kind: str) -> None:
    """Open and verify both refuse, name the file, and put no plaintext of it anywhere."""
    out = folder.parent / "out"
    for attempt in (
        lambda: open_tree(folder, out, RING, head),
        lambda: verify_tree(folder, RING, head),
    ):
        with pytest.raises(IntegrityError, match=path) as caught:
            attempt()
        assert kind in str(caught.value)
    assert not (out / path).exists()


def test_T20_swapped_files(sealed: Path, heads: Heads) -> None:
    (sealed / "a.csv").rename(sealed / "x")
    (sealed / "b.csv").rename(sealed / "a.csv")
    (sealed / "x").rename(sealed / "b.csv")
    with pytest.raises(IntegrityError) as caught:
        verify_tree(sealed, RING, heads.head)
    problems = caught.value.details["problems"]
    assert isinstance(problems, list)
    assert [(p["path"], p["class"]) for p in problems] == [
        ("a.csv", "swapped or rolled back"),
        ("b.csv", "swapped or rolled back"),
    ]
    refuses(sealed, heads.head, "a.csv", "swapped")


def test_T20_duplicated_file(sealed: Path, heads: Heads) -> None:
    shutil.copy(sealed / "a.csv", sealed / "b.csv")
    refuses(sealed, heads.head, "b.csv", "swapped")


def test_T21_dropped_file(sealed: Path, heads: Heads) -> None:
    (sealed / "sub/c.csv").unlink()
    refuses(sealed, heads.head, "sub/c.csv", "dropped")


def test_T22_added_file(sealed: Path, heads: Heads) -> None:
    with open(sealed.parent / "in/a.csv", "rb", 0) as raw, open(sealed / "extra.csv", "wb", 0) as out:
        seal_stream(raw, out, RING, dataset_id=INFO.dataset_id)
    refuses(sealed, heads.head, "extra.csv", "added")


def test_T23_rolled_back_file(sealed: Path, heads: Heads) -> None:
    old = (sealed / "a.csv").read_bytes()
    make(sealed.parent / "in", {"a.csv": b"A" * 20_000})
    seal_tree(sealed.parent / "in", sealed, RING, heads, info=INFO)
    (sealed / "a.csv").write_bytes(old)
    refuses(sealed, heads.head, "a.csv", "rolled back")


@pytest.mark.parametrize("size", [0, 100, 183, 184, 184 + 16_400, 184 + 16_400 + 17])
def test_T23_truncated_file(sealed: Path, heads: Heads, size: int) -> None:
    os.truncate(sealed / "a.csv", size)
    refuses(sealed, heads.head, "a.csv", "truncated")


def test_T24_file_of_another_data_set(sealed: Path, heads: Heads, tmp_path: Path) -> None:
    other = DatasetInfo(dataset="cd" * 16, key="sales", owner="me")
    seal_tree(tmp_path / "in", tmp_path / "other", RING, Heads(other), info=other)
    shutil.copy(tmp_path / "other/a.csv", sealed / "a.csv")
    refuses(sealed, heads.head, "a.csv", "belongs to data set " + "cd" * 16)


def test_T24_whole_other_data_set(sealed: Path, heads: Heads, tmp_path: Path) -> None:
    other = DatasetInfo(dataset="cd" * 16, key="sales", owner="me")
    other_heads = Heads(other)
    seal_tree(tmp_path / "in", tmp_path / "other", RING, other_heads, info=other)
    with pytest.raises(IntegrityError, match="does not hold the manifest"):
        open_tree(tmp_path / "other", tmp_path / "out", RING, heads.head)
    confused = replace(heads.head, manifest=other_heads.head.manifest)  # even if the head were mixed up
    with pytest.raises(IntegrityError, match="cd" * 16):
        open_tree(tmp_path / "other", tmp_path / "out", RING, confused)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", ".dataset/id.json", "a\x00b", "a//b"])
def test_T25_path_traversal_in_a_genuine_manifest(tmp_path: Path, heads: Heads, path: str) -> None:
    class Lying(Manifest):
        def encode(self) -> bytes:
            return super().encode().replace(b'"PLACEHOLDER"', canonical(path))

    def canonical(text: str) -> bytes:
        from strongroom._encoding import canonical_json

        return canonical_json(text)

    write_info(tmp_path / "s", INFO)
    entry = ManifestEntry(path="PLACEHOLDER", size=1, salt=b"s" * 24, key_version=1)
    name = write_manifest(tmp_path / "s", Lying(dataset=INFO.dataset, entries=(entry,)), RING, bytes(16))
    head = heads.commit(heads.head, name)
    with pytest.raises(IntegrityError, match="manifest is malformed"):
        open_tree(tmp_path / "s", tmp_path / "out", RING, head)
    assert not (tmp_path / "evil").exists()


def test_T26_symlink_in_a_sealed_folder(sealed: Path, heads: Heads) -> None:
    (sealed / "a.csv").rename(sealed.parent / "elsewhere")
    (sealed / "a.csv").symlink_to(sealed.parent / "elsewhere")
    refuses(sealed, heads.head, "a.csv", "symbolic link")


def test_T26_symlinked_folder_in_a_sealed_folder(sealed: Path, heads: Heads) -> None:
    (sealed / "sub").rename(sealed.parent / "elsewhere")
    (sealed / "sub").symlink_to(sealed.parent / "elsewhere", target_is_directory=True)
    refuses(sealed, heads.head, "sub", "added")


def test_T26_symlink_in_the_target_does_not_lead_plaintext_out(sealed: Path, heads: Heads, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(InputError, match="symbolic link"):
        open_tree(sealed, tmp_path / "out", RING, heads.head, overwrite=True)
    assert not list((tmp_path / "outside").iterdir())


def test_T27_whole_folder_rolled_back(sealed: Path, heads: Heads) -> None:
    shutil.copytree(sealed, sealed.parent / "backup")
    make(sealed.parent / "in", {"a.csv": b"A" * 20_000})
    seal_tree(sealed.parent / "in", sealed, RING, heads, info=INFO)
    with pytest.raises(IntegrityError, match="rolled back"):
        verify_tree(sealed.parent / "backup", RING, heads.head)
    with pytest.raises(IntegrityError, match="rolled back"):  # nor can new files be sealed on top of it
        seal_tree(sealed.parent / "in", sealed.parent / "backup", RING, heads, info=INFO)
    shutil.rmtree(sealed)
    with pytest.raises(IntegrityError, match="rolled back"):
        seal_tree(sealed.parent / "in", sealed, RING, heads, info=INFO)


SEALER = """
import sys
sys.path[:0] = [{src!r}, {tests!r}]
import importlib.util
spec = importlib.util.spec_from_file_location("threats", {this!r})
threats = importlib.util.module_from_spec(spec); spec.loader.exec_module(threats)
def tell(progress):
    if progress.files_done >= 3:
        print("go", flush=True)
ring, heads = threats.RING, threats.Heads()
threats.seal_tree({source!r}, {target!r}, ring, heads, info=threats.INFO, workers={workers}, progress=tell)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_T28_killed_run_leaves_no_half_file_and_the_next_finishes(tmp_path: Path, workers: int) -> None:
    source = make(tmp_path / "in", {f"f{n:02}": os.urandom(4_000_000) for n in range(30)})
    src = str(Path(__file__).parents[2] / "src")
    code = SEALER.format(
        src=src, tests=".", this=__file__, source=str(source), target=str(tmp_path / "s"), workers=workers
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.readline()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    before = {p.name for p in (tmp_path / "s").iterdir() if not p.name.startswith(".")}
    assert 3 <= len(before) < 30
    heads = Heads()
    done = seal_tree(source, tmp_path / "s", RING, heads, info=INFO)  # waits for orphaned workers to end
    assert done.files == 30
    verify_tree(tmp_path / "s", RING, heads.head)
    assert not [p for p in (tmp_path / "s").rglob("*") if p.name.startswith(".~strongroom-")]
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    open_tree(tmp_path / "s", tmp_path / "out", RING, heads.head)
    assert all((tmp_path / "out" / p.name).read_bytes() == p.read_bytes() for p in source.iterdir())


def test_T28_full_disk_leaves_no_half_file_and_the_next_run_finishes(tmp_path: Path, heads: Heads) -> None:
    source = make(tmp_path / "in", {"big": bytes(1_500_000), "small": bytes(900_000)})
    with tiny_disk(tmp_path / "disk") as disk:
        with pytest.raises(UnavailableError, match="no space is left") as caught:
            seal_tree(source, disk / "s", RING, heads, info=INFO)
        assert "small" in str(caught.value)
        assert "free some space" in caught.value.hint
        assert sorted(p.name for p in (disk / "s").iterdir()) == [".dataset", "big"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert seal_tree(source, disk / "s", RING, heads, info=INFO).kept == 1
        verify_tree(disk / "s", RING, heads.head)


def test_T29_journal_cannot_be_forged(sealed: Path, heads: Heads) -> None:
    # The host replaces b.csv by an older genuine sealed file of the same size and floods the journal.
    source = sealed.parent / "in"
    old = (sealed / "b.csv").read_bytes()
    make(source, {"b.csv": b"B" * 20_000})
    seal_tree(source, sealed, RING, heads, info=INFO)
    (sealed / "b.csv").write_bytes(old)
    (sealed / ".dataset/journal-0000").write_bytes(os.urandom(32 * 1000) + old[:11])
    seal_tree(source, sealed, RING, heads, info=INFO)
    shutil.rmtree(sealed.parent / "out", ignore_errors=True)
    open_tree(sealed, sealed.parent / "out", RING, heads.head)
    assert (sealed.parent / "out/b.csv").read_bytes() == b"B" * 20_000


def test_T29_replayed_journal_makes_no_old_file_new(sealed: Path, heads: Heads) -> None:
    # An old journal and the old files it speaks of come back together: the source's identity has changed since.
    source = sealed.parent / "in"
    shutil.copytree(sealed, sealed.parent / "backup")
    make(source, {"a.csv": b"A" * 20_000})
    seal_tree(source, sealed, RING, heads, info=INFO)
    shutil.copy(sealed.parent / "backup/a.csv", sealed / "a.csv")
    for journal in (sealed.parent / "backup/.dataset").glob("journal-*"):
        shutil.copy(journal, sealed / ".dataset")
    seal_tree(source, sealed, RING, heads, info=INFO)
    open_tree(sealed, sealed.parent / "out", RING, heads.head)
    assert (sealed.parent / "out/a.csv").read_bytes() == b"A" * 20_000


def test_T29_replayed_journal_does_not_admit_a_swapped_file_to_reseal(sealed: Path, heads: Heads) -> None:
    shutil.copy(sealed / "a.csv", sealed / "b.csv")
    with pytest.raises(IntegrityError, match=r"b\.csv: swapped"):
        reseal_tree(sealed, StaticKeyRing("sales", {1: KEY, 2: SecretBytes(b"2" * 32)}), heads)
