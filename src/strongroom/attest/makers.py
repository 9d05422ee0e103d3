"""Who makes TEEs, and what a trusted root stands for."""

from __future__ import annotations

from strongroom.attest.endorsement_snp import AMD_ROOTS
from strongroom.attest.endorsements import INTEL_ROOT, TrustAnchor

__all__ = ["MAKERS", "stands_for"]

MAKERS = {INTEL_ROOT.fingerprint: "Intel", **{value: f"AMD {line}" for line, value in AMD_ROOTS.items()}}
"""The makers' roots by fingerprint."""


def stands_for(anchor: TrustAnchor, *, marked: bool) -> str:
    """Return what claims under `anchor` say of it: `hardware` if it is a maker's, `simulated`, or `own`.

    Whoever administers a service can have it believe any root; only those in `MAKERS` are ever called a maker's.

    Args:
        anchor: The root.
        marked: Whether the evidence carries a simulated mark.
    """
    if marked or anchor.kind == "simulated":
        return "simulated"
    return "hardware" if anchor.fingerprint in MAKERS else "own"
