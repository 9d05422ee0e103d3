"""`python -m strongroom.service.main WORKSPACE [LISTEN]`: the embedded trust service of a workspace."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from strongroom import log
from strongroom._unix import protect_process
from strongroom.config import Settings
from strongroom.errors import StrongroomError, UnavailableError

__all__ = ["ALREADY_RUNNING", "main"]

ALREADY_RUNNING = 3
"""Exit status, so that whoever started this one waits for the other."""


def main() -> int:
    """Serve until stopped."""
    from strongroom.service.server import serve  # noqa: PLC0415  # 0.4 s

    protect_process()
    settings = Settings.from_environment()
    log.configure(level=settings.log_level, as_json=settings.log_json)
    folder = Path(sys.argv[1])
    run = folder / "run"
    try:
        serve(
            folder / "service",
            folder / "root",
            run,
            listen=sys.argv[2] if len(sys.argv) > 2 else None,
            on_start=lambda: (run / "service.pid").write_text(str(os.getpid())),
        )
    except StrongroomError as exc:
        sys.stderr.write(f"{exc}\n" + (f"\nhint: {exc.hint}\n" if exc.hint else ""))
        return ALREADY_RUNNING if isinstance(exc, UnavailableError) else exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
