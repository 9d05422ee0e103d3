"""The TEEs that a workspace's trust service may run in: what each says of itself, and needs, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["TEES", "Tee"]


@dataclass(frozen=True, slots=True)
class Tee:
    """One kind.

    Attributes:
        warning: Said at every start.
        prepare: Makes what it needs beside the service, in the `.strongroom` folder that it is given.
    """

    warning: str = ""
    prepare: Callable[[Path], None] = lambda _folder: None


def _endorse(folder: Path) -> None:
    from strongroom.client.endorsements import refresh_endorsements  # noqa: PLC0415  # 60 ms that no other kind needs

    refresh_endorsements(folder, now=datetime.now(UTC))


TEES = {
    "sim": Tee("SIMULATED: evidence will be made, and no hardware protects the trust service", _endorse),
    "gramine": Tee(),
    "cvm": Tee(),
    "": Tee(),
}
"""By name; "" outside a TEE."""
