# ruff: noqa: E501  # programs
"""Models from a job to their user: where one comes from is shown, checked, and asked for. T200 to T203."""

import json
import pickle
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave

TRAIN = """
import csv, sys
import numpy as np
import strongroom.models as models
rows = list(csv.reader(open('/work/in/a.csv')))[1:]
models.save({'w': np.array([float(r[0]) for r in rows])}, '/work/net', parameters={'epochs': 3}, metrics={'accuracy': 0.5})
print(models.load('/work/net')['w'].tolist())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    shell = make_enclave(tmp_path_factory.mktemp("models"))
    (shell.folder / "train.py").write_text(TRAIN)
    shell.run("key", "create", "models")
    outcome = shell.outcome("--volume", "in=in", "--volume", "net=net:models:rw", "--", "python", "train.py")
    assert (outcome["outcome"], outcome["exit_code"]) == ("completed", 0), outcome
    shell.job = outcome  # type: ignore[attr-defined]
    yield shell
    stop_service(shell.workspace)


@pytest.fixture
def fresh(made: Enclave) -> Iterator[Enclave]:
    """The shell, its model restored afterwards."""
    shutil.copytree(made.folder / "net", made.folder / "kept")
    yield made
    shutil.rmtree(made.folder / "net")
    (made.folder / "kept").rename(made.folder / "net")


def refused(shell: Shell, *words: str) -> str:
    done = shell.run(*words, check=False)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    return done.stderr


def test_show_says_what_made_it_and_from_what(made: Enclave) -> None:
    said = made.run("model", "show", "net").stdout
    for wanted in (
        "safetensors",
        "epochs=3",
        "accuracy=0.5",
        "made by an attested job (SIMULATED enclave)",
        "SIMULATED sgx",
    ):
        assert wanted in said
    assert re.search(r"^command +\S*python\S* .*\btrain\.py$", said, re.MULTILINE)
    found = made.json("model", "show", "net")
    records, origin = found["records"], found["provenance"]
    assert isinstance(records, dict)
    record = records[""]
    assert isinstance(origin, dict)
    assert (record["parameters"], record["metrics"]) == ({"epochs": 3}, {"accuracy": 0.5})
    shown = made.json("data", "show", "in")
    read = [one for one in origin["inputs"] if one["volume"] == "in"]
    assert [(one["dataset"], one["epoch"], one["key"]) for one in read] == [(shown["dataset"], shown["epoch"], "sales")]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", read[0]["manifest"])
    assert origin["job"] in made.run("audit", "show", "--json").stdout
    assert origin["attested"] is True
    assert len(origin["claims"]["measurement"]) == 64


def test_show_prints_the_tables_of_a_program_that_knows_of_no_record(made: Enclave) -> None:
    plain = made.folder / "plainly"
    (plain / "a/b").mkdir(parents=True)
    (plain / "weights.bin").write_bytes(b"w")
    (plain / "metrics.json").write_text('{"accuracy": 0.97, "note": "1\\norigin  made by me"}')
    (plain / "a/parameters.json").write_text('{"epochs": 2, "batch": 128}')
    (plain / "a/metrics.json").write_text("[1]")
    (plain / "a/b/metrics.json").write_text("no JSON")
    made.run("model", "seal", "plainly", "sealed-plainly", "--key", "models")
    said = made.run("model", "show", "sealed-plainly").stdout
    assert re.search(r"^metrics +accuracy=0.97, note=1\\\S*norigin  made by me$", said, re.MULTILINE), said
    assert re.search(r"^parameters +epochs=2, batch=128$", said, re.MULTILINE)
    assert "\ncommand" not in said, "no job made it"
    tables = made.json("model", "show", "sealed-plainly")["tables"]
    assert tables == {
        "": {"metrics": {"accuracy": 0.97, "note": "1\norigin  made by me"}},
        "a": {"parameters": {"epochs": 2, "batch": 128}},
    }


def test_verify_and_open(fresh: Enclave) -> None:
    assert "made by an attested job" in fresh.run("model", "verify", "net").stdout
    fresh.run("model", "open", "net", "opened")
    assert json.loads((fresh.folder / "opened/model.json").read_text())["kind"] == "safetensors"


def test_T201_one_byte_of_the_model_or_its_record(fresh: Enclave) -> None:
    for name in ("model.safetensors", "model.json"):
        path = fresh.folder / "net" / name
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        assert name in refused(fresh, "model", "verify", "net")
        assert name in refused(fresh, "model", "open", "net", "never")
        assert not (fresh.folder / "never").exists()
        path.write_bytes(raw)
    fresh.run("model", "verify", "net")


def test_T202_the_record_of_who_made_it_is_signed(fresh: Enclave) -> None:
    """Whoever edits the service's database cannot give a model another origin."""
    stop_service(fresh.workspace)
    database = fresh.workspace.service_folder / "state.db"
    kept = {p: p.read_bytes() for p in (*database.parent.glob("state.db*"), fresh.workspace.folder / "seen.json")}
    with sqlite3.connect(database) as connection:
        ((seq, record),) = connection.execute(
            'SELECT seq, record FROM audit WHERE record LIKE \'%"action":"commit"%"job":%\''
        ).fetchall()
        connection.execute(
            "UPDATE audit SET record = ? WHERE seq = ?", (record.replace('"epoch":1', '"epoch":7', 1), seq)
        )
    connection.close()
    try:
        done = fresh.run("model", "show", "net", check=False)
        assert done.returncode == 1
        assert f"record {seq} was altered" in done.stderr
    finally:
        stop_service(fresh.workspace)
        for path in database.parent.glob("state.db*"):
            path.unlink()
        for path, raw in kept.items():
            path.write_bytes(raw)
    fresh.run("model", "show", "net")


def test_T203_a_model_of_unknown_origin(made: Enclave, tmp_path: Path) -> None:
    plain = made.folder / "own"
    plain.mkdir()
    (plain / "weights.json").write_text("{}")
    made.run("model", "seal", "own", "sealed-own", "--key", "models")
    for verb in (("verify",), ("open",)):
        target = ["never"] if verb == ("open",) else []
        said = refused(made, "model", *verb, "sealed-own", *target)
        assert "unknown origin" in said
        assert "job digest, measurement and inputs are missing" in said
        assert "hint: --accept-unattested" in said
    assert "UNKNOWN" in made.run("model", "show", "sealed-own").stdout
    assert "strongroom.models.save" in made.run("model", "show", "sealed-own").stdout
    made.run("model", "verify", "sealed-own", "--accept-unattested")
    made.run("model", "open", "sealed-own", str(tmp_path / "opened"), "--accept-unattested")
    assert (tmp_path / "opened/weights.json").read_text() == "{}"


def test_T203_an_owner_who_changed_a_model_is_its_origin(fresh: Enclave) -> None:
    fresh.run("model", "verify", "net")
    plain = fresh.folder / "changed"
    fresh.run("data", "open", "net", "changed")
    (plain / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes() + b" ")
    shutil.copytree(fresh.folder / "net", fresh.folder / "net2")
    fresh.run("model", "seal", "changed", "other", "--key", "models")
    assert "unknown origin" in refused(fresh, "model", "verify", "other")


def test_T200_files_that_run_code(made: Enclave) -> None:
    plain = made.folder / "old"
    plain.mkdir()
    (plain / "pytorch_model.bin").write_bytes(pickle.dumps([1, 2]))
    said = refused(made, "model", "seal", "old", "sealed-old", "--key", "models")
    assert "pytorch_model.bin: a pickle of protocol" in said
    assert "--unsafe-pickle" in said
    assert not (made.folder / "sealed-old").exists()
    made.run("model", "seal", "old", "sealed-old", "--key", "models", "--unsafe-pickle")
    assert "it runs code" in refused(made, "model", "open", "sealed-old", "never", "--accept-unattested")
    made.run("model", "open", "sealed-old", "opened-old", "--accept-unattested", "--unsafe-pickle")
    assert pickle.loads((made.folder / "opened-old/pytorch_model.bin").read_bytes()) == [1, 2]


def test_T200_a_spark_model_with_a_stage_that_runs_code(made: Enclave) -> None:
    inner = made.folder / "line/spark-ml/stages/0_a/metadata"
    inner.mkdir(parents=True)
    (inner / "part-00000").write_text('{"class": "org.apache.spark.ml.feature.SQLTransformer"}')
    said = refused(made, "model", "seal", "line", "sealed-line", "--key", "models")
    assert "0_a/metadata/part-00000: a Spark ML stage of class org.apache.spark.ml.feature.SQLTransformer" in said
    made.run("model", "seal", "line", "sealed-line", "--key", "models", "--unsafe-pickle")
    for verb in (["verify", "sealed-line"], ["open", "sealed-line", "never"]):
        assert "runs any SQL" in refused(made, "model", *verb, "--accept-unattested")
        made.run("model", *verb, "--accept-unattested", "--unsafe-pickle")


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_what_is_no_model(made: Enclave, verb: str) -> None:
    assert "is not a sealed data set" in refused(made, "model", verb, "own-nothing")
    made.run("data", "create", f"empty-{verb}", "--key", "models")
    assert "holds no model" in refused(made, "model", verb, f"empty-{verb}")


def test_T203_a_job_that_adds_a_line_has_not_made_the_model(made: Enclave) -> None:
    plain = made.folder / "mine"
    plain.mkdir()
    (plain / "weights.json").write_text("{}")
    made.run("model", "seal", "mine", "laundered", "--key", "models")
    program = "open('/work/m/note', 'w').write('x')"
    outcome = made.outcome("--volume", "m=laundered:models:rw", "--", "python", "-c", program)
    assert outcome["outcome"] == "completed", outcome
    assert "unknown origin" in refused(made, "model", "verify", "laundered")
    shown = made.run("model", "show", "laundered").stdout
    assert "on top of: not made by an attested job" in shown
    made.run("model", "verify", "laundered", "--accept-unattested")


def test_the_makers_words_look_like_no_others(made: Enclave) -> None:
    (made.folder / "liar.py").write_text(
        "import numpy, strongroom.models as m\n"
        "m.save({'w': numpy.ones(1)}, '/work/liar', metrics={'a': '1\\norigin  made by me\\x1b[8m'})\n"
    )
    outcome = made.outcome("--volume", "liar=liar:models:rw", "--", "python", "liar.py")
    assert outcome["exit_code"] == 0, outcome
    said = made.run("model", "show", "liar").stdout
    assert "\x1b" not in said
    assert sum(line.startswith("origin") for line in said.splitlines()) == 1
    assert said.startswith("origin")
