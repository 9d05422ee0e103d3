"""The libraries that docs/guides/python.md names for `sealed://` and that no other test runs: Polars, Dask, PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest
from tests.conftest import Shell

pytestmark = [pytest.mark.e2e, pytest.mark.long]
ROWS, HERE = 50_000, Path(__file__).parent
PACKAGES = ("polars==2.1.0", "dask[dataframe]==2026.8.0", "torch==2.13.0")


def beside(folder: Path) -> Path:
    """Make an environment with what this one has and `PACKAGES`; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    (packages / "house.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    command = [folder / "bin/pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
    subprocess.run([*command, "-c", HERE.parents[1] / "constraints.txt"], check=True, capture_output=True, timeout=900)
    return folder / "bin/python"


def test_polars_dask_and_torch_read_and_write_sealed_data(shell: Shell, plain: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"n": range(ROWS), "text": [f"row {n}" for n in range(ROWS)]})
    (plain / "parts").mkdir()
    table.to_csv(plain / "t.csv", index=False)
    for part in range(3):
        table[part::3].to_parquet(plain / f"parts/{part}.parquet", row_group_size=5_000)
    shell.run("key", "create", "sales")
    shell.run("data", "seal", str(plain), "t", "--key", "sales")
    shell.run("data", "create", "out", "--key", "sales")
    done = subprocess.run(
        [beside(tmp_path / "venv"), HERE / "programs/sealed_readers.py", shell.folder / "t", shell.folder / "out"],
        env={**os.environ, "STRONGROOM_WORKSPACE": str(shell.workspace.folder)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    whole = ROWS * (ROWS - 1) // 2
    assert found.pop("polars, url") == "FileNotFoundError"  # the guide says how instead
    assert found.pop("torch, written") == [True, True]
    assert found.pop("dask, written") == [whole, 3]
    assert found.pop("dask, lines") == ROWS + 1
    assert set(found.values()) == {whole}, found
    shell.run("data", "verify", "out")
    assert not [p for p in (shell.folder / "out").rglob("*") if p.is_file() and b"row 1" in p.read_bytes()]
    shell.run("data", "open", "out", "opened")
    opened = shell.folder / "opened"
    assert pd.read_parquet(opened / "dask")["n"].sum() == whole
    read = (pd.read_csv(opened / "polars.csv"), pd.read_parquet(opened / "polars.parquet"))
    assert [one["n"].sum() for one in read] == [4950, 4950]
