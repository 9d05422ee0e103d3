"""The root kinds by name, and the descriptor file that says which one a service uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from strongroom._encoding import parse_json
from strongroom._secret import SecretBytes
from strongroom._unix import flush_folder, write_new
from strongroom.attest.attesters import Attester
from strongroom.errors import InputError, IntegrityError
from strongroom.kms.roots import ROOT_BYTES, AESRootKey, RootKind, root_id
from strongroom.kms.roots.keyfile import KeyfileRoot
from strongroom.kms.roots.passphrase import PassphraseRoot
from strongroom.kms.roots.shares import SharesRoot
from strongroom.kms.roots.tee import TeeRoot

__all__ = ["RootFolder", "kinds"]


def kinds(attester: Attester | None) -> Mapping[str, RootKind]:
    """Return the root kinds of a service in the TEE of `attester`, None outside one."""
    shares = SharesRoot()
    return {
        "keyfile": KeyfileRoot(),
        "passphrase": PassphraseRoot(),
        "shares": shares,
        "tee": TeeRoot(shares, attester),
    }


class RootFolder:
    """The root key's files: `root-<id>.json` (public descriptor) and, of the kinds keyfile and tee, `root-<id>.key`.

    Two may be there after an interrupted rotation; the database says which one counts, so a rotation is one database
    transaction (`KeyStore.rewrap_all`).
    """

    def __init__(self, folder: Path, attester: Attester | None = None) -> None:
        self.folder = folder
        self._kinds = kinds(attester)

    def create(self, kind: str, options: Mapping[str, str]) -> tuple[AESRootKey, list[str]]:
        """Make a new root key of `kind`, on the disk when this returns; return it and what must be handed to people."""
        if kind not in self._kinds:
            raise InputError(f"unknown root kind {kind!r}", hint=f"choose one of {', '.join(self._kinds)}")
        secret = SecretBytes.random(ROOT_BYTES)
        name = root_id(secret)
        descriptor, handout = self._kinds[kind].create(secret, self._key_path(name), options)
        raw = json.dumps({**descriptor, "id": name}, sort_keys=True).encode()
        write_new(self._descriptor_path(name), raw, 0o600)
        flush_folder(self.folder)  # the names too: the database will soon need nothing else
        return AESRootKey(secret, kind), handout

    def kind(self, name: str) -> RootKind:
        """Return the kind of root key `name`."""
        return self._kinds[str(self._descriptor(name)["kind"])]

    def kind_name(self, name: str) -> str:
        """Return the kind's name of root key `name`."""
        return str(self._descriptor(name)["kind"])

    def unlock(
        self, name: str, credentials: Sequence[str], accept: Callable[[AESRootKey], None] = lambda _root: None
    ) -> AESRootKey:
        """Return root key `name`, the one the database names, if `accept` takes it.

        Nothing is written before `accept` returned: what it refuses leaves nothing that opens without credentials.

        Raises:
            DeniedError: The credentials are not enough.
            IntegrityError: The root key's file is missing, altered or of another root key.
        """
        descriptor = self._descriptor(name)
        kind = str(descriptor["kind"])
        by, path = self._kinds[kind], self._key_path(name)
        secret = by.unlock(descriptor, path, credentials)
        if root_id(secret) != name:
            raise IntegrityError(f"the root key in {self.folder} is {root_id(secret)}, expected {name}")
        root = AESRootKey(secret, kind)
        accept(root)
        if credentials:
            by.keep(secret, path)
        return root

    def forget(self, name: str) -> None:
        """Remove root key `name`, which the database has retired.

        Only a name that the database retired itself: beside a database restored from a backup, an unknown root key may
        be the one of the newest database.
        """
        for path in (self._key_path(name), self._descriptor_path(name)):
            path.unlink(missing_ok=True)

    def _descriptor(self, name: str) -> dict[str, object]:
        path = self._descriptor_path(name)
        try:
            found = parse_json(path.read_bytes(), f"the root descriptor {path}")
        except OSError as exc:
            raise IntegrityError(
                f"the root descriptor {path} is not readable: {exc.strerror}", hint="restore it from your backup"
            ) from exc
        if not isinstance(found, dict) or str(found.get("kind")) not in self._kinds:
            raise IntegrityError(f"the root descriptor {path} names no known kind")
        return found

    def _descriptor_path(self, name: str) -> Path:
        return self.folder / f"root-{name}.json"

    def _key_path(self, name: str) -> Path:
        return self.folder / f"root-{name}.key"
