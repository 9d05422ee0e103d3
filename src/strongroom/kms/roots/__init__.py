"""Root keys: what wraps every named key at rest.

A root *kind* says where the 32-byte root secret is while the service is down: `keyfile`, `passphrase`, `shares`
or `tee`. While the service is up the secret is in its memory. A kind is one module with one class, listed in
`registry.kinds`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom._encoding import labelled_hash
from strongroom._secret import SecretBytes
from strongroom.errors import IntegrityError

__all__ = ["AESRootKey", "RootKey", "RootKind", "root_id"]

ROOT_BYTES = 32


class RootKey(Protocol):
    """The seam of everything that can wrap a key."""

    @property
    def id(self) -> str:
        """A public name of this root key."""

    @property
    def kind(self) -> str:
        """By which kind it was made or unlocked."""

    def wrap(self, secret: SecretBytes, context: bytes) -> bytes:
        """Return `secret` sealed for storage, bound to `context`."""

    def unwrap(self, wrapped: bytes, context: bytes) -> SecretBytes:
        """Return the secret; IntegrityError if it was altered or belongs to another root key or context."""


class RootKind(Protocol):
    """Where a root secret rests. `descriptor` is public and stored beside the database."""

    @property
    def needs_credentials(self) -> bool:
        """Whether a person has to unlock the service after a start: always, or where nothing else opens it."""

    def create(
        self, secret: SecretBytes, path: Path, options: Mapping[str, str]
    ) -> tuple[dict[str, object], list[str]]:
        """Store `secret`; return the descriptor and what must be handed to people, once."""

    def unlock(self, descriptor: Mapping[str, object], path: Path, credentials: Sequence[str]) -> SecretBytes:
        """Return the secret, or raise DeniedError if the credentials are not enough. Writes nothing."""
        ...

    def keep(self, secret: SecretBytes, path: Path) -> None:
        """Hear of a secret that people gave and the state accepted: a kind may store it anew. Most keep nothing."""
        return


def root_id(secret: SecretBytes) -> str:
    """Return the public name of a root secret: a one-way check value."""
    with secret as raw:
        return labelled_hash("strongroom-root-id-v1", [raw]).hex()[:32]


class AESRootKey:
    """A root key held in memory: AES-256-GCM, 12-byte random nonce first."""

    def __init__(self, secret: SecretBytes, kind: str) -> None:
        self.kind = kind
        with secret as raw:
            self._cipher = AESGCM(raw)
        self._id = root_id(secret)

    @property
    def id(self) -> str:
        """A public name of this root key."""
        return self._id

    def wrap(self, secret: SecretBytes, context: bytes) -> bytes:
        """Return nonce || ciphertext || tag."""
        nonce = os.urandom(12)
        with secret as raw:
            return nonce + self._cipher.encrypt(nonce, raw, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> SecretBytes:
        """Return the wrapped secret.

        Raises:
            IntegrityError: Altered, or wrapped under another root key or context.
        """
        try:
            return SecretBytes(self._cipher.decrypt(wrapped[:12], wrapped[12:], context))
        except (InvalidTag, ValueError) as exc:
            raise IntegrityError("a stored key does not open under this root key: altered or moved") from exc
