"""Encodings that two parties must produce alike: canonical JSON, base64url, labelled hashes.

Canonical JSON follows RFC 8785 for the values the product uses: objects, arrays, strings, booleans, null and integers
below 2**53. Floats are refused, so that no two writers can disagree on one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable

from strongroom.errors import InputError

__all__ = [
    "b64u",
    "b64u_decode",
    "canonical_json",
    "check_bounds",
    "labelled_hash",
    "parse_bounded",
    "parse_json",
    "sha256_id",
]

_MAX_DEPTH = 32
_MAX_SAFE_INTEGER = 2**53 - 1


def canonical_json(value: object) -> bytes:
    """Return the RFC 8785 bytes of `value`.

    Raises:
        InputError: A float, a too large integer, a non-string key, another type, a text that UTF-8 cannot carry, or too
            deep a nesting.
    """
    try:
        _check(value)
        return json.dumps(_sorted(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError) as exc:
        raise InputError(f"no canonical JSON: {type(exc).__name__}") from exc


def _check(value: object) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if abs(value) > _MAX_SAFE_INTEGER:
            raise InputError(f"integer {value} is too large for canonical JSON")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"canonical JSON has text keys, got {type(key).__name__}")
            _check(item)
        return
    if isinstance(value, list | tuple):
        for item in value:
            _check(item)
        return
    raise InputError(f"canonical JSON has no {type(value).__name__}")


def _sorted(value: object) -> object:
    # RFC 8785 sorts by UTF-16 code units, which differs from code points beyond the basic plane.
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value, key=lambda k: k.encode("utf-16-be", "surrogatepass"))}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def parse_json(raw: bytes | str, what: str, *, max_bytes: int = 1 << 20) -> object:
    """Return the JSON value in `raw`; duplicate keys are an error.

    Raises:
        InputError: Too long, not UTF-8, not JSON, or a key twice.
    """
    if len(raw) > max_bytes:
        raise InputError(f"{what} is larger than {max_bytes} bytes")
    try:
        return json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{what} is not JSON: {type(exc).__name__}") from exc


def parse_bounded(raw: bytes | str, what: str, *, max_bytes: int = 1 << 20) -> object:
    """Return the JSON value in `raw`: of others, and taken on to where nothing may fail on it.

    Raises:
        InputError: As for `parse_json` and `check_bounds`.
    """
    value = parse_json(raw, what, max_bytes=max_bytes)
    check_bounds(value, what)
    return value


def check_bounds(value: object, what: str) -> None:
    """Return only if every later step can walk, write down and encode `value`, a parsed JSON value.

    Raises:
        InputError: Nested too deep, a number of 2**53 or more, or a text that UTF-8 cannot carry.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        if not level:
            return
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                deeper += [*item, *item.values()]
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str) and not item.isascii():
                _check_text(item, what)
            elif isinstance(item, int) and abs(item) > _MAX_SAFE_INTEGER:
                raise InputError(f"{what} has a number of 2**53 or more")
        level = deeper
    raise InputError(f"{what} is nested more than {_MAX_DEPTH} levels deep")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InputError(f"{what} has a character that UTF-8 cannot carry") from exc


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def b64u(raw: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64u_decode(text: str) -> bytes:
    """Return the bytes of unpadded base64url `text`.

    Raises:
        InputError: Other characters, padding, or an impossible length.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InputError("not base64url") from exc
    if b64u(raw) != text:
        raise InputError("not canonical base64url")
    return raw


def labelled_hash(label: str, fields: Iterable[bytes]) -> bytes:
    """Return SHA-256 over `label` and each field, all with their lengths, so that no two inputs collide by joining."""
    digest = hashlib.sha256()
    for part in (label.encode("ascii"), *fields):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def sha256_id(raw: bytes) -> str:
    """Return `sha256:<hex>` of `raw`, the form in which digests are shown and compared."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()
