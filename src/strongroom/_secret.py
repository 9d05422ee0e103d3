"""Bytes that must not be printed, pickled or left lying about.

Python cannot promise to wipe memory. What this type does promise: no accidental copy into a log, a repr, an exception
or a pickle.
"""

from __future__ import annotations

import hmac
import os
from types import TracebackType
from typing import NoReturn

__all__ = ["SecretBytes"]


class SecretBytes:
    """Holds key material; read it with `with secret as raw:`."""

    __slots__ = ("_buffer",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._buffer = bytearray(value)

    @classmethod
    def random(cls, size_bytes: int) -> SecretBytes:
        """Return `size_bytes` fresh bytes from the operating system."""
        return cls(os.urandom(size_bytes))

    def __enter__(self) -> bytes:
        return bytes(self._buffer)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def __len__(self) -> int:
        return len(self._buffer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretBytes) and hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]  # a hash would be an oracle

    def __repr__(self) -> str:
        return f"<SecretBytes, {len(self._buffer)} bytes>"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("SecretBytes is not picklable")
