"""The in-band marks of simulated evidence, read by verification and written by the simulated maker.

They exist so that a simulated root that was filed as a hardware one still shows (DESIGN.md decision 7).
"""

from __future__ import annotations

__all__ = ["SIMULATED_FMSPC", "SIMULATED_NAME"]

SIMULATED_FMSPC = b"SIM\x00\x00\x00"
"""Platform family of every simulated platform; hex 53494D000000. Intel's never spell this."""

SIMULATED_NAME = "SIMULATED"
"""Part of every subject name under a simulated root."""
