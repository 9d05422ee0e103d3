"""The 22 queries of TPC-H over sealed tables give what another engine gives over the plain ones."""

from __future__ import annotations

import datetime
import decimal
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from tests.conftest import Shell, stop_service
from tests.e2e.test_spark_real_data import QUICK
from tests.fakes.enclave_shell import APPROVE

from strongroom.client.setup import create_workspace

EXAMPLE = Path(__file__).parents[2] / "examples/tpch"
SCALE = "0.02"

pytestmark = pytest.mark.e2e


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    workspace = create_workspace(tmp_path)
    yield shell
    stop_service(workspace.workspace)


def plain(value: object) -> object:
    if isinstance(value, decimal.Decimal | float | int) and not isinstance(value, bool):
        return float(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


def rows_of(folder: Path) -> list[list[object]]:
    lines = [line for part in sorted(folder.glob("part-*")) for line in part.read_text().splitlines()]
    return [[plain(v) for v in json.loads(line).values()] for line in lines]


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-6, abs=1e-6)
    return one == other


def test_all_queries_over_sealed_parquet(shell: Shell) -> None:
    tool = Path(sys.executable).with_name("tpchgen-cli")
    tables = shell.folder / "tables"
    subprocess.run([tool, "parquet", "-s", SCALE, "-o", tables], check=True, capture_output=True)
    shell.run("key", "create", "sales")
    shell.run("data", "seal", "tables", "sealed", "--key", "sales")
    said = shell.run(
        "spark-submit", *APPROVE, "--master", "local[2]", *QUICK, "--volume", "out=out:sales:rw",
        "--files", str(EXAMPLE / "queries.sql"), str(EXAMPLE / "tpch.py"), "sealed", "/work/out/results",
    ).stdout  # fmt: skip
    assert "----22 finished----\n" in said, "what the old guide greps"
    shell.run("data", "open", "out", "opened")
    check_results(tables, shell.folder / "opened/results")


def check_results(tables: Path, results: Path) -> None:
    """Compare the 22 results with what DuckDB gives over the plain tables."""
    engine = duckdb.connect()
    for table in tables.iterdir():
        engine.execute(f"create view {table.stem} as select * from '{table}'")
    queries = runpy.run_path(str(EXAMPLE / "tpch.py"))["queries"]((EXAMPLE / "queries.sql").read_text())
    assert len(queries) == 22
    filled = 0
    for name, query in queries.items():
        expected = [[plain(v) for v in row] for row in engine.execute(query).fetchall()]
        found = rows_of(results / name)
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            # Spark's json leaves null columns out.
            assert len(one) == len([v for v in other if v is not None]), name
            assert all(map(same, one, [v for v in other if v is not None])), (name, one, other)
        filled += bool(expected)
    assert filled >= 18
