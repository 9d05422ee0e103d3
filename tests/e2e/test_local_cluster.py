"""A Spark job in three enclaves on this machine: driver and two workers, each attested, one private network."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.e2e.test_spark_real_data import PROGRAMS, QUICK, TAXI, assert_nothing_in_clear, content, run_plain
from tests.servers.wire import captured

pytestmark = pytest.mark.e2e

MARKER = b"marker-in-the-shuffle"


def test_a_shuffle_between_enclaves_shows_nothing(shell: Shell, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    (plain / "taxi").mkdir(parents=True)
    shutil.copyfile(TAXI, plain / "taxi/taxi.csv")
    shell.run("key", "create", "sales")
    shell.run("data", "seal", str(plain / "taxi"), "taxi", "--key", "sales")
    words = ["--approve", "--unsafe-accept-simulated", "--master", "local-cluster[2,1,1024]", *QUICK]
    words += ["--conf", "spark.shuffle.readHostLocalDisk=false", "--volume", "out=out:sales:rw"]
    with captured("lo") as wire:
        done = shell.run("spark-submit", *words, str(PROGRAMS / "neighbours.py"), "taxi", "out", timeout_s=400)
    assert wire.bytes > 1_000_000, "executors have spoken"
    assert not wire.holds(MARKER)
    assert_nothing_in_clear(shell.folder, [MARKER, b"2014-07-01 00"])

    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert ast.literal_eval(lines["where"]) == ["10.77.0.2", "10.77.0.3"]
    assert ast.literal_eval(lines["secrets"]) == []
    expected = run_plain(plain, "neighbours.py", "taxi", "out").splitlines()[0]
    assert "days " + lines["days"] == expected
    shell.run("data", "open", "out", str(tmp_path / "opened"))
    opened, plainly = content(tmp_path / "opened"), content(plain / "out")
    assert sorted(map(str, opened["days"])) == sorted(map(str, plainly["days"]))  # type: ignore[call-overload]

    records = json.loads(shell.run("audit", "show", "sales", "--json").stdout)
    actions = [record["action"] for record in records if record["allowed"]]
    assert actions.count("certificate") == 3, "driver and workers have shown what they are"
    assert actions.count("release") == 1, "the key went to the driver alone"
