"""Named keys, and the file secrets that are derived from them.

A named key opens every file that was sealed under it, a file secret only one. Follows docs/formats/sealed-file.md §2.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom._secret import SecretBytes
from strongroom.crypto.header import HEADER_BYTES, PREFIX_BYTES, FileHeader, check_key_name, refusal
from strongroom.errors import DeniedError, InputError

__all__ = [
    "KEY_BYTES",
    "SALT_BYTES",
    "FileSecret",
    "KeyRing",
    "StaticKeyRing",
    "derive",
    "new_prefix",
    "open_prefix",
]

KEY_BYTES = 32
SALT_BYTES = 24

_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


class KeyRing(Protocol):
    """The versions of one named key that its holder may use."""

    @property
    def name(self) -> str:
        """Name of the key."""
        ...

    def current(self) -> tuple[int, SecretBytes]:
        """Return the version that new files are written with, and its 32 bytes."""
        ...

    def version(self, number: int) -> SecretBytes:
        """Return version `number`.

        Raises:
            DeniedError: This version is not held.
        """
        ...


class StaticKeyRing:
    """Versions held in memory; the highest is current unless `current` names another."""

    def __init__(self, name: str, versions: Mapping[int, SecretBytes], *, current: int | None = None) -> None:
        self.name = check_key_name(name)
        if not versions:
            raise InputError(f"key {name} has no version")
        for number, key in versions.items():
            if number < 1 or len(key) != KEY_BYTES:
                raise InputError(f"key {name} version {number} has {len(key)} bytes, expected {KEY_BYTES}")
        self._versions = dict(versions)
        self._current = max(versions) if current is None else current
        self.version(self._current)

    def current(self) -> tuple[int, SecretBytes]:
        """Return the version for new files and its 32 bytes."""
        return self._current, self._versions[self._current]

    def version(self, number: int) -> SecretBytes:
        """Return version `number`.

        Raises:
            DeniedError: This version is not held.
        """
        key = self._versions.get(number)
        if key is None:
            raise DeniedError(f"key {self.name} version {number} is not held here")
        return key

    def __repr__(self) -> str:
        return f"<StaticKeyRing {self.name}, versions {sorted(self._versions)}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class FileSecret:
    """What opens and seals the chunks of one file: the first 44 derived bytes.

    Attributes:
        key: 32 bytes.
        base_nonce: 12 bytes.
    """

    key: bytes
    base_nonce: bytes

    def __post_init__(self) -> None:
        if len(self.key) != 32 or len(self.base_nonce) != 12:
            raise InputError("a file secret has 32 + 12 bytes")

    def encode(self) -> bytes:
        """Return key and base nonce, 44 bytes."""
        return self.key + self.base_nonce

    @classmethod
    def decode(cls, raw: bytes) -> FileSecret:
        """Return the secret in 44 bytes.

        Raises:
            InputError: Another length.
        """
        return cls(key=raw[:32], base_nonce=raw[32:])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSecret) and hmac.compare_digest(self.encode(), other.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash would be an oracle

    def __repr__(self) -> str:
        return "<FileSecret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("FileSecret is not picklable")


def derive(input_key: bytes, context: bytes, salt: bytes) -> tuple[FileSecret, bytes]:
    """Return file secret and commitment (sealed-file.md §2) for any Cobblestone-256 context.

    Raises:
        InputError: The key has not 32 bytes or the salt not 24.
    """
    if len(input_key) != KEY_BYTES or len(salt) != SALT_BYTES:
        raise InputError("a named key has 32 bytes and a salt 24")
    raw = HKDFExpand(algorithm=SHA512(), length=76, info=_INFO + salt + context).derive(input_key)
    return FileSecret.decode(raw[:44]), raw[44:]


def new_prefix(named_key: SecretBytes, header: FileHeader, salt: bytes | None = None) -> tuple[bytes, FileSecret]:
    """Return the 184 bytes that begin a new sealed file, and the secret for its chunks.

    Args:
        named_key: The 32 bytes of the key version that `header` names.
        header: Encoded into the prefix and bound by the commitment.
        salt: Test vectors only. A salt used twice breaks the cipher.
    """
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    context = header.encode()
    with named_key as raw:
        secret, commitment = derive(raw, context, salt)
    return context + salt + commitment, secret


def open_prefix(named_key: SecretBytes, prefix: bytes) -> FileSecret:
    """Return the secret for the chunks behind `prefix`; its header and salt are proven to be the writer's.

    Raises:
        IntegrityError: Too short, a malformed header, or a commitment to another key, header or salt.
    """
    if len(prefix) != PREFIX_BYTES:
        raise refusal("truncated", f"the prefix has {len(prefix)} bytes, expected {PREFIX_BYTES}")
    context, salt = prefix[:HEADER_BYTES], prefix[HEADER_BYTES : HEADER_BYTES + SALT_BYTES]
    FileHeader.decode(context)
    with named_key as raw:
        secret, commitment = derive(raw, context, salt)
    if not hmac.compare_digest(commitment, prefix[HEADER_BYTES + SALT_BYTES :]):
        raise refusal("commitment", "the file was sealed with another key, or its first 184 bytes were altered")
    return secret
