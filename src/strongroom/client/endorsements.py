"""Endorsements of the workspace's simulated platform, as files that the embedded service reads. SIMULATED."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.platform import load_seed

__all__ = ["refresh_endorsements"]


def refresh_endorsements(folder: Path, *, now: datetime) -> None:
    """Write endorsements of the workspace's simulated platform for the next 30 days."""
    pki = SimulatedPKI.create(load_seed(folder / "simulated" / "seed"), now=now)
    write_bundle(folder / "service" / "endorsements" / "simulated.json", pki.anchor(), [pki.endorsements(now)])
