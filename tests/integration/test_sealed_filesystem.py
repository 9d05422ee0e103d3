"""fsspec protocol `sealed`: what libraries do with a file system, on real sealed data, with their own code."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import fsspec
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave

from strongroom.errors import InputError, IntegrityError


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("fsspec"))
    plain = made.folder / "t.plain"
    (plain / "parts").mkdir(parents=True)
    table = pd.DataFrame({"n": range(50_000), "text": [f"row {n}" for n in range(50_000)]})
    table.to_csv(plain / "t.csv", index=False)
    for part in range(3):
        table[part::3].to_parquet(plain / f"parts/{part}.parquet", row_group_size=5_000)
    made.run("data", "seal", "t.plain", "t", "--key", "sales")
    yield made
    stop_service(made.workspace)


@pytest.fixture
def base(shell: Enclave, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(shell.workspace.folder))
    fsspec.filesystem("sealed").invalidate_cache()
    return str(shell.folder / "t")


def test_pandas_by_both_spellings(base: str, shell: Enclave) -> None:
    plain = pd.read_csv(shell.folder / "t.plain/t.csv")
    assert pd.read_csv(f"sealed://{base}/t.csv").equals(plain)
    with fsspec.open(f"sealed::file://{base}/t.csv") as file:  # pandas takes no chained URL
        assert pd.read_csv(file).equals(plain)
    assert len(pd.read_parquet(f"sealed://{base}/parts")) == 50_000


def test_pyarrow_and_duckdb(base: str) -> None:
    files = fsspec.filesystem("sealed")
    parts = ds.dataset(f"{base}/parts", filesystem=files, format="parquet")
    assert parts.to_table(columns=["n"], filter=ds.field("n") < 10).num_rows == 10
    assert pq.read_metadata(files.open(f"{base}/parts/0.parquet")).num_row_groups == 4
    # DuckDB's own reader of fsspec files lets its threads move each other's place in a file (2.0, plain files too).
    engine = duckdb.connect()
    engine.register("parts", parts)
    assert engine.execute("SELECT count(*), max(n) FROM parts").fetchone() == (50_000, 49_999)


def test_listing_and_reading_anywhere(base: str, shell: Enclave) -> None:
    files = fsspec.filesystem("sealed")
    raw = (shell.folder / "t.plain/t.csv").read_bytes()
    assert sorted(files.find(base)) == sorted([f"{base}/t.csv", *(f"{base}/parts/{n}.parquet" for n in range(3))])
    assert files.info(f"{base}/t.csv") == {"name": f"{base}/t.csv", "size": len(raw), "type": "file"}
    assert (files.isdir(f"{base}/parts"), files.isfile(base), files.exists(f"{base}/none")) == (True, False, False)
    assert files.glob(f"{base}/parts/[12].parquet") == [f"{base}/parts/1.parquet", f"{base}/parts/2.parquet"]
    assert files.cat_file(f"{base}/t.csv", 100_000, 200_000) == raw[100_000:200_000]
    with files.open(f"{base}/t.csv", "rt") as file:
        assert file.readline() == "n,text\n"
    with pytest.raises(FileNotFoundError):
        files.open(f"{base}/none")


def test_another_process_opens_its_own_connection(base: str) -> None:
    files = fsspec.filesystem("sealed")
    files.ls(base)
    program = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer).cat_file(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", program, f"{base}/t.csv"], input=pickle.dumps(files), capture_output=True, check=True
    )
    assert int(done.stdout) == files.info(f"{base}/t.csv")["size"]
    child = os.fork()
    if child == 0:
        os._exit(0 if len(files.cat_file(f"{base}/t.csv")) == files.info(f"{base}/t.csv")["size"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert files.exists(f"{base}/t.csv")


def test_what_a_job_committed_meanwhile_is_seen(base: str, shell: Enclave) -> None:
    other = shell.seal("u", {"a.csv": "1\n"})
    files = fsspec.filesystem("sealed")
    assert files.cat_file(f"{other}/a.csv") == b"1\n"
    (shell.folder / "u.plain/a.csv").write_text("22\n")
    shell.run("data", "seal", "u.plain", "u", "--key", "sales")
    assert files.cat_file(f"{other}/a.csv") == b"22\n"
    assert base


def test_T128_what_was_tampered_with_is_refused_by_name(base: str, shell: Enclave) -> None:
    files, path = fsspec.filesystem("sealed"), Path(base) / "t.csv"
    raw = path.read_bytes()
    try:
        path.write_bytes(raw[:50_000] + bytes([raw[50_000] ^ 1]) + raw[50_001:])
        with pytest.raises(IntegrityError, match=r"t\.csv"):
            files.cat_file(str(path))
        path.write_bytes(raw[:-5])
        with pytest.raises(IntegrityError, match=r"t\.csv"):
            files.open(str(path))
        path.write_bytes((Path(base) / "parts/0.parquet").read_bytes())
        with pytest.raises(IntegrityError, match="swapped"):
            files.open(str(path))
    finally:
        path.write_bytes(raw)


def test_T24_a_data_set_inside_another_is_not_looked_into(base: str, shell: Enclave) -> None:
    """Whoever stores the files could put another data set of the same owner where a folder was."""
    other = shell.seal("w", {"0.parquet": "not a part"})
    files, parts = fsspec.filesystem("sealed"), Path(base) / "parts"
    parts.rename(shell.folder / "parts.kept")
    try:
        shutil.copytree(other, parts)
        with pytest.raises(IntegrityError, match="belongs to data set"):
            files.cat_file(f"{base}/parts/0.parquet")
    finally:
        shutil.rmtree(parts)
        (shell.folder / "parts.kept").rename(parts)


def test_what_it_does_not_do_is_said(base: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not written") as caught:
        pd.DataFrame({"a": [1]}).to_csv(f"sealed://{base}/new.csv")
    assert "data seal" in caught.value.hint
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="in no sealed data set"):
        pd.read_csv(f"sealed://{tmp_path}/x")
    with pytest.raises(InputError, match="options"):
        fsspec.filesystem("sealed", target_options={"key": "x"})
