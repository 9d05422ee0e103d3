"""Root kind `shares`: k of n people together unlock the service.

Shares are SLIP-39 mnemonics (word lists with checksums), so that people can write them down and other tools can
read them. Fewer than k shares tell nothing about the secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import shamir_mnemonic

from strongroom._secret import SecretBytes
from strongroom.errors import DeniedError, InputError
from strongroom.kms.roots import RootKind, root_id

__all__ = ["SharesRoot"]


class SharesRoot(RootKind):
    """Splits the root secret into SLIP-39 shares."""

    needs_credentials = True

    def create(
        self, secret: SecretBytes, path: Path, options: Mapping[str, str]
    ) -> tuple[dict[str, object], list[str]]:
        """Return a descriptor and the shares, which are kept nowhere."""
        if set(options) - {"threshold", "shares"}:
            raise InputError(f"root kind shares takes threshold and shares, got {sorted(options)}")
        try:
            threshold, total = int(options.get("threshold", "3")), int(options.get("shares", "5"))
        except ValueError as exc:
            raise InputError("threshold and shares are whole numbers") from exc
        if not 2 <= threshold <= total <= 16:
            raise InputError(f"expected 2 <= threshold <= shares <= 16, got {threshold} of {total}")
        with secret as raw:
            groups = shamir_mnemonic.generate_mnemonics(1, [(threshold, total)], raw)
        return {"kind": "shares", "threshold": threshold, "shares": total, "id": root_id(secret)}, list(groups[0])

    def unlock(self, descriptor: Mapping[str, object], path: Path, credentials: Sequence[str]) -> SecretBytes:
        """Return the secret if the credentials are enough right shares."""
        threshold = descriptor.get("threshold")
        if not isinstance(threshold, int) or len(credentials) < threshold:
            raise DeniedError(
                f"the root key needs {threshold} shares, got {len(credentials)}", hint="give one share a line"
            )
        try:
            secret = SecretBytes(shamir_mnemonic.combine_mnemonics(list(credentials[:threshold])))
        except shamir_mnemonic.MnemonicError as exc:
            raise DeniedError("the shares do not fit together: one is mistyped or of another set") from exc
        if root_id(secret) != descriptor.get("id"):
            raise DeniedError("the shares open another root key")
        return secret
