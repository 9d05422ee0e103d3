"""The named keys that a job uses without a volume: they wrap and unwrap column keys and stay in the guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.crypto.column_keys import unwrap_column_key, wrap_column_key
from strongroom.crypto.keys import KeyRing
from strongroom.errors import DeniedError

__all__ = ["ColumnKey", "ColumnKeys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnKey:
    """One released key.

    Attributes:
        ring: Its versions.
        mode: `ro` to unwrap, `rw` to wrap as well.
    """

    ring: KeyRing
    mode: str


class ColumnKeys:
    """Answers for `keys`, by name."""

    def __init__(self, keys: Mapping[str, ColumnKey]) -> None:
        self._keys = dict(keys)

    def wrap(self, name: str, key: bytes) -> bytes:
        """Return a new column key, wrapped under key `name`.

        Raises:
            DeniedError: The job has not this key, or may only read with it.
        """
        found = self._find(name)
        if found.mode != "rw":
            raise DeniedError(f"key {name!r} is given to this job for reading only: it wraps no new column key")
        return wrap_column_key(found.ring, key)

    def unwrap(self, name: str, wrapped: bytes) -> bytes:
        """Return the column key in `wrapped`.

        Raises:
            DeniedError: The job has not this key or this version of it.
            IntegrityError: It does not open.
        """
        return unwrap_column_key(self._find(name).ring, wrapped)

    def _find(self, name: str) -> ColumnKey:
        found = self._keys.get(name)
        if found is None:
            raise DeniedError(f"the job has no column key {name[:80]!r}")
        return found
