"""A store that is new or as it was left, unsealed with one key for all tests."""

from __future__ import annotations

from pathlib import Path

from strongroom._secret import SecretBytes
from strongroom.kms.stores.sql import SQLStore

STATE_KEY = SecretBytes(b"k" * 32)


def open_store(folder: Path) -> SQLStore:
    path = folder / "state.db"
    fresh = not path.exists()
    store = SQLStore(path)
    store.unseal(STATE_KEY, fresh=fresh)
    return store
