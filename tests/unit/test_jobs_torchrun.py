"""The torchrun workload: what each enclave starts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.errors import InputError
from strongroom.jobs.plan import plan_job
from strongroom.jobs.registry import WORKLOADS
from strongroom.jobs.spec import JobSpec, Volume

IDENTITY = ("sha256:" + "1" * 64,)


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "train.py").write_text("print(1)")
    volume = Volume(name="in", location=tmp_path, dataset="a" * 32, key="sales", owner="f" * 64, mode="ro")
    return JobSpec(
        name="train",
        workload="torchrun",
        program=tmp_path / "train.py",
        arguments=("--epochs", "2"),
        engine={"nnodes": "3", "nproc-per-node": "2"},
        volumes=(volume,),
    )


def test_first_and_other_enclaves(spec: JobSpec) -> None:
    command = WORKLOADS["torchrun"].command(spec)
    assert command.staged
    first, worker = " ".join(command.argv), command.worker
    assert worker is not None
    others = " ".join(worker.argv)
    assert (worker.count, worker.port) == (2, 29400)
    for line in (first, others):
        assert "--nnodes 3 --nproc-per-node 2" in line
        assert "--rdzv-endpoint 10.77.0.1:29400" in line
    assert first.endswith("--rdzv-conf is_host=1,join_timeout=600 --local-addr 10.77.0.1 /app/train.py")
    assert others.endswith("is_host=0,join_timeout=600 --local-addr {job.address} /app/train.py --epochs 2")
    assert command.environment["GLOO_SOCKET_IFNAME"] == worker.environment["GLOO_SOCKET_IFNAME"] == "job0"


def test_one_enclave_is_no_job_on_several_machines(spec: JobSpec) -> None:
    command = WORKLOADS["torchrun"].command(replace(spec, engine={"nproc-per-node": "2"}))
    assert command.worker is None
    assert "--standalone" in command.argv
    assert "GLOO_SOCKET_IFNAME" not in command.environment


def test_how_many_is_part_of_the_job(spec: JobSpec) -> None:
    jobs = {
        plan_job(replace(spec, engine={"nnodes": n, "nproc-per-node": p}), WORKLOADS, IDENTITY).job
        for n in ("1", "2", "3")
        for p in ("1", "2")
    }
    assert len(jobs) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": {"nnodes": "0"}}, "--nnodes is '0'"),
        ({"engine": {"nnodes": "201"}}, "from 1 to 200"),
        ({"engine": {"nproc-per-node": "gpu"}}, "--nproc-per-node is 'gpu'"),
        ({"engine": {"rdzv-backend": "etcd"}}, "is not available"),
        ({"environment": {"PYTHONPATH": "/work/in"}}, "unmeasured code"),
        ({"program": None}, "names no program"),
        ({"volumes": ()}, "needs a key"),
    ],
)
def test_what_is_refused(spec: JobSpec, change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_job(replace(spec, **change), WORKLOADS, IDENTITY)  # type: ignore[arg-type]
