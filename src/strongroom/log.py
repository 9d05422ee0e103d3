"""Logging for programs: one line per event, `key=value`, to standard error; JSON on request. Libraries only log."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

__all__ = ["configure", "say_kinds_only"]

_log = logging.getLogger(__name__)


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


def say_kinds_only() -> None:
    """Log what kind of error ended a thread, and nothing of its text: it could hold data, and the host reads it."""

    def failed(error: threading.ExceptHookArgs) -> None:
        name = error.thread.name if error.thread else "none"
        _log.error("unexpected in thread=%s error=%s", name, error.exc_type.__name__)

    threading.excepthook = failed
    sys.unraisablehook = lambda error: _log.error("unexpected error=%s", error.exc_type.__name__)
