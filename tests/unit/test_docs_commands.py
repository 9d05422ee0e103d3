"""Every `strongroom ...` command in the documents that people type from is one: its words, options and arguments."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from strongroom.cli.main import cli
from strongroom.errors import InputError

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    DOCS.parent / "README.md",
    DOCS / "hardware-untested.md",
    *sorted((DOCS / "guides").glob("*.md")),
    *sorted(DOCS.parent.glob("examples/*/README.md")),
]


def _simple(line: str) -> Iterator[str]:
    # What lies between the shell's operators; what is output may have quotes that never end.
    words = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    words.whitespace_split = True
    command: list[str] = []
    with contextlib.suppress(ValueError):
        for word in words:
            if word[0] in ";&|<>":
                yield shlex.join(command)
                command = []
            else:
                command.append(word)
        yield shlex.join(command)


def commands(text: str) -> Iterator[str]:
    """Yield each command: of blocks, after a prompt; elsewhere in backticks, also one within another."""
    text, fences, prose = re.sub(r"\\\n\s*", " ", text), False, list[str]()
    inner = re.compile(r"\$\([^)]*?(strongroom [^)]*)\)")
    for line in text.splitlines():
        fences ^= line.lstrip().startswith("```")
        if (fences or line.startswith("    ")) and (typed := re.match(r"\s*(?:\w*[$#] )?(.*)", line)):
            for one in (*inner.findall(typed[1]), inner.sub("WORD", typed[1])):
                yield from (words for words in _simple(one) if words.startswith("strongroom "))
        elif not fences:
            prose.append(line)
    # A cell of a table is no place for a pipe, and code may go on in the next line.
    for found in re.findall(r"`(?:\S*\$ )?(strongroom [^`]*)`", "\n".join(prose)):
        line = " ".join(found.split())
        yield from (*inner.findall(line), inner.sub("WORD", line))


def check(line: str) -> None:
    """Parse a command as its program would; one that is only named, or is said to go on (`...`), may lack arguments."""
    words, named = [word for word in shlex.split(line, comments=True)[1:] if word != "..."], " ..." in line
    found: click.Command = cli
    with click.Context(cli) as context:
        while isinstance(found, click.Group) and words:
            child = found.get_command(context, words[0])
            if child is None:
                raise click.NoSuchOption(words[0])
            found, words = child, words[1:]
        if isinstance(found, click.Group) or not words:
            return
        try:
            found.make_context(None, list(words))
        except InputError:  # KEY and the like are no names: what stands for a value is not looked at
            pass
        except click.MissingParameter:
            if not named:
                raise


@pytest.fixture(autouse=True)
def any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _param, _ctx: Path(value))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_there(page: Path) -> None:
    found, wrong = list(commands(page.read_text())), []
    for line in found:
        try:
            check(line)
        except (click.UsageError, ValueError) as exc:
            wrong.append(f"{line}: {type(exc).__name__} {exc}")
    assert not wrong, "\n".join(wrong)
    assert found, "a page without a command, or a reader that sees none"


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"])
def test_paths_are_there(page: str) -> None:
    # A short name follows a path whose folder it shares.
    root = DOCS.parent
    named = set(re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml|sh)))`", (root / page).read_text()))
    short = {path.name for folder in ("src", "tests", "docs", "benchmarks") for path in (root / folder).rglob("*")}
    missing = {n for n in named if not any((root / at / n).exists() for at in ("", "src/strongroom", "tests"))}
    made = set((root / ".gitignore").read_text().replace("\n/", "\n").split())
    assert not {n for n in missing - made if "/" in n.rstrip("/") or n.rstrip("/") not in short}


@pytest.mark.parametrize(
    "line",
    ["strongroom key lst", "strongroom key create", "strongroom key create a b", "strongroom attest show --jsn q",
     "strongroom service verify --outt q ...", "strongroom attest verify q"],
)  # fmt: skip
def test_what_is_no_command_is_seen(line: str) -> None:
    if line == "strongroom key create":  # only named
        check(line)
        line += " --exportable"
    with pytest.raises(click.UsageError):
        check(line)
