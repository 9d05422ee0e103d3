"""Every format and file API of Spark over sealed data: right rows, nothing in clear, every tampering refused by name.

docs/reference/spark-formats.md lists what is tested here; the test fails if it and the program's cases differ.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.e2e.test_spark_real_data import ROOT, assert_nothing_in_clear, run_plain, run_trusted

pytestmark = pytest.mark.e2e
PAGE = ROOT / "docs/reference/spark-formats.md"
ABSENT = {"avro": "its jar, spark-avro, is not in PyPI's pyspark"}
"""Formats of Spark's documentation that cannot be tested here, and why."""
ROWS = 2000
MARKERS = (b"marker-7c1d", b"gross_margin", b"second line", b"org.apache.spark.ml")
PREFIX, SEALED_CHUNK = 184, 16_400

FIXED_NAMES = {
    "json-multi-line": "part-00000",
    "rdd-text-file": "part-00000",
    "rdd-pickle-file": "part-00000",
    "rdd-sequence-file": "part-00000",
    "rdd-whole-text-files": "part-00000",
    "rdd-new-hadoop-api": "part-r-00000",
    "rename": "renamed-0",
    "stream-file-source": "part-00000",
    "stream-state-hdfs": "state/0/0/1.delta",
    "stream-state-rocksdb": "state/0/0/1.zip",
    "hadoop-file-context": "1",
    "hadoop-positioned-read": "1",
    "hadoop-vectored-read": "1",
}
"""Of the cases whose files have the same names in each version: only there can a host put back an older one."""
BY_NAME = {"stream-file-sink", "stream-state-rocksdb"}
"""Cases that open their files by name: a file that was added beside them is never read."""
SINK = "stream-file-sink"
"""Its log holds whole paths: it is tampered with where it was written, in copies that the program made."""


def data_files(folder: Path) -> list[Path]:
    """Return the files that hold rows, the largest first."""
    found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(("_", "."))]
    return sorted(found, key=lambda p: (-p.stat().st_size, str(p)))


def flip(folder: Path, old: Path) -> tuple[Path, ...]:
    return flip_file(data_files(folder)[0])


def flip_file(victim: Path) -> tuple[Path, ...]:
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    return (victim,)


def cut(folder: Path, old: Path) -> tuple[Path, ...]:
    """Leave whole chunks: every byte that is left is genuine."""
    victim = data_files(folder)[0]
    assert victim.stat().st_size > PREFIX + SEALED_CHUNK
    os.truncate(victim, PREFIX + SEALED_CHUNK)
    return (victim,)


def swap(folder: Path, old: Path) -> tuple[Path, ...]:
    return swap_files(*data_files(folder)[:2])


def swap_files(one: Path, two: Path) -> tuple[Path, ...]:
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)
    return one, two


def add(folder: Path, old: Path) -> tuple[Path, ...]:
    victim = data_files(folder)[0]
    added = victim.with_name(f"part-99999-added{victim.suffix}")
    shutil.copyfile(victim, added)
    return (added,)


def drop(folder: Path, old: Path) -> tuple[Path, ...]:
    victim = data_files(folder)[0]
    victim.unlink()
    return (victim,)


def roll_back(folder: Path, old: Path) -> tuple[Path, ...]:
    """Put back an older version that was committed under the same path."""
    path = FIXED_NAMES[folder.name]
    assert (folder / path).read_bytes() != (old / folder.name / path).read_bytes()
    shutil.copyfile(old / folder.name / path, folder / path)
    return (folder / path,)


KINDS: dict[str, tuple[str, Callable[[Path, Path], tuple[Path, ...]]]] = {
    "flip": ("bit flipped", flip),
    "cut": ("cut at a chunk", cut),
    "swap": ("two files swapped", swap),
    "add": ("file added", add),
    "drop": ("file dropped", drop),
    "rollback": ("older version put back", roll_back),
}


def results(printed: str) -> dict[str, dict[str, object]]:
    """Return what the program said, by path."""
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {str(r.pop("path")): r for r in found}


def refused(outcome: dict[str, object], names: Sequence[str]) -> bool:
    """Return whether an outcome is the refusal of one of the files `names`, by its name."""
    said = outcome["said"]
    assert isinstance(said, list)
    return any("SealedIntegrityException" in line and any(name in line for name in names) for line in said)


def listed() -> dict[str, list[str]]:
    """Return the page's table: case -> what it says of each kind of tampering."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|(.+)\|$", PAGE.read_text(), re.MULTILINE)
    return {case: [word.strip() for word in rest.split("|")][1:] for case, rest in rows}


def test_every_format_reads_writes_leaks_nothing_and_refuses_tampering(shell: Shell, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    written = results(run_plain(plain, "formats.py", "write", "out"))
    right = {path.removeprefix("out/"): found for path, found in written.items()}
    assert set(right) == set(listed()) - set(ABSENT), "the page does not list what is tested"
    assert all("hash" in found for found in right.values())
    clear = [path.read_bytes() for path in (plain / "out").rglob("*") if path.is_file()]
    assert all(any(marker in raw for raw in clear) for marker in MARKERS), "a marker that plain data does not show"

    for case, path in FIXED_NAMES.items():
        (plain / "old" / case / path).parent.mkdir(parents=True, exist_ok=True)
        (plain / "old" / case / path).write_text("the older version")
    shell.run("key", "create", "sales")
    shell.run("data", "seal", str(plain / "old"), "out", "--key", "sales")
    old = shell.folder / "old"
    shutil.copytree(shell.folder / "out", old)
    assert results(run_trusted(shell, "formats.py", "write", "out", volumes=["out=out:sales:rw"])) == written

    assert assert_nothing_in_clear(shell.folder, MARKERS) > 2 * len(right)
    for path in (shell.folder / "out").rglob("*"):
        if path.is_file() and ".dataset" not in path.parts:
            assert path.read_bytes()[:8] == b"STRGROOM", path

    touched: dict[tuple[str, str], tuple[str, tuple[Path, ...]]] = {}
    for kind, (_, tamper) in KINDS.items():
        shutil.copytree(shell.folder / "out", shell.folder / kind)
        for case in right if kind != "rollback" else FIXED_NAMES:
            path = f"out/{SINK}.{kind}" if case == SINK else f"{kind}/{case}"
            touched[kind, case] = path, tamper(shell.folder / path, old)
    paths = [f"out/{case}" for case in right] + [path for path, _ in touched.values()]
    volumes = [f"{place}={place}" for place in ("out", *KINDS)]
    found = results(run_trusted(shell, "formats.py", "read", *paths, volumes=volumes, timeout_s=900))
    assert {case: found.pop(f"out/{case}") for case in right} == right, "what nobody touched"
    seen = {case: ["no such file"] * len(KINDS) for case in right}
    for (kind, case), (path, victims) in touched.items():
        outcome = found.pop(path)
        unread = kind == "add" and case in BY_NAME
        seen[case][list(KINDS).index(kind)] = "not read" if unread else "refused"
        if unread:
            assert outcome == right[case]
            continue
        assert "error" in outcome, f"{kind} of {case} was read: {outcome}"
        assert refused(outcome, [victim.relative_to(shell.folder).as_posix() for victim in victims]), (kind, case)
    assert not found
    assert {case: words for case, words in listed().items() if case not in ABSENT} == seen
