"""Root kind `keyfile`: the secret in a file (0600) outside the data folder.

The embedded default, so that a restart needs nobody. It does not protect against whoever can read this disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from strongroom._secret import SecretBytes
from strongroom._unix import write_new
from strongroom.errors import InputError, IntegrityError
from strongroom.kms.roots import ROOT_BYTES, RootKind

__all__ = ["KeyfileRoot"]


class KeyfileRoot(RootKind):
    """Reads and writes the key file."""

    needs_credentials = False

    def create(
        self, secret: SecretBytes, path: Path, options: Mapping[str, str]
    ) -> tuple[dict[str, object], list[str]]:
        """Write the secret to `path`, readable by its owner only."""
        if options:
            raise InputError(f"root kind keyfile takes no options, got {sorted(options)}")
        with secret as raw:
            write_new(path, raw, 0o600)
        return {"kind": "keyfile"}, []

    def unlock(self, descriptor: Mapping[str, object], path: Path, credentials: Sequence[str]) -> SecretBytes:
        """Return the secret in `path`."""
        try:
            mode = path.stat().st_mode & 0o077
            raw = path.read_bytes()
        except OSError as exc:
            raise IntegrityError(
                f"the root key file {path} is not readable: {exc.strerror}",
                hint="restore it from your backup; without it no key of this service opens",
            ) from exc
        if mode:
            raise IntegrityError(f"the root key file {path} is readable by others", hint=f"chmod 600 {path}")
        if len(raw) != ROOT_BYTES:
            raise IntegrityError(f"the root key file {path} holds {len(raw)} bytes, expected {ROOT_BYTES}")
        return SecretBytes(raw)
