"""Saving a large file straight into its sealed form, in enclaves that have a place for it.

A link stands for it in the volume: it is read, moved and replaced like the file, and sealed already when the job ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["save_straight"]

_WORK, _PLACE = Path("/work"), Path("/work/.sealed")


def save_straight(write: Callable[[Path], None], target: Path) -> bool:
    """Have `write` write the file at `target`, from the first byte to the last; return False if nothing was done.

    Args:
        write: Given the path to write to. Should it fail, whatever the reason, the plain way will say so.
        target: In a volume.
    """
    at = target.parent.resolve() / target.name
    if _WORK not in at.parents or not (folder := _PLACE / at.relative_to(_WORK).parts[0]).is_dir():
        return False
    sealed = folder / f"{secrets.token_hex(6)}{target.suffix}"
    beside = at.with_name(f".{sealed.name}")
    try:
        write(sealed)
        sealed.stat()  # gone if it could not be finished, which closing a file tells few programs
        beside.symlink_to(sealed)
        beside.replace(at)
    except Exception:
        beside.unlink(missing_ok=True)
        sealed.unlink(missing_ok=True)
        return False
    return True
