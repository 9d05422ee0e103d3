"""docs/guides/spark.md, run as written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.test_guides import test_guide_runs_as_written as run_guide


@pytest.mark.e2e
def test_spark_guide_runs_as_written(tmp_path: Path) -> None:
    run_guide("spark", tmp_path)
