"""`strongroom cluster` on three hosts with sshd, each in a network namespace of its own."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyspark
import pytest
from tests.conftest import STRONGROOM, Shell, stop_service
from tests.e2e.test_spark_real_data import PROGRAMS, QUICK
from tests.e2e.test_torch_distributor import MARKER, make_environment, places
from tests.e2e.test_tpch import EXAMPLE, plain, rows_of, same
from tests.servers.ssh_hosts import SshHosts, ssh_hosts
from tests.servers.wire import captured

from strongroom.client.cluster import Cluster
from strongroom.client.setup import create_workspace
from strongroom.config import Settings

pytestmark = pytest.mark.long

APPROVE = ("--approve", "--unsafe-accept-simulated")
PI = str(Path(pyspark.__path__[0]) / "examples/src/main/python/pi.py")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHosts]:
    with ssh_hosts(tmp_path_factory.mktemp("hosts") / "ssh") as found:
        yield found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of ours on every host: they have one disk."""
    return tmp_path_factory.mktemp("root") / "strongroom"


@pytest.fixture(scope="module")
def workspace(hosts: SshHosts, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Return one workspace for all: what is deployed belongs to it."""
    shell = Shell(tmp_path_factory.mktemp("ws"))
    made = create_workspace(shell.folder).workspace
    config = ("--ssh-config", str(hosts.config))
    shell.run("cluster", "deploy", "--hosts", str(hosts.file), "--root", str(root), *config, timeout_s=900)
    shell.run("key", "create", "peers")
    yield shell
    stop_service(made)


@pytest.fixture
def cluster(workspace: Shell) -> Shell:
    assert "3 machines" in workspace.run("cluster", "start").stderr
    return workspace


def _pi(shell: Shell, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    words = (*APPROVE, "--master", "spark://cluster", "--column-key", "peers", *QUICK)
    return shell.run("spark-submit", *words, PI, "12", check=check, timeout_s=500)


def _refusals(shell: Shell, name: str) -> list[str]:
    records = json.loads(shell.run("audit", "show", *([name] if name else []), "--json").stdout)
    return [json.dumps(r["details"]) for r in records if not r["allowed"]]


def test_pi_on_three_hosts_and_the_verbs(cluster: Shell, hosts: SshHosts, root: Path) -> None:
    status = cluster.json("cluster", "status")
    assert [h["state"] for h in status["hosts"]] == ["ready"] * 3  # type: ignore[attr-defined]
    assert "Pi is roughly 3.1" in _pi(cluster).stdout
    assert not list((root / "jobs").glob("*/*")), "nothing is left of the job"
    assert not list(cluster.folder.glob(".strongroom/bundles/*/run-*")), "nor of what its workers said"
    cluster.run("cluster", "stop")
    refused = _pi(cluster, check=False)
    assert refused.returncode == 1
    assert "not started" in refused.stderr


def test_tpch_goes_on_when_a_worker_is_killed(cluster: Shell, hosts: SshHosts, root: Path) -> None:
    tables, tool = cluster.folder / "tables", Path(sys.executable).with_name("tpchgen-cli")
    subprocess.run([tool, "parquet", "-s", "0.02", "-o", tables], check=True, capture_output=True)
    cluster.run("data", "seal", "tables", "sealed", "--key", "peers")
    wanted = ("Q1", "Q5", "Q9")
    words = [STRONGROOM, "spark-submit", *APPROVE, "--master", "spark://cluster", *QUICK]
    words += ["--volume", "out=out:peers:rw", "--files", str(EXAMPLE / "queries.sql"), str(EXAMPLE / "tpch.py")]
    words += ["sealed", "/work/out/results", "--rounds", "3", *wanted]
    killed = False
    with (
        captured("strongroom0") as wire,
        subprocess.Popen(
            words, cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        ) as job,
    ):
        assert job.stdout is not None
        assert job.stderr is not None
        for line in job.stdout:
            if line.startswith("Q1 ") and not killed:
                victim = int(next((root / "jobs").glob("*/*/pid")).read_text())
                for child in _tree(victim):
                    os.kill(child, signal.SIGKILL)
                killed = True
        said = job.stderr.read()
    assert killed, said[-3000:]
    assert job.returncode == 0, said[-3000:]
    assert "is gone" in said
    assert "2 left" in said
    assert wire.bytes > 1_000_000
    assert not wire.holds(b"l_returnflag")
    cluster.run("data", "open", "out", "opened")
    engine = duckdb.connect()
    for table in tables.iterdir():
        engine.execute(f"create view {table.stem} as select * from '{table}'")
    queries = runpy.run_path(str(EXAMPLE / "tpch.py"))["queries"]((EXAMPLE / "queries.sql").read_text())
    for name in wanted:
        found = rows_of(cluster.folder / "opened/results" / name)
        expected = [[plain(v) for v in row] for row in engine.execute(queries[name]).fetchall()]
        assert len(found) == len(expected) > 0
        pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
        assert all(same(*pair) for pair in pairs)


def _tree(pid: int) -> list[int]:
    children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    return [pid, *(found for child in children for found in _tree(child))]


def test_a_worker_with_a_changed_bundle_is_refused(cluster: Shell, hosts: SshHosts, root: Path) -> None:
    place = "/strongroom/guest"
    machine = Cluster.load(cluster.workspace).machines(cluster.workspace, Settings.from_environment())[2]
    part = root / "parts" / machine.deployment.places[place][1]
    changed = root.parent / "changed"
    shutil.copytree(part, changed, symlinks=True, dirs_exist_ok=True)
    (changed / "strongroom/log.py").write_text((changed / "strongroom/log.py").read_text() + "\n# hello\n")
    hosts.run(hosts.names[2], f"mount --bind {changed} {part}")
    try:
        done = _pi(cluster)
        assert "Pi is roughly 3.1" in done.stdout, "two workers did it"
        assert f"worker 3 on {hosts.names[2]} is gone" in done.stderr
        assert any("measurement" in reason for reason in _refusals(cluster, "peers"))
        again = cluster.run("cluster", "start", check=False)
        assert again.returncode == 1
        assert f"{hosts.names[2]}: " in again.stderr
        assert "was changed there" in again.stderr
    finally:
        hosts.run(hosts.names[2], f"umount {part}")
    cluster.run("cluster", "start")


def test_a_host_that_is_not_ours_is_refused(cluster: Shell, hosts: SshHosts, root: Path) -> None:
    # What it lacks is the platform's root: in hardware, a maker's; here, the workspace's seed.
    saved = (root / "seed").read_bytes()
    (root / "seed").write_bytes(bytes(range(32)))
    try:
        done = _pi(cluster, check=False)
    finally:
        (root / "seed").write_bytes(saved)
    assert done.returncode == 1
    assert "no worker is left" in done.stderr
    assert any("root" in reason for reason in _refusals(cluster, ""))


@pytest.fixture(scope="module")
def torch_cluster(workspace: Shell, hosts: SshHosts, root: Path) -> Shell:
    """Return the workspace with PyTorch deployed, which stays so, and with a data set."""
    make_environment(workspace.folder / "env")
    (workspace.folder / "plain").mkdir()
    (workspace.folder / "plain/x.txt").write_text("sealed text")
    workspace.run("data", "seal", "plain", "data", "--key", "peers")
    words = ("cluster", "deploy", "--hosts", str(hosts.file), "--root", str(root), "--ssh-config", str(hosts.config))
    refused = workspace.run("torchrun", "--cluster", "--venv", "env", str(PROGRAMS / "gradients.py"), check=False)
    assert "cluster deploy --venv env" in refused.stderr
    workspace.run(*words, "--venv", "env", timeout_s=900)
    workspace.run("cluster", "start", timeout_s=600)
    return workspace


def test_T204_torchrun_on_three_hosts(torch_cluster: Shell) -> None:
    """Here and on each host one enclave; between them nothing of a tensor is seen."""
    words = (*APPROVE, "--nnodes", "4", "--cluster", "--venv", "env", "--volume", "data=data")
    with captured("strongroom0") as wire:
        said = torch_cluster.run("torchrun", *words, str(PROGRAMS / "gradients.py"), "/work/data", timeout_s=600).stdout
    assert "sum 10" in said
    assert said.count("sealed text") == 4
    assert wire.bytes > 100_000
    assert not wire.holds(MARKER[:16])


def test_T204_torch_distributor_on_three_hosts(torch_cluster: Shell) -> None:
    words = (*APPROVE, "--master", "spark://cluster", "--volume", "data=data", *QUICK)
    with captured("strongroom0") as wire:
        done = torch_cluster.run("spark-submit", *words, str(PROGRAMS / "distributor.py"), "/work/data", timeout_s=600)
    said = done.stdout
    assert "sum 6, read 'sealed text'" in said
    assert len({address for address, _ in places(said)}) == 2
    assert wire.bytes > 100_000
    assert not wire.holds(MARKER[:16])


def test_another_workspace_keeps_its_hands_off(cluster: Shell, hosts: SshHosts, root: Path, shell: Shell) -> None:
    words = ("--hosts", str(hosts.file), "--root", str(root), "--ssh-config", str(hosts.config))
    refused = shell.run("cluster", "deploy", *words, check=False)
    assert refused.returncode == 1
    assert "is another workspace's" in refused.stderr
    for verb in ("stop", "undeploy"):
        shell.run("cluster", verb, check=False)
    assert cluster.json("cluster", "status")["started"] is True
    assert (root / "seed").exists()


def test_nothing_is_left_after_undeploy(cluster: Shell, hosts: SshHosts, root: Path) -> None:
    started = time.monotonic()
    cluster.run("cluster", "undeploy")
    assert not root.exists()
    assert "has no cluster" in cluster.run("cluster", "status", check=False).stderr
    assert time.monotonic() - started < 120
