"""Logging for programs: one line per event, `key=value`, to standard error; JSON on request. Libraries only log."""

from __future__ import annotations

import json
import logging
import sys
import time

__all__ = ["configure"]


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line, ensure_ascii=False)


def configure(*, level: str = "WARNING", as_json: bool = False) -> None:
    """Send this program's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_JSONFormatter() if as_json else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)
