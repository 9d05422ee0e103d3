"""Root kind `tee`: the secret sealed to the code and the machine that the service runs in, and split into shares.

The sealed copy opens for the same code on the same machine alone (`Attester.sealing_key`), so that a restart needs
nobody. A new machine, other code, or new firmware of the processor gets another key: then people unlock with their
shares, as with root kind `shares`, and the secret is sealed anew. Whoever holds enough shares has the root key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom._encoding import labelled_hash
from strongroom._secret import SecretBytes
from strongroom._unix import write_whole
from strongroom.attest.attesters import Attester
from strongroom.errors import DeniedError, InputError, StrongroomError
from strongroom.kms.roots import RootKind, root_id

__all__ = ["TeeRoot"]

_log = logging.getLogger(__name__)
_LABEL = "strongroom-root-tee-v1"


class TeeRoot(RootKind):
    """Seals the root secret to the TEE.

    Args:
        people: The kind that people keep the secret by as well.
        attester: Of the TEE that the service runs in, None outside one.
    """

    needs_credentials = True

    def __init__(self, people: RootKind, attester: Attester | None) -> None:
        self._people = people
        self._attester = attester

    def create(
        self, secret: SecretBytes, path: Path, options: Mapping[str, str]
    ) -> tuple[dict[str, object], list[str]]:
        """Write the sealed secret to `path`; return a descriptor and the shares, which are kept nowhere."""
        if self._attester is None:
            raise InputError(
                "root kind tee: expected a trust service in a TEE, got one outside",
                hint="`strongroom service start --enclave KIND`",
            )
        descriptor, handout = self._people.create(secret, path, options)
        self._seal(self._attester, secret, path)
        return {**descriptor, "kind": "tee"}, handout

    def unlock(self, descriptor: Mapping[str, object], path: Path, credentials: Sequence[str]) -> SecretBytes:
        """Return the secret: what is sealed to this TEE, or what the shares give."""
        return self._people.unlock(descriptor, path, credentials) if credentials else self._open(descriptor, path)

    def keep(self, secret: SecretBytes, path: Path) -> None:
        """Seal the secret to this TEE."""
        if self._attester is not None:
            try:
                self._seal(self._attester, secret, path)
            except (OSError, StrongroomError) as exc:  # the next start needs shares too
                _log.warning("the root key is not sealed to this TEE reason=%s", exc)

    def _open(self, descriptor: Mapping[str, object], path: Path) -> SecretBytes:
        needed = f"it needs {descriptor.get('threshold')} shares"
        if self._attester is None:
            raise DeniedError(f"the root key is sealed to a TEE, and this service runs outside: {needed}")
        try:
            raw = path.read_bytes()
            return SecretBytes(_cipher(self._attester).decrypt(raw[:12], raw[12:], _bound(str(descriptor.get("id")))))
        except (OSError, StrongroomError) as exc:
            raise DeniedError(f"the root key is not opened by this TEE: {exc}: {needed}") from exc
        except (InvalidTag, ValueError) as exc:
            raise DeniedError(
                f"the root key is sealed to other code or another machine, or was altered: {needed}",
                hint="compare `strongroom service verify` first; then `strongroom service unlock`",
            ) from exc

    def _seal(self, attester: Attester, secret: SecretBytes, path: Path) -> None:
        nonce = os.urandom(12)
        with secret as raw:
            sealed = nonce + _cipher(attester).encrypt(nonce, raw, _bound(root_id(secret)))
        write_whole(path, sealed, 0o600)


def _cipher(attester: Attester) -> AESGCM:
    with attester.sealing_key() as raw:
        return AESGCM(labelled_hash(_LABEL, [raw]))


def _bound(name: str) -> bytes:
    return f"{_LABEL} {name}".encode()
