"""fsspec protocol `sealed`: what libraries do with a file system, on real sealed data, with their own code."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave

from strongroom.errors import InputError, IntegrityError, UnavailableError
from strongroom.storage.leftovers import KEPT_FOLDER, begin_changes
from strongroom.storage.places import LocalPlace


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


@pytest.fixture
def out(base: str, shell: Enclave, request: pytest.FixtureRequest) -> str:
    """Return a data set of one file, each test its own."""
    return str(shell.seal(request.node.name, {"a.csv": "a\n1\n"}))


def epoch(folder: str) -> int:
    files = fsspec.filesystem("sealed")
    return int(files._find(f"{folder}/x")[0].head.epoch)


def test_libraries_write_by_url_and_a_job_reads_it(out: str, shell: Enclave) -> None:
    table = pd.DataFrame({"n": range(1000), "text": [f"row {n}" for n in range(1000)]})
    table.to_csv(f"sealed://{out}/new.csv", index=False)
    table.to_parquet(f"sealed://{out}/sub/new.parquet")
    files = fsspec.filesystem("sealed")
    pq.write_table(pa.Table.from_pandas(table), f"{out}/arrow.parquet", filesystem=files)
    ds.write_dataset(pa.Table.from_pandas(table), f"{out}/parts", format="parquet", filesystem=files)
    engine = duckdb.connect()
    engine.register_filesystem(files)
    engine.execute(f"COPY (SELECT * FROM range(1000) t(n)) TO 'sealed://{out}/duck.csv'")
    with fsspec.open(f"sealed::file://{out}/note.txt", "wt") as file:
        file.write("ä\n")
    assert not [p for p in Path(out).rglob("*") if p.is_file() and b"row 1" in p.read_bytes()]
    shell.run("data", "verify", out)
    opened = shell.open(Path(out).name)
    assert (opened["new.csv"], opened["a.csv"], opened["note.txt"]) == (table.to_csv(index=False), "a\n1\n", "ä\n")
    assert opened["duck.csv"].splitlines()[:3] == ["n", "0", "1"]
    for name in ("sub/new.parquet", "arrow.parquet", "parts"):
        assert pd.read_parquet(f"sealed://{out}/{name}").equals(table)
    ran = shell.outcome("--volume", f"t={out}", "--", "python", "-c", "print(len(open('/work/t/new.csv').readlines()))")
    assert ran["status"] == 0
    assert "1001" in str(ran["said"])


TOTALS = """
import sys
import fsspec
import pandas as pd
source, target = sys.argv[1:]
total = pd.read_csv(source).sum(numeric_only=True)
with fsspec.open("sealed::file://" + source.removeprefix("sealed://"), "rt") as file:
    assert file.readline() == "n,text\\n"
total.to_csv(target + "/sub/totals.csv", header=False)
print("TOTAL", pd.read_csv(target + "/sub/totals.csv", header=None)[1][0])
"""


def test_a_program_with_urls_runs_here_and_in_an_enclave(out: str, base: str, shell: Enclave) -> None:
    (shell.folder / "totals.py").write_text(TOTALS)
    words = [f"sealed://{base}/t.csv", f"sealed://{out}"]
    here = subprocess.run([sys.executable, shell.folder / "totals.py", *words], capture_output=True, check=True)
    assert here.stdout == b"TOTAL 1249975000\n"
    first = shell.open(Path(out).name)
    ran = shell.outcome("--volume", f"w={out}:rw", "--", "python", "totals.py", *words)
    assert (ran["status"], "TOTAL 1249975000" in str(ran["said"])) == (0, True), ran
    assert shell.open(Path(out).name) == first
    assert "n,1249975000" in first["sub/totals.csv"]


def test_files_are_removed_and_renamed_in_one_commit_each(out: str, shell: Enclave) -> None:
    files = fsspec.filesystem("sealed")
    with files.transaction:
        for name in ("d/1", "d/2", "d/e/3", "b"):
            files.pipe_file(f"{out}/{name}", name.encode())
        assert not files.exists(f"{out}/b")
        assert epoch(out) == 1
    assert epoch(out) == 2
    files.mv(f"{out}/d", f"{out}/f", recursive=True)
    files.mv(f"{out}/b", f"{out}/a.csv")
    files.cp(f"{out}/f/1", f"{out}/copy")
    assert files.find(out) == [f"{out}/{n}" for n in ("a.csv", "copy", "f/1", "f/2", "f/e/3")]
    assert epoch(out) == 5
    with pytest.raises(IsADirectoryError):
        files.rm(f"{out}/f")
    files.rm(f"{out}/f", recursive=True)
    files.rm_file(f"{out}/copy")
    assert epoch(out) == 7
    shell.run("data", "verify", out)
    assert shell.open(Path(out).name) == {"a.csv": "b"}
    with pytest.raises(FileNotFoundError):
        files.rm(f"{out}/f/1")
    files.pipe_file(f"{out}/f", b"a file now")
    with pytest.raises(FileExistsError):
        files.open(f"{out}/a.csv", "xb")


class _FailedError(Exception):
    pass


def _write_half(files: fsspec.AbstractFileSystem, path: str, how: str) -> None:
    table = pa.table({"n": [1]})
    match how:
        case "text with":
            with files.open(path, "wt") as file:
                file.write("half")
                raise _FailedError
        case "text dropped":
            files.open(path, "wt", encoding="utf-8").write("half")
        case "fsspec's text dropped":
            fsspec.open(f"sealed://{path}", "wt").open().write("half")
        case "csv":
            csv.writer(files.open(path, "w", newline="")).writerow(["half"])
        case "buffered":
            io.BufferedWriter(files.open(path, "wb")).write(b"half")
        case "parquet":
            pq.ParquetWriter(path, table.schema, filesystem=files).write_table(table)
        case "raised again, with":
            try:
                raise _FailedError
            except _FailedError:
                with files.open(path, "wt") as file:
                    file.write("half")
                    raise
        case "finally":
            file = files.open(path, "wb")
            try:
                file.write(b"half")
                raise _FailedError
            finally:
                file.close()
        case "raised again, finally":
            try:
                raise _FailedError
            except _FailedError:
                _write_half(files, path, "finally")


HALVES = {
    "text with": _FailedError, "text dropped": None, "fsspec's text dropped": None, "csv": None, "buffered": None,
    "parquet": None, "finally": _FailedError, "raised again, with": _FailedError, "raised again, finally": _FailedError,
}  # fmt: skip


@pytest.mark.parametrize("how", HALVES)
def test_T291_a_half_never_replaces_the_old_version(
    out: str, how: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    files, path = fsspec.filesystem("sealed"), f"{out}/a.csv"
    error = HALVES[how]
    with pytest.raises(error) if error else contextlib.nullcontext():
        _write_half(files, path, how)
    gc.collect()
    assert files.cat_file(path) == b"a\n1\n"
    assert epoch(out) == 1
    assert "is not kept" in caplog.text
    assert not recwarn.list


@pytest.mark.parametrize("how", ["its own with", "fsspec's with", "pandas", "dropped", "transaction", "full disk"])
def test_T291_a_write_that_fails_leaves_the_old_version(out: str, shell: Enclave, how: str) -> None:
    files, path = fsspec.filesystem("sealed"), f"{out}/a.csv"
    with contextlib.suppress(_FailedError, OSError, UnavailableError):
        if how == "its own with":
            with files.open(path, "wb") as file:
                file.write(b"half")
                raise _FailedError
        elif how == "fsspec's with":
            with fsspec.open(f"sealed://{path}", "wb") as file:
                file.write(b"half")
                raise _FailedError
        elif how == "pandas":
            pd.DataFrame({"a": [1, _Refuses()]}).to_csv(f"sealed://{path}")
        elif how == "dropped":
            files.open(path, "wb").write(b"half")
        elif how == "transaction":
            with files.transaction:
                files.pipe_file(path, b"whole")
                raise _FailedError
        else:
            with _room_for(1 << 20):
                files.pipe_file(path, bytes(4 << 20))
    assert epoch(out) == 1
    assert files.cat_file(path) == b"a\n1\n"
    assert sorted(p.name for p in Path(out).iterdir()) == [".dataset", "a.csv"]
    shell.run("data", "verify", out)
    files.pipe_file(path, b"2")
    assert files.cat_file(path) == b"2"


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    """Let files have at most `size` bytes, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, kept)


def test_T291_a_file_whose_last_bytes_found_no_room_is_in_no_transaction(out: str, shell: Enclave) -> None:
    files, path = fsspec.filesystem("sealed"), f"{out}/a.csv"
    with files.transaction:
        files.pipe_file(f"{out}/b.csv", b"whole")
        with _room_for(1 << 16), pytest.raises(OSError, match="too large"):
            files.pipe_file(path, bytes(1 << 19))  # so little stays in memory until it is closed
    shell.run("data", "verify", out)
    assert shell.open(Path(out).name) == {"a.csv": "a\n1\n", "b.csv": "whole"}


class _Refuses:
    def __str__(self) -> str:
        raise _FailedError


def test_a_file_that_is_written_while_an_error_is_handled_is_kept(out: str) -> None:
    files = fsspec.filesystem("sealed")
    try:
        raise _FailedError
    except _FailedError:
        with fsspec.open(f"sealed://{out}/errors.txt", "wt") as file:
            file.write("it failed")
        with files.open(f"{out}/more.txt", "wt") as file:
            file.write("it failed")
        pd.DataFrame({"n": [1]}).to_csv(f"sealed://{out}/table.csv", index=False)
        files.open(f"{out}/plain.txt", "wb").close()
    texts = {"errors.txt": b"it failed", "more.txt": b"it failed", "table.csv": b"n\n1\n", "plain.txt": b""}
    assert {name: files.cat_file(f"{out}/{name}") for name in texts} == texts
    file = files.open(f"{out}/later.txt", "wb")
    with pytest.raises(_FailedError) as caught, contextlib.closing(file):  # what handles the error looks the same
        raise _FailedError
    assert f"{out}/later.txt is not kept" in caught.value.__notes__[0]
    assert not files.exists(f"{out}/later.txt")


def test_T335_threads_that_write_one_file_take_turns_and_a_forked_child_writes_nothing(out: str) -> None:
    """Two writers at once would seal two chunks under one nonce, which shows the difference of their plaintexts."""
    files, path = fsspec.filesystem("sealed"), f"{out}/a.csv"
    blocks = [bytes([n]) * (1 << 20) for n in range(32)]
    with files.open(path, "wb") as file, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(file.write, blocks)) == [1 << 20] * 32
    raw = files.cat_file(path)
    assert sorted(raw[at : at + (1 << 20)] for at in range(0, len(raw), 1 << 20)) == blocks
    program = f"""
import fsspec, os, sys
from strongroom.errors import InputError
file = fsspec.filesystem("sealed").open({path!r}, "wb")
file.write(b"parent's")
child = os.fork()
if not child:
    try:
        file.write(b"child's")
    except InputError as exc:
        sys.exit(0 if "another process" in str(exc) else 1)
    sys.exit(2)
assert os.waitpid(child, 0)[1] == 0
file.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    files.invalidate_cache()
    assert files.cat_file(path) == b"parent's"


def test_T291_removals_and_renames_are_in_no_transaction(out: str) -> None:
    files = fsspec.filesystem("sealed")
    for change in (lambda: files.rm(f"{out}/a.csv"), lambda: files.mv(f"{out}/a.csv", f"{out}/b.csv")):
        with pytest.raises(InputError, match="within a transaction"), files.transaction:
            change()
    assert files.find(out) == [f"{out}/a.csv"]
    files.pipe_file(f"{out}/d/e/x", b"x")
    files.mv(f"{out}/d", out, recursive=True)
    assert files.find(out) == [f"{out}/a.csv", f"{out}/e/x"]


def test_T291_a_service_that_does_not_answer_leaves_the_file_to_be_put_back(
    out: str, shell: Enclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("sealed")

    def away(*_args: object) -> None:
        raise UnavailableError("away")

    assert files.exists(f"{out}/a.csv")
    monkeypatch.setattr(files._client, "commit", away)
    with pytest.raises(UnavailableError, match="did not answer") as caught:
        files.pipe_file(f"{out}/a.csv", b"new")
    assert "data restore" in caught.value.hint
    monkeypatch.undo()
    with pytest.raises(UnavailableError, match="did not end"):
        files.pipe_file(f"{out}/a.csv", b"newer")
    shell.run("data", "restore", out)
    assert shell.open(Path(out).name) == {"a.csv": "a\n1\n"}


def test_T292_a_job_that_holds_the_data_set_and_another_writer_are_not_overwritten(
    out: str, shell: Enclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("sealed")
    assert files.exists(f"{out}/a.csv")
    (shell.folder / f"{Path(out).name}.plain/b.csv").write_text("of another")
    shell.run("data", "seal", f"{out}.plain", out, "--key", "sales")
    files.pipe_file(f"{out}/c.csv", b"mine")
    assert shell.open(Path(out).name) == {"a.csv": "a\n1\n", "b.csv": "of another", "c.csv": "mine"}
    monkeypatch.setattr(LocalPlace.locked.__wrapped__, "__defaults__", (0.1,))  # type: ignore[attr-defined]
    with LocalPlace(out).locked(), pytest.raises(UnavailableError, match="another run is writing"):
        files.pipe_file(f"{out}/a.csv", b"meanwhile")
    assert files.cat_file(f"{out}/a.csv") == b"a\n1\n"


def test_T293_who_reads_finds_what_a_change_has_moved_and_nothing_else(out: str, base: str) -> None:
    files, at = fsspec.filesystem("sealed"), LocalPlace(out)
    salt = files._find(f"{out}/a.csv")[0].manifest.find("a.csv").salt.hex()
    with at.locked():
        begin_changes(at)
        at.move("a.csv", f"{KEPT_FOLDER}/{salt}")
        shutil.copy(f"{base}/t.csv", f"{out}/a.csv")
        assert files.cat_file(f"{out}/a.csv") == b"a\n1\n"
        shutil.copy(f"{base}/t.csv", f"{out}/{KEPT_FOLDER}/{salt}")
        with pytest.raises(IntegrityError, match=r"a\.csv"):
            files.cat_file(f"{out}/a.csv")


def test_what_it_does_not_do_is_said(base: str, out: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("sealed")
    with pytest.raises(InputError, match="'ab'") as caught:
        files.open(f"{base}/t.csv", "ab")
    assert "whole" in caught.value.hint
    with pytest.raises(InputError, match=r"fsspec\.open\(URL, compression"):
        files.open(f"{base}/t.csv.gz", "wb", compression="gzip")
    with pytest.raises(InputError, match="reserved"):
        files.open(f"{base}/.dataset/id.json", "wb")
    with pytest.raises(InputError, match="two data sets"):
        files.mv(f"{base}/t.csv", f"{out}/t.csv")
    with pytest.raises(InputError, match="not a folder"):
        files.pipe_file(f"{out}/a.csv/b", b"")
    with pytest.raises(InputError, match="still open"), files.transaction:
        left = files.open(f"{out}/open", "wb")
    assert left.closed
    with pytest.raises(InputError, match="in no sealed data set"):
        pd.DataFrame({"a": [1]}).to_csv(f"sealed://{tmp_path}/new.csv")
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="in no sealed data set"):
        pd.read_csv(f"sealed://{tmp_path}/x")
    with pytest.raises(InputError, match="options"):
        fsspec.filesystem("sealed", target_options={"key": "x"})
