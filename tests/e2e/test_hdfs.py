"""Sealed data on a real HDFS: TPC-H from it and to it, what its disks hold, a swapped file, a killed command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import STRONGROOM, Shell, stop_service
from tests.e2e.test_spark_real_data import QUICK
from tests.e2e.test_tpch import EXAMPLE, check_results
from tests.fakes.enclave_shell import APPROVE
from tests.servers.hdfs import Hdfs, running_hdfs
from tests.servers.packages import need_fuse

from strongroom._stores import open_store
from strongroom.client.setup import create_workspace

SCALE = "0.02"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    need_fuse()
    with running_hdfs(tmp_path_factory.mktemp("hdfs") / "disks") as found:
        yield found


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    workspace = create_workspace(tmp_path)
    shell.run("key", "create", "sales")
    yield shell
    stop_service(workspace.workspace)


def _mounts_under(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]


def _processes_naming(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if text in words:
            found.append(words)
    return found


def test_all_queries_from_and_to_hdfs(shell: Shell, hdfs: Hdfs) -> None:
    tool = Path(sys.executable).with_name("tpchgen-cli")
    tables = shell.folder / "tables"
    subprocess.run([tool, "parquet", "-s", SCALE, "-o", tables], check=True, capture_output=True)
    sealed, out = f"{hdfs.url}/tpch/sealed", f"{hdfs.url}/tpch/out"
    shell.run("data", "seal", "tables", sealed, "--key", "sales")
    shell.run("data", "verify", sealed)
    command = [
        "spark-submit", *APPROVE, "--master", "local[2]", *QUICK, "--volume", f"out={out}:sales:rw",
        "--files", str(EXAMPLE / "queries.sql"), str(EXAMPLE / "tpch.py"), sealed, f"{out}/results",
    ]  # fmt: skip
    said = shell.run(*command, timeout_s=900)
    assert "out committed (epoch 1)" in said.stderr
    shell.run("data", "open", out, "opened")
    check_results(tables, shell.folder / "opened/results")
    assert not _mounts_under(shell.folder)

    blocks = [p for p in hdfs.blocks.rglob("blk_*") if p.suffix != ".meta"]
    assert len(blocks) > 22 + 8
    for block in blocks:
        raw = block.read_bytes()
        assert not raw.startswith(b"PAR1"), block
        leaks = [m for m in (b"l_orderkey", b"l_returnflag", b"parquet-", b"AUTOMOBILE", b'{"s_name"') if m in raw]
        assert not leaks, (block, leaks)

    store, root = open_store(sealed)
    store.mv(f"{root}/nation.parquet", f"{root}/away")
    with store.open(f"{root}/region.parquet", "rb") as other, store.open(f"{root}/nation.parquet", "wb") as swapped:
        swapped.write(other.read())
    store.rm_file(f"{root}/away")
    refused = shell.run(*command, "Q5", check=False, timeout_s=900)
    assert refused.returncode == 1
    assert "nation.parquet" in refused.stderr
    assert "swapped or rolled back" in refused.stderr or "truncated or extended" in refused.stderr
    assert shell.run("data", "verify", sealed, check=False).returncode == 1


def test_a_killed_command_leaves_no_mount_and_loses_nothing(shell: Shell, hdfs: Hdfs) -> None:
    out = f"{hdfs.url}/killed/out"
    (shell.folder / "write.py").write_text(
        "import sys, time\n"
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.getOrCreate()\n"
        "spark.range(int(sys.argv[2])).coalesce(1).write.mode('overwrite').json(sys.argv[1] + '/numbers')\n"
        "print('WRITTEN', flush=True)\n"
        "time.sleep(float(sys.argv[3]))\n"
    )
    words = ["spark-submit", *APPROVE, "--master", "local[1]", *QUICK, "--volume", f"out={out}:sales:rw"]
    shell.run(*words, "write.py", out, "3", "0")
    with subprocess.Popen(
        [STRONGROOM, *words, "write.py", out, "5", "600"], cwd=shell.folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("WRITTEN" in line for line in process.stdout)
        assert _mounts_under(shell.folder)
        assert _processes_naming(out)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while _mounts_under(shell.folder) or _processes_naming(out):
        assert time.monotonic() < deadline, (_mounts_under(shell.folder), _processes_naming(out))
        time.sleep(0.2)
    shell.run("data", "restore", out)
    shell.run("data", "open", out, "opened")
    lines = [line for p in (shell.folder / "opened/numbers").glob("part-*") for line in p.read_text().splitlines()]
    assert lines == ['{"id":0}', '{"id":1}', '{"id":2}']
    assert not _mounts_under(shell.folder)


def test_a_killed_server_fails_the_job_and_is_tidied_up(shell: Shell, hdfs: Hdfs) -> None:
    out = f"{hdfs.url}/server/out"
    (shell.folder / "write.py").write_text(
        "import sys, time\n"
        "open(sys.argv[1] + '/a.txt', 'w').write('text')\n"
        "print('WRITTEN', flush=True)\n"
        "time.sleep(float(sys.argv[2]))\n"
    )
    words = ["run", *APPROVE, "--volume", f"out={out}:sales:rw", "--", "python", "write.py", out]
    with subprocess.Popen(
        [STRONGROOM, *words, "5"], cwd=shell.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("WRITTEN" in line for line in process.stdout)
        (server,) = [p for p in Path("/proc").glob("[0-9]*") if _serves(p, out)]
        os.kill(int(server.name), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert not _mounts_under(shell.folder)
    shell.run(*words, "0")
    assert "1 files" in shell.run("data", "open", out, "opened").stdout


def _serves(process: Path, url: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return url.encode() in words and any(b"store_view" in word for word in words)


def test_names_that_look_like_urls_and_a_name_that_hdfs_lacks(shell: Shell, hdfs: Hdfs) -> None:
    plain = shell.folder / "plain"
    plain.mkdir()
    texts = {"a#1": "one", "a#2": "two", "a?b": "three", "a%20b": "four", "ü ;x": "five"}
    for name, text in texts.items():
        (plain / name).write_text(text)
    shell.run("data", "seal", "plain", f"{hdfs.url}/names/sealed", "--key", "sales")
    shell.run("data", "open", f"{hdfs.url}/names/sealed", "opened")
    assert {p.name: p.read_text() for p in (shell.folder / "opened").iterdir()} == texts
    (plain / "a:b").write_text("six")
    refused = shell.run("data", "seal", "plain", f"{hdfs.url}/names/sealed", "--key", "sales", check=False)
    assert refused.returncode == 1
    assert "a:b has a name that this file system cannot hold" in refused.stderr


def test_a_store_that_is_not_there_is_said(shell: Shell) -> None:
    started = time.monotonic()
    refused = shell.run("data", "verify", "hdfs://127.0.0.1:1/x", check=False)
    assert refused.returncode == 1
    assert "Connection refused" in refused.stderr
    assert time.monotonic() - started < 30
