"""Root kind `passphrase`: the secret sealed under scrypt of a passphrase; the service starts locked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from strongroom._encoding import b64u, b64u_decode
from strongroom._secret import SecretBytes
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.kms.roots import RootKind

__all__ = ["PassphraseRoot"]

MINIMUM_LENGTH = 12
_N, _R, _P = 2**17, 8, 1  # 128 MiB, about 0.3 s: OWASP's first choice for scrypt
_AAD = b"strongroom-root-passphrase-v1"


class PassphraseRoot(RootKind):
    """Seals the root secret under one passphrase."""

    needs_credentials = True

    def create(
        self, secret: SecretBytes, path: Path, options: Mapping[str, str]
    ) -> tuple[dict[str, object], list[str]]:
        """Return a descriptor that holds the sealed secret; nothing else is written."""
        if set(options) - {"passphrase"}:
            raise InputError(f"root kind passphrase takes only a passphrase, got {sorted(options)}")
        passphrase = options.get("passphrase", "")
        if len(passphrase) < MINIMUM_LENGTH:
            raise InputError(
                f"the passphrase has {len(passphrase)} characters, expected at least {MINIMUM_LENGTH}",
                hint="use several random words",
            )
        salt, nonce = os.urandom(16), os.urandom(12)
        with secret as raw:
            sealed = nonce + AESGCM(_stretch(passphrase, salt)).encrypt(nonce, raw, _AAD)
        return {"kind": "passphrase", "salt": b64u(salt), "n": _N, "r": _R, "p": _P, "sealed": b64u(sealed)}, []

    def unlock(self, descriptor: Mapping[str, object], path: Path, credentials: Sequence[str]) -> SecretBytes:
        """Return the secret if the first credential is the passphrase."""
        if not credentials:
            raise DeniedError("the root key needs its passphrase", hint="run `strongroom service unlock`")
        if (descriptor.get("n"), descriptor.get("r"), descriptor.get("p")) != (_N, _R, _P):
            raise IntegrityError("the root descriptor names other scrypt parameters than this version writes")
        sealed = b64u_decode(str(descriptor.get("sealed")))
        key = _stretch(credentials[0], b64u_decode(str(descriptor.get("salt"))))
        try:
            return SecretBytes(AESGCM(key).decrypt(sealed[:12], sealed[12:], _AAD))
        except (InvalidTag, ValueError) as exc:
            raise DeniedError("the passphrase does not open the root key") from exc


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_N, r=_R, p=_P).derive(passphrase.encode("utf-8"))
