"""What `doctor` and runs say about swap, and `doctor` about the cache."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from strongroom.cli import job
from strongroom.cli.common import has_swap
from strongroom.cli.doctor import _machine
from strongroom.jobs import runtime_cache
from strongroom.jobs.plan import Outcome
from strongroom.jobs.spec import JobSpec

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.mark.parametrize(
    ("table", "there"), [(HEAD, False), (HEAD + "/dev/sda2  partition  1048572  0  -2\n", True), ("", False)]
)
def test_swap_is_seen(tmp_path: Path, table: str, there: bool) -> None:
    (tmp_path / "swaps").write_text(table)
    assert has_swap(tmp_path / "swaps") is there
    assert not has_swap(tmp_path / "no such file")


@pytest.mark.parametrize(("swap", "volumes", "told"), [(True, ["v"], 1), (True, [], 0), (False, ["v"], 0)])
def test_a_run_with_volumes_says_that_its_memory_may_be_swapped(
    swap: bool, volumes: list[str], told: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = JobSpec(name="j", workload="python", inline=("-c", "pass"))
    runner = SimpleNamespace(
        plan=lambda *_, **_k: SimpleNamespace(document={"volumes": volumes}, spec=spec, job="j"),
        build=lambda _plan: SimpleNamespace(simulated=True),
        run=lambda *_, **_k: Outcome(status="completed", exit_code=0, error={}, details={}),
    )
    monkeypatch.setattr(job, "workspace", lambda: None)
    monkeypatch.setattr(job, "JobRunner", lambda *_: runner)
    monkeypatch.setattr(job, "has_swap", lambda: swap)
    assert job.execute(spec, [], {"dry_run": False, "approve": False, "as_json": False}) == 0
    assert capsys.readouterr().err.count("warning: SIMULATED enclave memory may be written") == told


def test_it_says_what_the_cache_holds_and_how_to_clear_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_CACHE", str(tmp_path))
    rows = {name: detail for name, _, detail in _machine()}
    assert rows["cache"] == f"empty: {tmp_path}/runtimes"
    one, two = tmp_path / "runtimes/env-1", tmp_path / "runtimes/env-2"
    one.mkdir(parents=True)
    two.mkdir()
    (one / "a").write_bytes(bytes(54 << 20))
    (two / "a").hardlink_to(one / "a")
    rows = {name: detail for name, _, detail in _machine()}
    how = f"unused ones go after 7 days, all if no job runs: rm -r {tmp_path}/runtimes"
    assert rows["cache"] == f"0.1 GiB in 2 runtimes; {how}"
    monkeypatch.setattr(runtime_cache, "_MAX_COUNTED", 0)
    rows = {name: detail for name, _, detail in _machine()}
    assert rows["cache"].startswith("more than 0.0 GiB in 2 runtimes")
