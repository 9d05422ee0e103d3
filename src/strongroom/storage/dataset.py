"""Data sets: the manifest that lists every file, and the head that names the manifest.

Trusts the head, which the trust service signed and released together with the key. Trusts nothing in the folder: the
manifest must have the head's hash, and a file must be the one that the manifest lists. Follows
docs/formats/data-set.md.
"""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from strongroom._encoding import canonical_json, parse_json
from strongroom.crypto.keys import KeyRing
from strongroom.crypto.stream import SALT_BYTES
from strongroom.errors import InputError, IntegrityError
from strongroom.storage.files import Expected, SealedEntry, open_sealed, seal_stream, sealed_by
from strongroom.storage.info import FORMAT, DatasetInfo, check_dataset_id, read_info, read_whole, write_info
from strongroom.storage.places import DATASET_FOLDER, TEMPORARY, Location, Place, place

__all__ = [
    "DatasetInfo",
    "Head",
    "HeadStore",
    "Manifest",
    "ManifestEntry",
    "check_path",
    "load_manifest",
    "read_info",
    "read_whole",
    "remove_stale_manifests",
    "tampered",
    "write_info",
    "write_manifest",
]

MAX_MANIFEST_BYTES = 1 << 28
MAX_PATH_BYTES = 4096
_MAX_SIZE = 2**53 - 1

TamperKind = Literal["dropped", "added", "swapped or rolled back", "truncated or extended", "rolled back"]


def tampered(kind: TamperKind, path: str, message: str, *, hint: str = "") -> IntegrityError:
    """Return the refusal of data-set.md §4 for `path`; `details` carry `class` and `path`."""
    return IntegrityError(f"{path}: {kind}: {message}", hint=hint, details={"class": kind, "path": path})


def check_path(path: str) -> str:
    """Return `path` if a data set may hold a file of this name.

    Raises:
        InputError: Absolute, leaves the folder, not NFC, not UTF-8, reserved, or with control characters.
    """
    shown = ascii(path[:200])
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise InputError(f"file name {shown} is not UTF-8", hint="rename the file") from exc
    if not 0 < size <= MAX_PATH_BYTES:
        raise InputError(f"file name {shown} has {size} bytes, allowed are 1 to {MAX_PATH_BYTES}")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InputError(f"file name {shown} leaves its folder or has an empty part")
    if DATASET_FOLDER in parts or parts[-1].startswith(TEMPORARY):
        raise InputError(f"file name {shown} is reserved", hint="rename the file or folder")
    if any(unicodedata.category(letter) == "Cc" for letter in path):
        raise InputError(f"file name {shown} has a control character", hint="rename the file")
    if not unicodedata.is_normalized("NFC", path):
        raise InputError(
            f"file name {shown} is not in Unicode form NFC", hint="rename the file, e.g. with convmv --nfc"
        )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The state of a data set, as the trust service keeps and signs it.

    Attributes:
        dataset: 32 hex digits.
        epoch: 0 for a data set without files; one more with each commit.
        key: Name of the key.
        manifest: `sha256:<hex>` of the sealed manifest, None at epoch 0.
        owner: Fingerprint of the owner's certificate.
    """

    dataset: str
    epoch: int
    key: str
    manifest: str | None
    owner: str

    @property
    def dataset_id(self) -> bytes:
        """Return the 16 bytes of the id."""
        return bytes.fromhex(check_dataset_id(self.dataset))


class HeadStore(Protocol):
    """Who keeps the heads: the trust service, or a fake."""

    def current(self, dataset: str) -> Head:
        """Return the head of `dataset`."""
        ...

    def commit(self, expected: Head, manifest: str, versions: Sequence[int]) -> Head:
        """Replace `expected` by its successor that names `manifest`, and return it.

        `versions` are the key versions that its files need, so that none of them is destroyed.

        Raises:
            IntegrityError: `expected` is not the head any more: someone else committed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ManifestEntry:
    """One file: its name, plaintext size, 24-byte salt and key version."""

    path: str
    size: int
    salt: bytes
    key_version: int

    @classmethod
    def of(cls, path: str, entry: SealedEntry) -> ManifestEntry:
        """Return the entry of a sealed file at `path`."""
        return cls(path=path, size=entry.size, salt=entry.salt, key_version=entry.key_version)

    def __post_init__(self) -> None:
        check_path(self.path)
        if not 0 <= self.size <= _MAX_SIZE or len(self.salt) != SALT_BYTES or not 1 <= self.key_version < 2**32:
            raise InputError(f"manifest entry {self.path}: size, salt or key version is out of range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Every file of a data set at one epoch; sorted by path, no name twice, no file where a folder must be."""

    dataset: str
    entries: tuple[ManifestEntry, ...] = ()
    _by_path: dict[str, ManifestEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_dataset_id(self.dataset)
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda e: e.path)))
        by_path = {entry.path: entry for entry in self.entries}
        if len(by_path) != len(self.entries):
            raise InputError("a manifest lists no file twice")
        for path in by_path:
            for at, letter in enumerate(path):
                if letter == "/" and path[:at] in by_path:
                    raise InputError(f"a manifest cannot list {path[:at]} and {path}")
        object.__setattr__(self, "_by_path", by_path)

    def find(self, path: str) -> ManifestEntry | None:
        """Return the entry of `path`, or None if it is not listed."""
        return self._by_path.get(path)

    def encode(self) -> bytes:
        """Return the canonical JSON of data-set.md §2."""
        files = [
            {"key_version": e.key_version, "path": e.path, "salt": e.salt.hex(), "size": e.size} for e in self.entries
        ]
        return canonical_json({"dataset": self.dataset, "files": files, "format": FORMAT})

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Return the manifest in `raw`.

        Raises:
            IntegrityError: Not exactly what `encode` writes.
        """
        try:
            manifest = _manifest_from(parse_json(raw, "manifest", max_bytes=MAX_MANIFEST_BYTES))
        except (InputError, AttributeError, KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(f"the manifest is malformed: {exc}") from exc
        if manifest.encode() != raw:  # refuses extra members, order, spaces, other number and salt spellings
            raise IntegrityError("the manifest is not canonical")
        return manifest


def _manifest_from(value: object) -> Manifest:
    if not isinstance(value, dict) or type(value["format"]) is not int or value["format"] != FORMAT:
        raise InputError("unknown format")
    entries = []
    for item in value["files"]:
        if type(item["size"]) is not int or type(item["key_version"]) is not int:
            raise InputError("a size or key version is not an integer")
        entries.append(
            ManifestEntry(
                path=item["path"],
                size=item["size"],
                salt=bytes.fromhex(item["salt"]),
                key_version=item["key_version"],
            )
        )
    return Manifest(dataset=value["dataset"], entries=tuple(entries))


def write_manifest(folder: Location | Place, manifest: Manifest, ring: KeyRing, run_id: bytes) -> str:
    """Seal `manifest` into `folder` and return `sha256:<hex>` of its sealed bytes."""
    at = place(folder)
    sealed = io.BytesIO()
    seal_stream(io.BytesIO(manifest.encode()), sealed, ring, dataset_id=bytes.fromhex(manifest.dataset), run_id=run_id)
    raw = sealed.getvalue()
    digest = hashlib.sha256(raw).hexdigest()
    with at.create(f"{DATASET_FOLDER}/{digest}") as out:
        out.write(memoryview(raw))
    at.settle()
    return f"sha256:{digest}"


def load_manifest(folder: Location | Place, head: Head, ring: KeyRing) -> Manifest:
    """Return the manifest that `head` names; empty at epoch 0.

    Raises:
        IntegrityError: It is not there, altered, or of another data set or key.
    """
    if head.manifest is None:
        if head.epoch != 0:
            raise IntegrityError(f"the head of {head.dataset} at epoch {head.epoch} names no manifest")
        return Manifest(dataset=head.dataset)
    algorithm, _, digest = head.manifest.partition(":")
    if algorithm != "sha256" or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise IntegrityError(f"the head of {head.dataset} names no SHA-256")
    at, path = place(folder), f"{DATASET_FOLDER}/{digest}"
    if at.stat(path) is None:
        raise tampered(
            "rolled back",
            path,
            f"{at.url} does not hold the manifest of epoch {head.epoch}",
            hint="restore the newest copy of the data set, or accept an older one: strongroom data accept-epoch",
        )
    raw = read_whole(at, path, MAX_MANIFEST_BYTES)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise IntegrityError(f"{at.url}/{path}: the manifest was altered", details={"path": path})
    with sealed_by(path):
        opened = open_sealed(io.BytesIO(raw), ring, Expected(dataset_id=head.dataset_id))
        manifest = Manifest.decode(opened.reader.readall())
    if manifest.dataset != head.dataset:
        raise IntegrityError(f"the manifest is of data set {manifest.dataset}, expected {head.dataset}")
    return manifest


def remove_stale_manifests(folder: Location | Place, head: Head) -> None:
    """Remove every sealed manifest but the one that `head` names."""
    at = place(folder)
    keep = (head.manifest or "").removeprefix("sha256:")
    for name in at.names(DATASET_FOLDER):
        if len(name) == 64 and not set(name) - set("0123456789abcdef") and name != keep:
            at.remove(f"{DATASET_FOLDER}/{name}")
