"""The commands of the examples' READMEs are those that tests run, and those of the guides.

That they are commands is the question of test_docs_commands.py.
"""

from __future__ import annotations

import re

import pytest
from tests.e2e.readmes import EXAMPLES, blocks, commands

ROOT = EXAMPLES.parent
READMES = sorted(page.parent.name for page in EXAMPLES.glob("*/README.md"))


def _guide(name: str) -> str:
    return (ROOT / f"docs/guides/{name}.md").read_text()


def _short(command: str) -> str:
    """Return a command without what an owner adds the first time, and without its log."""
    return re.sub(r" --approve --unsafe-accept-simulated| \| tee \S+$", "", command)


@pytest.mark.parametrize("example", [name for name in READMES if name != "two-owners-join"])
def test_a_test_runs_the_readme(example: str) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests/e2e").glob("test_*.py"))
    assert f'commands("{example}")' in tests
    assert any(command.startswith("strongroom ") for command in commands(example))


def test_two_owners_join_is_the_guides() -> None:
    # tests/e2e/test_guides.py runs it there, as a script whose arguments say who approves.
    (command,) = commands("two-owners-join")
    assert command.removeprefix("cd shop && ") in re.sub(r' "\$@"|\\\n *', "", _guide("multi-party"))


def test_deep_learning_shows_the_readmes_commands() -> None:
    known = {command for example in READMES for command in commands(example)}
    shown = blocks(_guide("deep-learning"))
    assert len(shown) > 15
    assert [command for command in shown if command not in known] == []


@pytest.mark.parametrize("page", ["spark", "python"])
def test_tables_show_the_readmes_commands(page: str) -> None:
    known = {_short(command) for example in READMES for command in commands(example)}
    shown = re.findall(r"`(strongroom [^`]* examples/([\w-]+)/[^`]*)`", _guide(page))
    missing = [command for command, example in shown if example in set(READMES) - {"mllib"} and command not in known]
    assert missing == []
    without = {example for _, example in shown} - set(READMES)
    assert without <= {"numpy-dot", "streaming", "tpch", "xgboost"}, "their data is in the row, or in mllib's README"
    assert "examples/taxi-pandas/README.md" in _guide(page)
