"""The 128 bytes in front of every sealed file.

Trusts nothing: a decoded header is a claim until the commitment behind it has been checked with the named key.
Follows docs/formats/sealed-file.md §1.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

from strongroom.errors import InputError, IntegrityError

__all__ = [
    "FORMAT_VERSION",
    "HEADER_BYTES",
    "ID_BYTES",
    "MAGIC",
    "PREFIX_BYTES",
    "FailureClass",
    "FileHeader",
    "check_key_name",
    "refusal",
]

MAGIC = b"STRGROOM"
FORMAT_VERSION = 1
HEADER_BYTES = 128
PREFIX_BYTES = 184
ID_BYTES = 16

FailureClass = Literal["format", "truncated", "commitment", "chunk", "identity"]

_LAYOUT = struct.Struct(">8sHHI16s16s64s16s")
_KEY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_MAX_KEY_VERSION = 2**32 - 1


def refusal(kind: FailureClass, message: str, *, hint: str = "") -> IntegrityError:
    """Return the error for a sealed file that does not hold; `details["class"]` is its class in sealed-file.md §6."""
    return IntegrityError(message, hint=hint, details={"class": kind})


def check_key_name(name: str) -> str:
    """Return `name` if it may name a key.

    Raises:
        InputError: Empty, longer than 64 characters, or other characters than a-z, 0-9, dot, dash, underscore.
    """
    if _KEY_NAME.fullmatch(name) is None:
        raise InputError(
            f"key name {name[:80]!r} is not allowed",
            hint="use 1 to 64 of a-z, 0-9, '.', '-' and '_', and start with a letter or digit",
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """Which key opens the file, and to which data set and run it belongs.

    Attributes:
        key_name: Name of the key.
        key_version: 1 to 2**32-1.
        dataset_id: 16 bytes; all zero for a file of no data set.
        run_id: 16 bytes of the run that wrote the file; all zero if its owner sealed it.
    """

    key_name: str
    key_version: int
    dataset_id: bytes
    run_id: bytes

    def __post_init__(self) -> None:
        check_key_name(self.key_name)
        if not 1 <= self.key_version <= _MAX_KEY_VERSION:
            raise InputError(f"key version {self.key_version} is not between 1 and {_MAX_KEY_VERSION}")
        for what, value in (("data-set id", self.dataset_id), ("run id", self.run_id)):
            if len(value) != ID_BYTES:
                raise InputError(f"{what} has {len(value)} bytes, expected {ID_BYTES}")

    def encode(self) -> bytes:
        """Return the 128 bytes."""
        name = self.key_name.encode("ascii")
        return _LAYOUT.pack(
            MAGIC, FORMAT_VERSION, len(name), self.key_version, self.dataset_id, self.run_id, name, bytes(16)
        )

    @classmethod
    def decode(cls, raw: bytes) -> FileHeader:
        """Return the claims in `raw`.

        Raises:
            IntegrityError: Not 128 bytes, or a field that sealed-file.md §1 does not allow.
        """
        if len(raw) != HEADER_BYTES:
            raise refusal("truncated", f"the header has {len(raw)} bytes, expected {HEADER_BYTES}")
        magic, version, name_bytes, key_version, dataset_id, run_id, name, reserved = _LAYOUT.unpack(raw)
        if magic != MAGIC:
            raise refusal("format", "this is not a sealed file", hint="its first eight bytes are not STRGROOM")
        if version != FORMAT_VERSION:
            raise refusal("format", f"sealed-file format {version} is unknown, expected {FORMAT_VERSION}")
        if name_bytes > len(name) or any(name[name_bytes:]) or any(reserved):
            raise refusal("format", "the header's padding or reserved bytes are not zero")
        try:
            return cls(
                key_name=name[:name_bytes].decode("ascii"),
                key_version=key_version,
                dataset_id=dataset_id,
                run_id=run_id,
            )
        except (InputError, UnicodeDecodeError) as exc:
            raise refusal("format", "the header names no allowed key name and version") from exc
