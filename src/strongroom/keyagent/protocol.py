"""Key agent frames, without I/O (docs/formats/key-agent.md §1 and §2)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.errors import (
    DeniedError,
    InputError,
    IntegrityError,
    StrongroomError,
    UnavailableError,
)

__all__ = [
    "FOLDER",
    "MAX_REPLY_BYTES",
    "MAX_REQUEST_BYTES",
    "OPEN_FILE",
    "Operation",
    "Request",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_reply",
    "encode_request",
    "frame",
    "number",
]

VERSION = 1
MAX_REQUEST_BYTES = 1 << 20
MAX_REPLY_BYTES = 64 << 20
FOLDER = 2**64 - 1
OPEN_FILE = 2**64 - 2


class Operation(enum.IntEnum):
    """Operations and how many request fields each has."""

    HELLO = 1
    OPEN = 2
    CREATE = 3
    FINISH = 4
    RENAME = 5
    DELETE = 6
    LIST = 7
    ABORT = 8
    WRAP = 9
    UNWRAP = 10
    KEEP = 11
    STAT = 12
    FAIL = 13


_FIELDS = {1: 0, 2: 3, 3: 2, 4: 3, 5: 3, 6: 2, 7: 2, 8: 2, 9: 2, 10: 2, 11: 2, 12: 2, 13: 2}
_STATUS: tuple[tuple[type[StrongroomError], int], ...] = (
    (DeniedError, 1),
    (IntegrityError, 2),
    (InputError, 3),
    (UnavailableError, 4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        operation: What to do.
        fields: Its fields, as many as the operation has.
    """

    operation: Operation
    fields: tuple[bytes, ...]

    def text(self, index: int) -> str:
        """Return a field as text."""
        try:
            return self.fields[index].decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InputError("a text field is not UTF-8") from exc

    def number(self, index: int) -> int:
        """Return a field as a number."""
        if len(self.fields[index]) != 8:
            raise InputError("a number field has 8 bytes")
        return int.from_bytes(self.fields[index], "big")


def number(value: int) -> bytes:
    """Return `value` as a number field."""
    return value.to_bytes(8, "big")


def frame(body: bytes) -> bytes:
    """Return `body` with its length in front."""
    return struct.pack(">I", len(body)) + body


def encode_request(operation: Operation, *fields: bytes) -> bytes:
    """Return a request body."""
    return bytes((VERSION, operation)) + _join(fields)


def decode_request(body: bytes) -> Request:
    """Return the request in `body`.

    Raises:
        InputError: Another version, an unknown operation, or missing, surplus or broken fields.
    """
    if len(body) < 2 or body[0] != VERSION:
        raise InputError(f"expected key agent protocol version {VERSION}")
    if body[1] not in _FIELDS:
        raise InputError(f"unknown operation {body[1]}")
    fields = _split(body[2:])
    if len(fields) != _FIELDS[body[1]]:
        raise InputError(f"operation {body[1]} has {_FIELDS[body[1]]} fields, got {len(fields)}")
    return Request(operation=Operation(body[1]), fields=fields)


def encode_reply(*fields: bytes) -> bytes:
    """Return the body of a successful reply."""
    return b"\0" + _join(fields)


def encode_error(error: StrongroomError) -> bytes:
    """Return the body of a refusal."""
    status = next((number for kind, number in _STATUS if isinstance(error, kind)), 4)
    return bytes((status,)) + _join([str(error).encode("utf-8", "replace")])


def decode_reply(body: bytes) -> tuple[bytes, ...]:
    """Return the fields of a reply.

    Raises:
        StrongroomError: The agent refused; the class says how.
    """
    if not body:
        raise InputError("an empty reply")
    fields = _split(body[1:])
    if body[0] == 0:
        return fields
    message = fields[0].decode("utf-8", "replace") if fields else "refused"
    raise next((kind for kind, status in _STATUS if status == body[0]), UnavailableError)(message)


def _join(fields: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def _split(raw: bytes) -> tuple[bytes, ...]:
    fields, at = [], 0
    while at < len(raw):
        if len(raw) - at < 4:
            raise InputError("a field is cut off")
        (size,) = struct.unpack_from(">I", raw, at)
        at += 4
        if len(raw) - at < size:
            raise InputError("a field is cut off")
        fields.append(raw[at : at + size])
        at += size
    return tuple(fields)
