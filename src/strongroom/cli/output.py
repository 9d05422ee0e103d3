"""Everything the command line prints: data to standard output, talk to standard error.

Jobs, hosts and other owners choose many of its words (names of files, arguments, reasons of a refusal). No character of
them moves the cursor, hides or turns what follows, or begins a line: it is written out, as in JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from strongroom.errors import StrongroomError

if TYPE_CHECKING:
    from strongroom.storage.tree_run import Progress

__all__ = ["ProgressLine", "data", "fail", "hint", "lines", "say", "table"]


def say(text: str) -> None:
    """Say something to the person."""
    print("\n".join(map(_plain, text.split("\n"))), file=sys.stderr, flush=True)


def hint(text: str) -> None:
    """Say what to do next."""
    say(f"\nhint: {text}")


def fail(error: StrongroomError) -> None:
    """Say what went wrong, every reason, and what to do."""
    reasons = error.details.get("reasons")
    if isinstance(reasons, list) and len(reasons) > 1:
        say("error: refused, for each of these reasons:")
        for reason in reasons:
            say(f"  - {_plain(str(reason))}")
    else:
        say(f"error: {error}")
    changes = error.details.get("difference")
    if isinstance(changes, list) and changes:
        say("changed since the last allowed job:")
        for change in changes:
            say(f"  * {_plain(str(change))}")
    if error.hint:
        hint(error.hint)


def data(value: object, as_json: bool, text: Iterable[str]) -> None:
    """Print a result: as JSON, or as lines of text."""
    if as_json:
        text = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    lines(text)


def lines(text: Iterable[str]) -> None:
    """Print lines of data."""
    for line in text:
        print(_plain(line))
    sys.stdout.flush()


def _plain(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a table as lines, columns aligned by spaces."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in [list(head), *cells]) for i in range(len(head))]
    shown = [list(head), *cells]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown]


def facts(values: Mapping[str, object]) -> list[str]:
    """Return `name  value` lines."""
    width = max((len(k) for k in values), default=0)
    return [f"{k.ljust(width)}  {v}" for k, v in values.items()]


class ProgressLine:
    """Progress of long work on one line of a terminal, gone when the block ends; elsewhere nothing."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._active = sys.stderr.isatty()
        self._last = 0.0
        self._shown = False

    def __call__(self, progress: Progress) -> None:
        """Show how far the work is, at most ten times a second."""
        now = time.monotonic()
        if not self._active or now - self._last < 0.1:
            return
        self._last, self._shown = now, True
        share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 1.0
        sys.stderr.write(
            f"\r{self._verb} {progress.files_done}/{progress.files_total} files, "
            f"{progress.bytes_done / 1e6:.0f}/{progress.bytes_total / 1e6:.0f} MB ({share:.0%})\x1b[K"
        )
        sys.stderr.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
