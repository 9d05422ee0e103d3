"""Column keys: the small keys that Parquet makes, wrapped under a version of a named key.

Trusts nothing of a wrapped key before its tag has held. Follows docs/formats/column-keys.md.
"""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import KeyRing
from strongroom.errors import InputError, IntegrityError

__all__ = ["unwrap_column_key", "wrap_column_key"]

_FORMAT = 1
_KEY_SIZES = (16, 24, 32)
_IV_BYTES = 12
_TAG_BYTES = 16
_HEAD = struct.Struct(">BI")
_LABEL = b"strongroom-column-key-v1\x00"


def wrap_column_key(ring: KeyRing, key: bytes) -> bytes:
    """Return `key` wrapped under the current version of `ring`.

    Raises:
        InputError: The key has not 16, 24 or 32 bytes.
    """
    if len(key) not in _KEY_SIZES:
        raise InputError(f"a column key has 16, 24 or 32 bytes, got {len(key)}")
    version, named = ring.current()
    head, iv = _HEAD.pack(_FORMAT, version), os.urandom(_IV_BYTES)
    return head + iv + _cipher(named).encrypt(iv, key, _aad(head, ring.name))


def unwrap_column_key(ring: KeyRing, wrapped: bytes) -> bytes:
    """Return the key in `wrapped`.

    Raises:
        IntegrityError: Another format, altered, or wrapped under another key.
        DeniedError: The ring does not hold the version that it was wrapped under.
    """
    if len(wrapped) - _HEAD.size - _IV_BYTES - _TAG_BYTES not in _KEY_SIZES or wrapped[0] != _FORMAT:
        raise IntegrityError(f"not a column key wrapped under {ring.name!r}: unknown format or length")
    head, iv, rest = wrapped[: _HEAD.size], wrapped[_HEAD.size :][:_IV_BYTES], wrapped[_HEAD.size + _IV_BYTES :]
    version: int = _HEAD.unpack(head)[1]
    try:
        return _cipher(ring.version(version)).decrypt(iv, rest, _aad(head, ring.name))
    except InvalidTag as exc:
        raise IntegrityError(
            f"a column key does not open under {ring.name!r} version {version}: it was altered or is another key's"
        ) from exc


def _cipher(named: SecretBytes) -> AESGCM:
    with named as raw:
        return AESGCM(HKDFExpand(algorithm=SHA512(), length=32, info=_LABEL).derive(raw))


def _aad(head: bytes, name: str) -> bytes:
    return _LABEL + head + name.encode("ascii")
