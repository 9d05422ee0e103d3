"""What lets an interrupted run go on: authentic notes of the files that are already sealed.

The host can delete, repeat and reorder notes, but not make one. A note is a MAC over a statement that stays true for
ever, so an old note is as good as a new one:

    sealed    the sealed file with this salt, at this path, holds the source file of this identity
    resealed  the sealed file with this salt holds what the committed one with that salt held

The identity of a local source is device, inode, size, mtime and ctime. A believed note only skips work: commitment,
final chunk and size of the kept file are checked first, and every chunk when the file is read. A host that damages a
kept file thus gains a refusal later, never another content.

The note of a resealed file is on the disk before the file takes the old one's place: that was the only copy.

Files: `.dataset/journal-<random>`, 32-byte MACs one after the other. The MAC key is derived from the version of the
named key that the sealed file is under.
"""

from __future__ import annotations

import hmac
import secrets
import time

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom._encoding import labelled_hash
from strongroom.crypto.keys import KeyRing
from strongroom.storage.dataset import read_whole
from strongroom.storage.places import DATASET_FOLDER, Place

__all__ = ["Journal"]

_NOTE_BYTES = 32
_MAX_BYTES = 1 << 28
_BATCH = 256
_BATCH_S = 1.0
_PREFIX = "journal-"


class Journal:
    """The notes of one data set."""

    def __init__(self, at: Place, dataset: str, ring: KeyRing) -> None:
        self._at = at
        self._dataset = dataset.encode("ascii")
        self._ring = ring
        self._keys: dict[int, bytes] = {}
        self._new: list[bytes] = []
        self._flushed_s = time.monotonic()
        self._read: set[bytes] | None = None

    @property
    def _held(self) -> set[bytes]:
        if self._read is None:  # who only writes notes reads none
            self._read = set()
            for name in self._names():
                raw = read_whole(self._at, f"{DATASET_FOLDER}/{name}", _MAX_BYTES)
                self._read.update(raw[i : i + _NOTE_BYTES] for i in range(0, len(raw), _NOTE_BYTES))
        return self._read

    def _names(self) -> list[str]:
        return [name for name in self._at.names(DATASET_FOLDER) if name.startswith(_PREFIX)]

    def __bool__(self) -> bool:
        return bool(self._held)

    def sealed(self, path: str, identity: str, salt: bytes, key_version: int) -> bytes:
        """Return the note that `path` with `salt` holds the source of `identity`."""
        return self._note(key_version, b"sealed", path.encode(), identity.encode(), salt)

    def resealed(self, path: str, old_salt: bytes, salt: bytes, key_version: int) -> bytes:
        """Return the note that `path` with `salt` holds what it held with `old_salt`."""
        return self._note(key_version, b"resealed", path.encode(), old_salt, salt)

    def _note(self, key_version: int, *fields: bytes) -> bytes:
        if key_version not in self._keys:
            with self._ring.version(key_version) as raw:
                info = b"strongroom sealing journal v1"
                self._keys[key_version] = HKDFExpand(algorithm=SHA512(), length=32, info=info).derive(raw)
        digest = labelled_hash("strongroom journal note", (self._dataset, key_version.to_bytes(4, "big"), *fields))
        return hmac.digest(self._keys[key_version], digest, "sha256")

    def holds(self, note: bytes) -> bool:
        """Return whether an earlier run left this note."""
        return note in self._held

    def add(self, note: bytes) -> None:
        """Keep a note; it reaches the disk within a second of work or 256 notes."""
        self._new.append(note)
        if len(self._new) >= _BATCH or time.monotonic() - self._flushed_s > _BATCH_S:
            self.flush()

    def flush(self) -> None:
        """Write the notes that are not on disk."""
        self._flushed_s = time.monotonic()
        if self._new:
            self._write(b"".join(self._new))
            self._held.update(self._new)
            self._new = []

    def replace(self, notes: list[bytes]) -> None:
        """Keep `notes` and forget all others."""
        old = self._names()
        if notes:
            self._write(b"".join(notes))
        for name in old:
            self._at.remove(f"{DATASET_FOLDER}/{name}")
        self._read, self._new = set(notes), []

    def _write(self, raw: bytes) -> None:
        with self._at.create(f"{DATASET_FOLDER}/{_PREFIX}{secrets.token_hex(8)}") as out:
            out.write(memoryview(raw))
