"""docs/reference/spark-examples: the list covers the installed PySpark, says equal, and holds when run again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.e2e.spark_examples import LIST, Laboratory, compare, load, programs, versions
from tests.e2e.spark_examples_page import page


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    made = Laboratory(tmp_path_factory.mktemp("examples"))
    yield made
    made.close()


@pytest.mark.e2e
def test_list_covers_every_program() -> None:
    found = json.loads(LIST.read_text())
    if found["versions"]["pyspark"] != versions()["pyspark"]:
        pytest.skip(f"the list is of pyspark {found['versions']['pyspark']}, installed is {versions()['pyspark']}")
    assert sorted(found["programs"]) == sorted(programs())
    free = [r for r in found["programs"].values() if not r["note"].startswith("needs")]
    assert len(free) > 130


@pytest.mark.e2e
def test_every_program_that_needs_no_network_ends_alike() -> None:
    records = json.loads(LIST.read_text())["programs"].values()
    free = [r for r in records if not r["note"].startswith("needs")]
    assert free
    assert [r["program"] for r in free if r["plain"]["exit"] != r["trusted"]["exit"]] == []
    assert [r["program"] for r in free if r["output"] == "differs"] == []


@pytest.mark.e2e
def test_page_shows_the_list() -> None:
    assert LIST.with_suffix(".md").read_text() == page(json.loads(LIST.read_text()))


@pytest.mark.parametrize(
    "program",
    [pytest.param("pi.py", marks=pytest.mark.e2e), pytest.param("sql/udtf.py", marks=pytest.mark.example)],
)
def test_program_again(laboratory: Laboratory, program: str) -> None:
    listed = load()[program]
    again = compare(laboratory, program)
    assert {k: again[k] for k in ("arguments", "note", "output")} == {
        k: listed[k] for k in ("arguments", "note", "output")
    }
    for side in ("plain", "trusted"):
        assert again[side]["exit"] == listed[side]["exit"]  # type: ignore[index]
