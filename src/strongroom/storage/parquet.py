"""Parquet's column encryption for owners: named keys as the master keys of PyArrow's `CryptoFactory`.

Reads what Spark wrote in an enclave under column keys, and writes what it reads. PyArrow comes with the extra `spark`.
Follows docs/formats/column-keys.md.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from strongroom.crypto.column_keys import unwrap_column_key, wrap_column_key
from strongroom.crypto.header import check_key_name
from strongroom.crypto.keys import KeyRing
from strongroom.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from pyarrow.parquet.encryption import CryptoFactory, KmsConnectionConfig

__all__ = ["crypto_factory"]


def crypto_factory(keys: Callable[[str], KeyRing]) -> CryptoFactory:
    """Return PyArrow's maker of encryption and decryption properties, over named keys.

    Args:
        keys: Gives the versions of a named key; asked once a name. An owner's is `OwnerClient.key_ring`.

    Raises:
        InputError: PyArrow is not installed.
    """
    try:
        import pyarrow.parquet.encryption as pe  # noqa: PLC0415  # an extra
    except ImportError as exc:
        raise InputError("PyArrow is not installed", hint="pip install 'strongroom[spark]'") from exc
    rings: dict[str, KeyRing] = {}
    lock = threading.Lock()  # PyArrow asks from its reading threads

    def ring(name: str) -> KeyRing:
        with lock:
            if name not in rings:
                rings[name] = keys(check_key_name(name))  # the name stands in the file: whoever wrote it chose it
            return rings[name]

    class NamedKeys(pe.KmsClient):  # type: ignore[misc]  # PyArrow has no types
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64encode(wrap_column_key(ring(name), key))

        def unwrap_key(self, wrapped: str, name: str) -> bytes:
            try:
                raw = base64.b64decode(wrapped, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise IntegrityError(f"a column key wrapped under {name!r} is not base64") from exc
            return unwrap_column_key(ring(name), raw)

    def connect(_config: KmsConnectionConfig) -> NamedKeys:
        return NamedKeys()

    return pe.CryptoFactory(connect)
