"""Tests can be collected on a machine that has none of what they install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_collection_without_libfuse() -> None:
    # What an import needs is needed before any test could install it: then not one test runs.
    named = re.compile("mfusepy|store_view|tsm_tree")
    files = [str(p) for p in TESTS.glob("*/test_*.py") if named.search(p.read_text("utf-8")) and p != Path(__file__)]
    assert len(files) >= 2
    program = "import sys, pytest; sys.modules['mfusepy'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, cwd=TESTS.parent, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:]
