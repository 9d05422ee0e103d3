"""Spark over a sealed volume: every format works unmodified, nothing leaks, every tampering fails the job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes import java_support


@pytest.mark.example  # tests/e2e/test_spark_formats.py does much of it with our own agent
def test_spark_reads_and_writes_only_sealed_files(tmp_path: Path) -> None:
    java_support.jars()
    java_support.java()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_", "HADOOP_", "JAVA_"))}
    environment["PYTHONPATH"] = str(java_support.ROOT)
    command = [sys.executable, "-m", "tests.fakes.java_spark_program", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    assert done.stdout.split()[-1] == "ok"
