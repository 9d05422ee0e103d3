"""Models that a PySpark driver saves by `strongroom.models`: sealed, with a record, and the job as their origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import Shell

pytestmark = pytest.mark.e2e

PROGRAM = """
import json
import pathlib

from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession

import strongroom.models as models

try:
    models.load("/work/model/arrays")
except models.saving.InputError as exc:
    print("EARLY", exc)
spark = SparkSession.builder.getOrCreate()
rows = spark.createDataFrame([(float(x), float(x > 50)) for x in range(100)], ["x", "label"])
stages = [VectorAssembler(inputCols=["x"], outputCol="features"), LogisticRegression()]
fitted = Pipeline(stages=stages).fit(rows)
arrays = {"w": fitted.stages[-1].coefficients.toArray()}
for _ in range(2):  # the second replaces the first
    models.save(fitted, "/work/model/line", parameters={"rows": 100}, metrics={"right": 0.98})
    models.save(arrays, "/work/model/arrays")
again = models.load("/work/model/line")
print("RIGHT", type(again).__name__, again.transform(rows).filter("prediction = label").count())
print("SAME", models.load("/work/model/arrays")["w"].tolist() == arrays["w"].tolist())
try:
    models.load("/work/model/none")
except models.saving.InputError as exc:
    print("NONE", exc)
other = pathlib.Path("/tmp/other/spark-ml/metadata")
other.mkdir(parents=True)
(other / "part-00000").write_text(json.dumps({"class": "joblib.numpy_pickle", "uid": "x", "paramMap": {}}))
record = {"format": 1, "kind": "spark-ml", "file": "spark-ml", "parameters": {}, "metrics": {}, "made_with": {}}
(other.parent.parent / "model.json").write_text(json.dumps(record))
try:
    models.load("/tmp/other")
except models.saving.InputError as exc:
    print("CLASS", exc)


def in_a_worker(_number):
    try:
        return models.load("/work/model/arrays")
    except models.saving.InputError as exc:
        return str(exc)


print("WORKER", spark.sparkContext.parallelize([1], 1).map(in_a_worker).collect()[0])
"""


def test_a_spark_driver_saves_models_under_a_named_key(shell: Shell, tmp_path: Path) -> None:
    shell.run("key", "create", "models")
    (shell.folder / "fit.py").write_text(PROGRAM)
    allow = ("--approve", "--unsafe-accept-simulated")
    done = shell.run("spark-submit", *allow, "--volume", "model=model:models:rw", "fit.py")
    said = {line.partition(" ")[0]: line for line in done.stdout.splitlines()}
    assert "which does not run here" in said["EARLY"]
    assert said["RIGHT"] == "RIGHT PipelineModel 100"
    assert said["SAME"] == "SAME True"
    assert "holds no model" in said["NONE"]
    assert "joblib.numpy_pickle, which is not one of Spark's own" in said["CLASS"]
    assert "which does not run here" in said["WORKER"]
    assert not [p for p in (shell.folder / "model").rglob("*") if p.is_file() and b"LogisticReg" in p.read_bytes()]

    shown = json.loads(shell.run("model", "show", "model", "--json").stdout)
    assert shown["provenance"]["attested"] is True
    assert {f: r["kind"] for f, r in shown["records"].items()} == {"line": "spark-ml", "arrays": "safetensors"}
    assert shown["records"]["line"]["metrics"] == {"right": 0.98}
    shell.run("model", "verify", "model")
    shell.run("model", "open", "model", "opened")
    assert (shell.folder / "opened/line/spark-ml/metadata/_SUCCESS").exists()
