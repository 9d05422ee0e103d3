"""Manifests, heads and names: exact encodings, and every refusal of data-set.md."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import InputError, IntegrityError
from strongroom.storage.dataset import (
    DatasetInfo,
    Head,
    Manifest,
    ManifestEntry,
    check_path,
    load_manifest,
    read_info,
    remove_stale_manifests,
    write_info,
    write_manifest,
)

RING = StaticKeyRing("sales", {1: SecretBytes(b"1" * 32)})
DATASET = "ab" * 16


def entry(path: str = "a.csv", size: int = 5, salt: bytes = b"s" * 24) -> ManifestEntry:
    return ManifestEntry(path=path, size=size, salt=salt, key_version=1)


def head(manifest: str | None, epoch: int = 1, dataset: str = DATASET) -> Head:
    return Head(dataset=dataset, epoch=epoch, key="sales", manifest=manifest, owner="me")


def test_manifest_bytes_are_the_documented_ones() -> None:
    raw = Manifest(dataset=DATASET, entries=(entry("b"), entry("a"))).encode()
    assert raw == (
        b'{"dataset":"%s","files":[{"key_version":1,"path":"a","salt":"%s","size":5},'
        b'{"key_version":1,"path":"b","salt":"%s","size":5}],"format":1}' % (DATASET.encode(), b"73" * 24, b"73" * 24)
    )


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, st.integers(0, 2**53 - 1), max_size=6))
def test_manifest_round_trip_or_refusal(files: dict[str, int]) -> None:
    try:
        manifest = Manifest(dataset=DATASET, entries=tuple(entry(p, s) for p, s in files.items()))
    except InputError:
        return
    assert Manifest.decode(manifest.encode()) == manifest


def altered(**changes: object) -> bytes:
    value = json.loads(Manifest(dataset=DATASET, entries=(entry(),)).encode()) | changes
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


GOOD = {"key_version": 1, "path": "a.csv", "salt": "73" * 24, "size": 5}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        altered(format=2),
        altered(format=True),
        altered(more=1),
        altered(dataset="AB" * 16),
        altered(files=[GOOD, GOOD]),
        altered(files=[GOOD | {"more": 1}]),
        altered(files=[GOOD | {"size": 5.0}]),
        altered(files=[GOOD | {"size": True}]),
        altered(files=[GOOD | {"size": -1}]),
        altered(files=[GOOD | {"salt": "73" * 23}]),
        altered(files=[GOOD | {"salt": "7 " * 24}]),
        altered(files=[GOOD | {"path": "../a"}]),
        altered(files=[GOOD | {"path": 5}]),
        altered(files=[GOOD | {"path": "b"}, GOOD]),
        altered(files={"a": 1}),
        altered() + b"\n",
        b" " + altered(),
    ],
)
def test_manifests_that_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.decode(raw)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\x00", "a\nb", "a\x7f", "a\x85", "e\u0301", "a\udcff",
     ".dataset/x", "a/.dataset/b", ".dataset", ".~strongroom-x", "a/.~strongroom-x", "a" * 5000],
)  # fmt: skip
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(InputError):
        check_path(path)


@pytest.mark.parametrize("path", ["a", "é", "a b/c", "..a", "a..", ".hidden", "日本/データ", "back\\slash"])
def test_paths_that_are_allowed(path: str) -> None:
    assert check_path(path) == path


def test_a_file_is_no_folder() -> None:
    with pytest.raises(InputError):
        Manifest(dataset=DATASET, entries=(entry("a"), entry("a/b")))


def test_info_round_trip_and_strictness(tmp_path: Path) -> None:
    assert read_info(tmp_path) is None
    info = DatasetInfo(dataset=DATASET, key="sales", owner="me")
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    path = tmp_path / ".dataset/id.json"
    assert path.read_text() == f'{{"dataset":"{DATASET}","format":1,"key":"sales","owner":"me"}}'
    for bad in ("{}", "[]", path.read_text().replace("}", ',"x":1}'), path.read_text().replace("ab", "AB")):
        path.write_text(bad)
        with pytest.raises(InputError):
            read_info(tmp_path)


@pytest.mark.parametrize("memory", [False, True])
def test_manifest_on_disk(tmp_path: Path, memory: bool) -> None:
    folder = f"memory://manifests{tmp_path}" if memory else str(tmp_path)
    manifest = Manifest(dataset=DATASET, entries=(entry(),))
    first, second = (write_manifest(folder, manifest, RING, bytes(16)) for _ in "12")
    assert first != second
    assert load_manifest(folder, head(first), RING) == manifest
    remove_stale_manifests(folder, head(second))
    assert load_manifest(folder, head(second), RING) == manifest
    with pytest.raises(IntegrityError, match="rolled back"):
        load_manifest(folder, head(first), RING)


def test_manifest_that_is_not_the_heads(tmp_path: Path) -> None:
    manifest = Manifest(dataset=DATASET, entries=(entry(),))
    name = write_manifest(tmp_path, manifest, RING, bytes(16))
    with pytest.raises(IntegrityError):
        load_manifest(tmp_path, head(name, dataset="cd" * 16), RING)
    with pytest.raises(IntegrityError):
        load_manifest(tmp_path, head(None), RING)
    for odd in ("sha256:../../etc/passwd", "sha1:" + "0" * 64, name.upper()):
        with pytest.raises(IntegrityError):
            load_manifest(tmp_path, head(odd), RING)
    assert load_manifest(tmp_path, head(None, epoch=0), RING) == Manifest(dataset=DATASET)
    path = tmp_path / ".dataset" / name.removeprefix("sha256:")
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="altered"):
        load_manifest(tmp_path, head(name), RING)
