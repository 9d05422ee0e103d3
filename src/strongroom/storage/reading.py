"""One file of a data set, opened at any place, for owners."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from strongroom.crypto.keys import KeyRing
from strongroom.crypto.stream import Reader
from strongroom.errors import InputError
from strongroom.storage.dataset import Manifest
from strongroom.storage.files import Expected, open_sealed, sealed_by
from strongroom.storage.leftovers import KEPT_FOLDER
from strongroom.storage.places import LocalPlace, Place

__all__ = ["reading"]


@contextmanager
def reading(at: Place, manifest: Manifest, ring: KeyRing, path: str) -> Iterator[Reader]:
    """Open the file at `path` of the data set in `at`; every chunk is verified as it is read.

    Raises:
        InputError: The manifest lists no such file.
        IntegrityError: The file is not the one that the manifest lists.
    """
    entry = manifest.find(path)
    if entry is None:
        raise InputError(f"{at.url} holds no file {path}", hint="`strongroom data show` lists them")
    expect = Expected(dataset_id=bytes.fromhex(manifest.dataset), salt=entry.salt, size=entry.size)
    kept = f"{KEPT_FOLDER}/{entry.salt.hex()}"  # there while somebody changes the folder, or waits for approval
    lies = kept if isinstance(at, LocalPlace) and at.stat(kept) else path
    with at.read(lies) as raw, sealed_by(f"{at.url}/{path}"):
        yield open_sealed(raw, ring, expect).reader
