r"""Patterns for free arguments: a part of regular expressions that is matched in linear time.

The pattern is the owner's, the text is the guest's: neither may cost the trust service more than a bounded time, and a
backtracking engine promises none (`(\w+\s?)*` doubles with each letter). A pattern is a sequence of single atoms, each
a literal, an escape (`\d`, `\.`), a class (`[a-z_]`) or `.`, and each followed by at most one of `?`, `*`, `+`,
`{m}`, `{m,}` and `{m,n}`. No groups, alternatives, anchors, references or lazy quantifiers. It matches from end to end
and means what it means to Python's `re`.

The matcher keeps the set of reached positions as the bits of one number (Thompson 1968; Navarro and Raffinot 2002, §4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from strongroom.errors import InputError

__all__ = ["MAX_PATTERN_CHARS", "MAX_TEXT_CHARS", "Pattern", "compile_pattern"]

MAX_PATTERN_CHARS = 256
MAX_TEXT_CHARS = 1024
_MAX_CELLS = 512

_ESCAPE = r"\\(?:[dDwWsS]|[!-/:-@\[-`{-~])"
_ATOM = re.compile(rf"{_ESCAPE}|\[\^?(?:{_ESCAPE}|[^\[\]\\])+\]|[^\\\[\]{{}}()*+?|^$]")
_COUNT = re.compile(r"([?*+])|\{([0-9]{1,4})(,([0-9]{0,4}))?\}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern: cells in a row, each of which takes one character.

    Attributes:
        atoms: The atom of each cell, for `re`, one character long.
        optional: Bits of the cells that may be left out.
        repeated: Bits of the cells that may take more than one character.
    """

    atoms: tuple[re.Pattern[str], ...]
    optional: int
    repeated: int

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches all of `text`; more than 1024 characters never match."""
        if len(text) > MAX_TEXT_CHARS:
            return False
        taking: dict[str, int] = {}
        reached = self._skip(1)
        for letter in text:
            if letter not in taking:
                taking[letter] = self._cells_taking(letter)
            moved = reached & taking[letter]
            reached = self._skip(moved << 1 | moved & self.repeated)
            if not reached:
                return False
        return bool(reached >> len(self.atoms) & 1)

    def _skip(self, reached: int) -> int:
        while (more := reached | (reached & self.optional) << 1) != reached:
            reached = more
        return reached

    def _cells_taking(self, letter: str) -> int:
        known = {atom: bool(atom.fullmatch(letter)) for atom in set(self.atoms)}
        return sum(1 << cell for cell, atom in enumerate(self.atoms) if known[atom])


@lru_cache(maxsize=256)
def compile_pattern(text: str) -> Pattern:
    """Return the pattern in `text`.

    Raises:
        InputError: It is too long, or holds what cannot be matched in linear time.
    """
    if len(text) > MAX_PATTERN_CHARS:
        raise InputError(f"a pattern has at most {MAX_PATTERN_CHARS} characters, got {len(text)}")
    atoms: list[re.Pattern[str]] = []
    optional = repeated = at = 0
    while at < len(text):
        found = _ATOM.match(text, at)
        if found is None:
            raise InputError(
                f"{text!r} is not a pattern: {text[at]!r} at {at} is not a literal, an escape, a class or a dot",
                hint="write groups and alternatives as separate policies; a backslash makes any sign a literal",
            )
        count = _COUNT.match(text, found.end())
        at = count.end() if count else found.end()
        least, most = _times(text, count)
        cells = max(least, 1) if most is None else most
        first = len(atoms)
        if first + cells > _MAX_CELLS:
            raise InputError(f"{text!r} is not a pattern: it counts to more than {_MAX_CELLS}")
        atoms += [_atom(text, found.group())] * cells
        optional |= sum(1 << cell for cell in range(first + least, first + cells))
        repeated |= 1 << (first + cells - 1) if most is None else 0
    return Pattern(tuple(atoms), optional, repeated)


def _times(text: str, count: re.Match[str] | None) -> tuple[int, int | None]:
    if count is None:
        return 1, 1
    sign, low, to, high = count.groups()
    if sign:
        return (1 if sign == "+" else 0), (1 if sign == "?" else None)
    least = int(low)
    most = least if to is None else int(high) if high else None
    if most is not None and most < least:
        raise InputError(f"{text!r} is not a pattern: {count.group()} counts backwards")
    return least, most


def _atom(text: str, atom: str) -> re.Pattern[str]:
    if any(sign in atom for sign in ("--", "&&", "~~", "||")):
        raise InputError(f"{text!r} is not a pattern: {atom} may come to mean a set operation")
    try:
        return re.compile(atom)
    except re.error as exc:
        raise InputError(f"{text!r} is not a pattern: {atom}: {exc}") from exc
