"""Endorsements of the workspace's simulated platform, as files that the embedded service reads. SIMULATED."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.platform import load_seed

__all__ = ["refresh_endorsements"]


def refresh_endorsements(folder: Path, *, now: datetime) -> None:
    """Write endorsements of the workspace's simulated platform for the next 30 days."""
    pki = SimulatedPKI.create(load_seed(folder / "simulated" / "seed"), now=now)
    document = {"anchor": pki.anchor().to_json(), "endorsements": [pki.endorsements(now).to_json()]}
    target = folder / "service" / "endorsements" / "simulated.json"
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = target.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(document))
    beside.replace(target)
