"""Models: safe formats by themselves, code only when asked for."""

from __future__ import annotations

import ast
import contextlib
import gzip
import io
import json
import lzma
import math
import pickle
import random
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from strongroom import models
from strongroom.errors import InputError
from strongroom.models.kinds import kind_of
from strongroom.models.scan import code_in

SPARK = "org.apache.spark.ml."

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3)}


class Evil:
    """Runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("/tmp/strongroom-evil"),))  # type: ignore[return-value]


def test_arrays_come_back_with_their_record(tmp_path: Path) -> None:
    saved = models.save(ARRAYS, tmp_path / "m", parameters={"epochs": 2, "lr": 0.1}, metrics={"accuracy": 0.97})
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]
    loaded = models.load(tmp_path / "m")
    assert {name: np.asarray(value).tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in ARRAYS.items()
    }
    record = json.loads((tmp_path / "m/model.json").read_text())
    assert record["parameters"] == {"epochs": 2, "lr": 0.1}
    assert record["metrics"] == {"accuracy": 0.97}
    assert set(record["made_with"]) >= {"python", "safetensors"}
    assert models.ModelRecord.decode(saved.encode()) == saved


def test_saving_again_replaces(tmp_path: Path) -> None:
    models.save(ARRAYS, tmp_path)
    models.save({"only": np.ones(1)}, tmp_path)
    assert list(models.load(tmp_path)) == ["only"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("value", [math.nan, np.float32(1), object(), b"x"])
def test_a_record_holds_json_only(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="no JSON value"):
        models.save(ARRAYS, tmp_path, metrics={"loss": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [Evil(), {"a": Evil()}, {}, [1, 2], {"a": 1}])
def test_objects_without_a_safe_format_are_refused(tmp_path: Path, model: object) -> None:
    with pytest.raises(InputError, match="no safe format") as caught:
        models.save(model, tmp_path)
    assert "unsafe_pickle" in caught.value.hint


def test_T200_a_pickle_is_neither_saved_nor_loaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs code"):
        models.save([1], tmp_path, kind="pickle")
    models.save([1], tmp_path, kind="pickle", unsafe_pickle=True)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="runs code"):
        models.load(tmp_path)
    assert not Path("/tmp/strongroom-evil").exists()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps([2]))
    assert models.load(tmp_path, unsafe_pickle=True) == [2]


GOOD = {"format": 1, "kind": "safetensors", "file": "x", "parameters": {}, "metrics": {}, "made_with": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        *(json.dumps({**GOOD, **change}) for change in ({"format": 2}, {"file": "../x"}, {"parameters": []})),
        *(json.dumps({**GOOD, "kind": kind}) for kind in ("magic", 1)),
    ],
)
def test_records_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError):
        models.load(tmp_path)


def test_T200_a_record_does_not_choose_the_file(tmp_path: Path) -> None:
    """Keras decides by the suffix whether its safe mode holds."""
    models.save(ARRAYS, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.h5")
    text = (tmp_path / "model.json").read_text().replace("model.safetensors", "weights.h5")
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError, match=r"lies in model\.safetensors, got 'weights\.h5'"):
        models.load(tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        models.load(tmp_path)


def test_kinds_are_told_by_their_classes_without_an_import() -> None:
    for name in ("xgboost", "lightgbm", "onnx", "keras"):
        assert kind_of(type("ModelProto", (), {"__module__": f"{name}.inner"})()).name == name
    with pytest.raises(InputError, match="no safe format"):
        kind_of(type("GraphProto", (), {"__module__": "onnx.inner"})())
    estimator = type("Base", (), {"__module__": "sklearn.base"})
    assert kind_of(estimator()).name == "skops"
    assert kind_of(type("XGB", (estimator,), {"__module__": "xgboost.sklearn"})()).name == "xgboost"
    net = type("Module", (), {"__module__": "torch.nn.modules.module", "state_dict": lambda _self: {}})
    assert kind_of(type("Mine", (net,), {"__module__": "__main__"})()).name == "safetensors"
    assert kind_of(type("Keras", (net,), {"__module__": "keras.src.models"})()).name == "keras"


class Network:
    """Saves as a Keras model does."""

    __module__ = "keras.models"

    def __init__(self, config: bytes) -> None:
        self._config = config

    def save(self, path: Path) -> None:
        path.write_bytes(archive("config.json", self._config))


def test_T200_a_keras_model_that_holds_code_is_not_saved(tmp_path: Path) -> None:
    models.save(Network(b"{}"), tmp_path / "good")
    assert sorted(p.name for p in (tmp_path / "good").iterdir()) == ["model.json", "model.keras"]
    with pytest.raises(InputError, match="a Keras layer of a lambda"):
        models.save(Network(keras_config("__lambda__")), tmp_path / "bad")
    assert list((tmp_path / "bad").iterdir()) == []


class Message:
    """Lists its fields as those of ONNX do."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        self.name = "w"

    def ListFields(self) -> list[tuple[SimpleNamespace, object]]:
        inner = {name: isinstance(value, (list, Message)) for name, value in self.fields.items()}
        return [(SimpleNamespace(name=n, message_type=inner[n] or None), v) for n, v in self.fields.items()]


class ModelProto(Message):
    """The outermost."""

    __module__ = "onnx.onnx_ml_pb2"

    def SerializeToString(self) -> bytes:
        return b"onnx"


@pytest.mark.parametrize("apart", [False, True])
def test_T362_values_that_lie_in_another_file_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    tensor = Message(dims=[2], raw_data=b"12345678", **({"data_location": 1} if apart else {}))
    inner = Message(initializer=[Message(raw_data=b""), tensor])  # of a branch, say
    model = ModelProto(ir_version=9, graph=Message(node=[Message(attribute=[Message(g=inner)])]))
    monkeypatch.setattr("strongroom.models.kinds._need", lambda *_: SimpleNamespace(load_model=lambda *_, **__: model))
    refused = pytest.raises(InputError, match="'w' lie in another file") if apart else contextlib.nullcontext()
    with refused:
        models.save(model, tmp_path)
    (tmp_path / "model.json").write_bytes(models.ModelRecord(kind="onnx", file="model.onnx").encode())
    with refused:
        assert models.load(tmp_path) is model


def stage(name: str, **more: object) -> bytes:
    return json.dumps({"class": name, "uid": "stage_1f", "paramMap": {}, **more}).encode() + b"\n"


INNER = "model/spark-ml/stages/0_stage_1f/metadata/part-00000"
GRID = {
    "estimatorParamMaps": [[{"parent": "x", "name": "classifier", "value": '"epm_classifier0"', "isJson": "false"}]]
}
ELSEWHERE = {"estimatorParamMaps": [[{"value": '"/work/else"', "isJson": "false"}]]}


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        (INNER, stage(f"{SPARK}feature.Tokenizer"), ""),
        (INNER, stage(f"{SPARK}PipelineModel", paramMap={"stageUids": ["Tokenizer_9c"]}), ""),
        (INNER, stage("pyspark.ml.pipeline.PipelineModel"), ""),
        ("spark-ml/data/metadata/part-00000", stage("org.apache.spark.mllib.clustering.BisectingKMeansModel"), ""),
        (INNER, stage(f"{SPARK}tuning.CrossValidatorModel", paramMap=GRID), ""),
        (INNER, stage(f"{SPARK}feature.SQLTransformer"), "SQLTransformer, which runs any SQL"),
        ("m/metadata/part-00000", stage("pyspark.ml.feature.SQLTransformer"), "SQLTransformer, which runs any SQL"),
        (INNER, stage("joblib.numpy_pickle"), "joblib.numpy_pickle, which is not one of Spark's own"),
        (INNER, stage("pyspark.ml.connect.pipeline.Pipeline"), "not one of Spark's own"),
        (INNER, stage("pyspark.ml.linalg.np"), "not one of Spark's own"),
        (INNER, stage(f"{SPARK}feature.Tokenizer", pythonClass="other.Stage"), "other.Stage, which is not one"),
        (INNER, stage(f"{SPARK}feature.Tokenizer") + stage("other.Stage"), "not one of Spark's own"),
        (INNER, b"\r\xef\xbb\xbf" + stage("other.Stage"), "not one of Spark's own"),
        (INNER, stage("other.Stage").replace(b'"class"', b'"cl\\u0061ss"'), "not one of Spark's own"),
        ("m/bestModel/metadata/another", stage("other.Stage"), "not one of Spark's own"),
        ("m/classifier/metadata/a=1/part-0", stage("other.Stage"), "not one of Spark's own"),
        ("m/model_0/metadata", stage("other.Stage"), "not one of Spark's own"),
        (INNER, stage("other.Stage")[:-1] + b" trailing", "cannot be looked into"),
        (INNER, b"[" + stage("other.Stage")[:-1] + b"]", "cannot be looked into"),
        (INNER, b'{"class": "other.Stage", "class": "org.apache.spark.ml.Pipeline"}', "cannot be looked into"),
        (f"{INNER}.snappy", b"x", "packed"),
        (INNER, stage(f"{SPARK}Pipeline", paramMap={"stageUids": ["x/../../../../else"]}), "leads out of its folder"),
        (INNER, stage(f"{SPARK}Pipeline", paramMap={"stageUids": ["{a,b}"]}), "leads out of its folder"),
        (INNER, stage(f"{SPARK}tuning.CrossValidator", paramMap=ELSEWHERE), "leads out of its folder"),
        ("m/metadata/.part-00000.crc", b"crc\0\n{", ""),
        ("m/metadata/_SUCCESS", b"", ""),
        ("m/metadata/notes.txt", b"About this model\n", ""),
        ("m/metadata/info.json", b'{\n  "a": 1\n}\n', ""),
        ("m/notes/part-00000", stage("other.Stage"), ""),
    ],
)
def test_T200_spark_models_name_no_code(name: str, raw: bytes, said: str) -> None:
    found = code_in(io.BytesIO(raw), name)
    assert said in found if said else found == ""


class Reader:
    """Spark's, which must not be reached."""

    @staticmethod
    def loadParamsInstance(at: str, _session: object) -> str:
        return at


def test_T200_a_spark_model_is_not_loaded_with_a_stage_that_runs_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spark = SimpleNamespace(DefaultParamsReader=Reader, SparkSession=MagicMock())
    monkeypatch.setattr("strongroom.models.kinds._need", lambda *_: spark)
    record = models.ModelRecord(kind="spark-ml", file="spark-ml").encode()
    (tmp_path / "model.json").write_bytes(record)
    with pytest.raises(InputError, match="no metadata"):
        models.load(tmp_path)
    for folder, name in {"": "PipelineModel", "stages/0_a": "feature.Tokenizer"}.items():
        (tmp_path / "spark-ml" / folder / "metadata").mkdir(parents=True)
        (tmp_path / "spark-ml" / folder / "metadata/part-00000").write_bytes(stage(SPARK + name))
    assert models.load(tmp_path) == f"file:{tmp_path}/spark-ml"
    inner = tmp_path / "spark-ml/bestModel/stages/1_b/metadata/part-00000"
    inner.parent.mkdir(parents=True)
    for name, said in {f"{SPARK}feature.SQLTransformer": "runs any SQL", "other.Stage": "not one of Spark's"}.items():
        inner.write_bytes(stage(name))
        with pytest.raises(InputError, match=f"{name}, which .*{said}"):
            models.load(tmp_path)
        with pytest.raises(InputError, match=said):
            models.load(tmp_path, trusted=[f"{SPARK}PipelineModel"])
        assert models.load(tmp_path, trusted=[name]) == f"file:{tmp_path}/spark-ml"
    inner.unlink()
    (tmp_path / "spark-ml/stages/2_c").symlink_to(tmp_path)
    with pytest.raises(InputError, match="a link"):
        models.load(tmp_path)


def archive(name: str, raw: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, raw)
    return out.getvalue()


def array(value: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(value, dtype=object if value is None else None), allow_pickle=True)
    return out.getvalue()


def keras_object(module: object, name: object, **more: object) -> bytes:
    found = {"module": module, "class_name": name, "config": {}, "registered_name": None, **more}
    return archive("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": [found]}}).encode())


FOREIGN = "which is not one of Keras's own"


@pytest.mark.parametrize(
    ("module", "name", "more", "said"),
    [
        ("os", "system", {}, f"os.system, {FOREIGN}"),
        ("builtins", "eval", {}, f"builtins.eval, {FOREIGN}"),
        ("builtins", "function", {"config": "eval"}, f"builtins.eval, {FOREIGN}"),
        ("mine.layers", "function", {"config": "act"}, f"mine.layers.act, {FOREIGN}"),
        ("keras.utils", "function", {"config": "get_file"}, f"keras.utils.get_file, {FOREIGN}"),
        ("keras.models", "load_model", {}, FOREIGN),
        ("keras.config", "enable_unsafe_deserialization", {}, FOREIGN),
        ("keras.src.saving.serialization_lib", "Enable", {}, FOREIGN),
        ("keras.src.utils.file_utils", "get_file", {}, FOREIGN),
        ("keras.layers\n", "Dense", {}, FOREIGN),
        ("keras_evil", "Dense", {}, FOREIGN),
        (["keras"], "Dense", {}, FOREIGN),
        ("keras.layers", ["Dense"], {}, FOREIGN),
        ("", "Dense", {}, FOREIGN),
        ("tensorflow.python", None, {"class_name": "__typespec__", "spec_name": "x"}, FOREIGN),
        ("keras.layers", None, {"class_name": "__typespec__", "spec_name": "load_model"}, ""),
        ("keras.models", None, {"class_name": "__typespec__", "spec_name": "load_model"}, FOREIGN),
        ("keras.layers", None, {"class_name": "__typespec__", "spec_name": "TFSMLayer"}, "which loads code"),
        ("builtins", "function", {"config": "nope", "registered_name": "exec"}, "exec, which is registered under"),
        ("keras.models", "Nope", {"registered_name": "load_model"}, "load_model, which is registered under"),
        ("keras.layers", "Lambda", {"output_shape_type": "lambda"}, "byte code"),
        ("keras.layers", "TorchModuleWrapper", {}, "TorchModuleWrapper, which loads code"),
        (None, "TFSMLayer", {}, "TFSMLayer, which loads code"),
        ("keras.layers", "Dense", {"build_config": {"module": "os", "class_name": "system"}}, FOREIGN),
        ("keras", "Sequential", {}, ""),
        ("keras.layers", "Dense", {"registered_name": "Dense"}, ""),
        ("keras.optimizers.schedules", "ExponentialDecay", {}, ""),
        ("keras.src.backend.torch.optimizers.torch_adam", "Adam", {}, ""),
        ("keras.src.models.functional", "Functional", {}, ""),
        ("keras.src.ops.numpy", "GetItem", {}, ""),
        ("builtins", "function", {"config": "mine>act"}, ""),
        (None, "Own", {"registered_name": "mine>Own"}, ""),
        (None, "__slice__", {}, ""),
    ],
)
def test_T364_keras_models_that_name_foreign_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: object, more: dict[str, object], said: str
) -> None:
    raw = keras_object(module, name, **more)
    found = code_in(io.BytesIO(raw), "model.keras")
    assert said in found if said else found == ""
    keras = SimpleNamespace(load_model=lambda *_, **named: named)
    monkeypatch.setattr("strongroom.models.kinds._need", lambda *_: keras)
    (tmp_path / "model.json").write_bytes(models.ModelRecord(kind="keras", file="model.keras").encode())
    (tmp_path / "model.keras").write_bytes(raw)
    if not said:
        assert models.load(tmp_path) == {"safe_mode": True}
        return
    with pytest.raises(InputError, match="the model holds a") as caught:
        models.load(tmp_path)
    named = caught.value.hint.partition("trusted=")[2].removesuffix(")")
    assert models.load(tmp_path, trusted=ast.literal_eval(named)) == {"safe_mode": True}


@pytest.mark.parametrize("raw", [b"no archive", archive("other.json", b"{}"), archive("config.json", b"{"), None])
def test_T364_what_is_no_keras_model_is_not_loaded(tmp_path: Path, raw: bytes | None) -> None:
    (tmp_path / "model.json").write_bytes(models.ModelRecord(kind="keras", file="model.keras").encode())
    if raw is None:
        (tmp_path / "model.keras").mkdir()  # which Keras would load as well
    else:
        (tmp_path / "model.keras").write_bytes(raw)
    with pytest.raises(InputError, match=r"no Keras model|cannot be looked into"):
        models.load(tmp_path)


def keras_config(class_name: str) -> bytes:
    return f'{{"config": {{"layers": [{{"config": {{"function": {{"class_name": "{class_name}"}}}}}}]}}}}'.encode()


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("m.bin", pickle.dumps([1], 2), "pickle of protocol 2"),
        ("m.safetensors", pickle.dumps([1], 5), "pickle of protocol 5"),
        ("m.pt", archive("archive/data.pkl", b""), "archive with the pickle"),
        ("harmless.zip", archive("a/b.PKL.pickle", b""), "archive with the pickle"),
        ("m.npy", array(None), "Python objects"),
        ("m.npz", archive("a.npy", array(None)), "Python objects"),
        ("m.zip", archive("x", b"y")[:-10], "cannot be looked into"),
        ("m.pkl", b"(lp0\n.", ".pkl file"),
        ("m.joblib", b"x\x9c", "packed by zlib"),
        ("pytorch_model.bin", pickle.dumps(Evil(), 0), "calls something"),
        ("weights.npy", pickle.dumps(Evil(), 1), "calls something"),
        ("weights.bin", b"(0" + pickle.dumps(Evil(), 0), "calls something"),  # a mark that is taken back
        ("weights.bin", b"I0x1\n0" + pickle.dumps(Evil(), 0), "calls something"),  # pickletools reads no such number
        ("weights.bin", b"L0x1L\n0" + pickle.dumps(Evil(), 0), "calls something"),
        ("weights.bin", b"S'\xff'\n0" + pickle.dumps(Evil(), 0), "calls something"),  # Latin-1, if the loader says so
        ("weights.bin", b"N.I1\n." + pickle.dumps(Evil(), 1), "calls something"),  # as PyTorch once wrote them
        ("weights.bin", b"N" * 200_000, "calls something"),  # too long to be sure
        ("weights.bin", pickle.dumps([1.0, "R", {"b": (2,)}], 1), ""),
        ("notes.txt", b"I have not said\nRR", ""),
        ("m.zip", archive("x", b"N0" * 40_000 + pickle.dumps(Evil(), 0)), "calls something"),
        ("m.bin", b"N0" + pickle.dumps(Evil(), 0), "calls something"),
        ("m.bin", b"cnot_here\nx\n.", "imports or calls"),
        ("m.bin", b"cnot_here\nx\n", "imports or calls"),
        ("m.bin", b"N0cnot_here\nx\n0N.", "imports or calls"),
        ("m.bin", b"cantigravity\nx\nz", "imports or calls"),  # which has run before the pickle falls apart
        ("m.bin", b"cxml.sax.expatreader\nx\nz", "imports or calls"),
        ("m.bin", b"cstrongroom.cli\nx\nz", "imports or calls"),
        ("m.bin", b"cnot_here\nx\n0cantigravity\nx\nz", "imports or calls"),
        ("m.bin", b"\x8c\x02os\x8c\x06system\x93", "imports or calls"),
        ("m.zip", archive("innocent", b"cantigravity\nx\n."), "imports or calls"),
        ("labels.txt", b"cat\ndog\nzebra\n", ""),
        ("labels.txt", b"car\nbird\ncat\n", ""),
        ("model.pkl.gz", gzip.compress(pickle.dumps([1])), "packed by gzip"),
        ("model.z", zlib.compress(pickle.dumps([1])), "packed by zlib"),
        ("model.xz", lzma.compress(b"x"), "packed by xz"),
        ("m.npy", array(None).replace(b"'|O'", b'"|O"'), "Python objects"),
        ("m.npy", array(None).replace(b"'|O'", b"'O8'"), "Python objects"),
        ("m.npy", array(None).replace(b"'|O'", b"[('a','O')]"), "Python objects"),
        ("m.npz", archive("a.npy", array(None).replace(b"'|O'", b"'object'")), "Python objects"),
        ("a.zip", archive("archive/DATA.PKL", b""), "archive with the pickle"),
        ("a.zip", archive("innocent", pickle.dumps(Evil(), 0)), "calls something"),
        ("old.bin", b"\0" * 257 + b"ustar", "a tar archive"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("m.keras", archive("model.weights.h5", b"\x89HDF\r\n\x1a\n"), ""),
        ("README.md", b"# Read me: the model\n", ""),
        ("config.txt", b"config\nfoo\nbar: R.\n", ""),
        ("model.txt", b"tree\nversion=v4\nnum_class=1\n", ""),
        ("m.json", b"{}", ""),
        ("m.npy", array(None).replace(b"{'descr'", b"{'descr': 'f8', 'descr'"), "Python objects"),  # the last counts
        ("m.npy", array([1.0]).replace(b"False, ", b"0, 'des''cr': '|O', "), "Python objects"),
        ("m.npy", array([1.0]).replace(b", }", b"}  "), ""),
        ("m.npy", array([1.0, 2.0]), ""),
        ("m.keras", archive("config.json", b"{}"), ""),
        ("m.keras", archive("config.json", keras_config("Dense")), ""),
        ("m.keras", archive("config.json", keras_config("__lambda__")), "a Keras layer of a lambda"),
        ("m.zip", archive("a/config.json", keras_config("__l\\u0061mbda__")), "a Keras layer of a lambda"),
        ("m.keras", archive("config.json", b'[{"function_type": "lambda"}]'), "a Keras layer of a lambda"),
        ("m.keras", b"prefix" + archive("config.json", keras_config("__lambda__")), "a Keras layer of a lambda"),
        ("m.npz", b"PK\x05\x06" + archive("a.npy", b"\x80\x04K\x01."), "a pickle of protocol 4"),
        ("m.bin", bytes(99) + b"PK\x05\x06" + bytes(18), ""),
        ("m.bin", bytes(99) + b"PK\x05\x06" + b"\x01" * 18, "an archive that cannot be looked into"),
        ("m.keras", archive("config.json", b"{"), "cannot be looked into"),
        ("m.keras", archive("config.json", b"[" * 100_000), "cannot be looked into"),
        ("m.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", ""),
        ("empty.pt", b"", ""),
    ],
)
def test_T200_files_that_run_code_are_told_by_content(name: str, raw: bytes, said: str) -> None:
    found = code_in(io.BytesIO(raw), name)
    assert said in found if said else found == ""


class Called(pickle.Unpickler):
    """The unpickler itself, which says whether something was imported or called."""

    def find_class(self, _module: str, _name: str) -> object:
        self.called = True

        def call(*_given: object, **_named: object) -> int:
            self.called = True
            return 1

        return type("Any", (), {"__new__": call, "__setstate__": call})

    called = False


PIECES = [
    *(b"(", b"0", b"1", b"2", b"N", b"t", b")", b"]", b"}", b"a", b"e", b"s", b"l", b"R", b"b", b"o", b".", b"\x81"),
    *(b"I0x1\n", b"L0x1L\n", b"F1.5\n", b"S'\xff'\n", b"V\xe9\n", b"cos\nx\n", b"ios\nx\n", b"p1\n", b"g1\n", b"q\1"),
    *(b"K\1", b"M\1\0", b"J\1\0\0\0", b"U\1a", b"X\1\0\0\0a", b"\x80\1", b"\x8a\1\1", b"\x95" + bytes(8), b"h\1"),
]


@pytest.mark.parametrize("seed", range(4))
def test_T200_no_pickle_that_calls_is_missed(seed: int) -> None:
    chosen, called = random.Random(seed), 0
    for _ in range(5_000):
        raw = b"".join(chosen.choices(PIECES, k=chosen.randrange(1, 12))) + chosen.choice([b"", b"cos\nx\n(tR."])
        unpickler = Called(io.BytesIO(raw), encoding="latin-1")
        with contextlib.suppress(Exception):
            while True:
                unpickler.load()
        if unpickler.called:
            called += 1
            assert code_in(io.BytesIO(raw), "m.bin"), raw
    assert called > 50
