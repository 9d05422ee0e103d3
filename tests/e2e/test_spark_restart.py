"""A stream goes on from its checkpoint only if every file of it is what the last run left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.e2e.test_spark_formats import ROWS, cut, flip_file, refused, results, swap_files
from tests.e2e.test_spark_real_data import run_trusted

pytestmark = pytest.mark.e2e

FILES = {
    "offsets": "offsets/1",
    "commits": "commits/1",
    "sources": "sources/0/1",
    "state": "state/0/0/2.delta",
    "metadata": "metadata",
}
"""What a checkpoint consists of, and the newest file of each part after two runs."""


def drop_file(victim: Path) -> tuple[Path, ...]:
    victim.unlink()
    return (victim,)


def add_batch(folder: Path, part: str) -> tuple[Path, ...]:
    """Claim one batch more, in the words of the last one."""
    return (Path(shutil.copyfile(folder / part / "1", folder / part / "2")),)


def put_back(folder: Path, old: Path) -> tuple[Path, ...]:
    """Put back the whole checkpoint as it was after the first run: every file that is left is genuine."""
    shutil.copytree(folder, folder.parent / "newer")
    shutil.rmtree(folder)
    shutil.copytree(old / folder.name, folder)
    newer = folder.parent / "newer"
    missing = [folder / p.relative_to(newer) for p in newer.rglob("*") if not (folder / p.relative_to(newer)).exists()]
    shutil.rmtree(newer)
    return tuple(missing)


def _each(change: Callable[[Path], tuple[Path, ...]], path: str) -> Callable[[Path, Path], tuple[Path, ...]]:
    return lambda folder, _old: change(folder / path)


TAMPERINGS: dict[str, Callable[[Path, Path], tuple[Path, ...]]] = {
    **{f"flip_{name}": _each(flip_file, path) for name, path in FILES.items()},
    **{f"drop_{name}": _each(drop_file, path) for name, path in FILES.items()},
    "cut_state": cut,
    "swap_offsets": lambda folder, _old: swap_files(folder / "offsets/0", folder / "offsets/1"),
    "swap_states": lambda folder, _old: swap_files(folder / "state/0/0/1.delta", folder / "state/0/0/2.delta"),
    "add_offsets": lambda folder, _old: add_batch(folder, "offsets"),
    "add_commits": lambda folder, _old: add_batch(folder, "commits"),
    "put_back": put_back,
}


def test_a_stream_refuses_a_tampered_checkpoint(shell: Shell) -> None:
    names = ["untouched", *TAMPERINGS]
    shell.run("key", "create", "sales")

    def restart(*, check: bool = True) -> dict[str, dict[str, object]]:
        paths = [f"state/{name}" for name in names]
        volumes = ["in=in:sales:rw", "state=state:sales:rw"]
        words = ("formats.py", "restart", "in/lines", *paths)
        found = results(run_trusted(shell, *words, volumes=volumes, check=check))
        return {path.removeprefix("state/"): outcome for path, outcome in found.items()}

    first = restart()
    assert {name: outcome.get("count") for name, outcome in first.items()} == dict.fromkeys(names, ROWS)
    state = shell.folder / "state"
    old = Path(shutil.copytree(state, shell.folder / "old"))
    second = restart()
    assert {str(outcome) for outcome in second.values()} == {str(second["untouched"])}
    assert second["untouched"]["hash"] != first["untouched"]["hash"], "each line is counted twice now"

    victims = {name: tamper(state / name, old) for name, tamper in TAMPERINGS.items()}
    # Whether the job itself fails depends on what it wrote last: its end checks the whole folder only if a file was
    # changed after the last batch's commit.
    third = restart(check=False)
    untouched = third.pop("untouched")
    assert untouched["count"] == ROWS
    assert untouched["hash"] not in (first["untouched"]["hash"], second["untouched"]["hash"])
    for name, outcome in third.items():
        assert "error" in outcome, f"{name}: the stream went on: {outcome}"
        paths = [victim.relative_to(shell.folder).as_posix() for victim in victims[name]]
        assert refused(outcome, paths), (name, outcome)
