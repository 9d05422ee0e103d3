"""Bundles for Gramine and Occlum, run by stand-ins: the listed files are all that guest and program have."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes import gramine_stand_in as gramine
from tests.fakes import occlum_stand_in as occlum
from tests.fakes.enclave_shell import Enclave, served
from tests.fakes.java_support import jars
from tests.fakes.maker_services import Makers, serving
from tests.fakes.stock_kbs import StockKBS

from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.platform import load_seed

pytestmark = pytest.mark.e2e

PROGRAM = """
import csv, json, os, sys
import numpy
rows = list(csv.reader(open("/work/in/a.csv")))
if os.path.exists("/work/out/deep/said.json"):
    print("again", json.load(open("/work/out/deep/said.json")))
os.makedirs("/work/out/deep", exist_ok=True)
json.dump([rows[1], int(numpy.arange(4).sum()), sys.argv[1:]], open("/work/out/deep/said.json", "w"))
os.symlink("/etc/passwd", "/work/out/link")
assert not os.path.exists("/run/strongroom/agent.sock")
print("did", __name__, len(os.listdir("/work/in")))
"""
JOB = """
[job]
workload = "python"
program = "app.py"
arguments = ["--x"]
enclave = "gramine"
[sgx]
unsafe_program_has_keys = true
[sandbox]
network = true
scratch_mb = 64
[[volume]]
name = "in"
path = "in"
[[volume]]
name = "out"
path = "out"
key = "sales"
mode = "rw"
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Enclave]:
    with served(tmp_path) as made:
        yield made


Done = subprocess.CompletedProcess[str]
Run = Callable[[Path, bytes], Done]


def _run(shop: Enclave, bundle: Path, run: Run = gramine.run) -> tuple[dict[str, Any], Done]:
    launch = bundle / "launch" / "launch.json"
    said = {**json.loads(launch.read_text()), "service": f"https://127.0.0.1:{shop.environment['PORT']}"}
    launch.write_text(json.dumps(said))
    done = run(bundle, load_seed(shop.workspace.seed))
    report = json.loads((bundle / "launch" / "report.json").read_text())
    assert isinstance(report, dict)
    return report, done


def test_a_python_job_from_build_to_result(shop: Enclave) -> None:
    (shop.folder / "app.py").write_text(PROGRAM)
    (shop.folder / "job.toml").write_text(JOB)
    built = json.loads(shop.run("job", "build", "job.toml", "--json").stdout)
    bundle = Path(built["bundle"])
    assert built["measurement"] == ""
    assert len(built["remaining"]) == 5
    gramine.sign(bundle)
    measurement = json.loads(shop.run("job", "build", "job.toml", "--json").stdout)["measurement"]
    assert len(measurement) == 64
    # A policy for hardware does not take simulated evidence, whatever the measurement.
    shop.run("policy", "set", "sales", "--allow", "job.toml")
    _first_run_on_another_machine(shop, bundle, measurement)
    report, _ = _run(shop, bundle)
    assert (report["status"], report["error"]["code"]) == ("refused", "appraisal")
    assert "root: expected hardware, got simulated" in report["error"]["message"]
    shop.run("policy", "approve", str(report["error"]["details"]["request"]), "--unsafe-accept-simulated")
    report, done = _run(shop, bundle)
    assert (report["status"], report["exit_code"]) == ("completed", 0), done.stderr
    assert done.stdout == "did __main__ 2\n"
    assert report["details"]["left_out"]["out"].keys() == {"link"}
    assert shop.open("out") == {"deep/said.json": '[["1", "alpha"], 6, ["--x"]]'}
    report, done = _run(shop, bundle)
    assert done.stdout.startswith("again [['1', 'alpha'], 6, ['--x']]")
    assert report["status"] == "completed"
    (bundle / "root" / "app" / "app.py").unlink()
    (bundle / "root" / "app" / "app.py").write_text("print(1)")
    with pytest.raises(AssertionError, match=r"root/app/app\.py"):  # what Gramine does: the file does not open
        _run(shop, bundle)


def _first_run_on_another_machine(shop: Enclave, bundle: Path, measurement: str) -> None:
    # As docs/hardware-untested.md says, with another simulated platform in the place of the hardware.
    now, quote = datetime.now(UTC), bundle / "launch" / "quote.bin"
    other = SimulatedPKI.create(b"other".ljust(32), now=now)

    def refused() -> dict[str, Any]:
        report, _ = _run(shop, bundle, lambda folder, _seed: gramine.run(folder, b"other".ljust(32)))
        assert report["status"] == "refused"
        error = report["error"]
        assert isinstance(error, dict)
        return error

    error = refused()
    assert error["code"] == "verification"
    assert "take launch/quote.bin to it, `strongroom attest endorsements fetch quote.bin`" in error["hint"]
    shown = shop.run("attest", "show", str(quote), check=False).stdout
    assert measurement[:60] in shown
    assert "FAIL  verification: root: expected one of" in shown
    anchor = ("--anchor", str(shop.folder / "other.pem"))
    (shop.folder / "other.pem").write_bytes(other.root.public_bytes(Encoding.PEM))
    with serving(Makers(intel={("sgx", "standard"): other.endorsements(now)})) as makers:
        fetched = shop.run("attest", "endorsements", "fetch", str(quote), "--from", makers.url, *anchor).stderr
    assert f"{quote} verifies with it, TCB status UpToDate" in fetched
    shop.run(
        "service",
        "trust",
        str(shop.workspace.service_folder / "endorsements" / "sgx-53494d000000-platform.json"),
        *anchor,
    )
    error = refused()
    assert error["code"] == "appraisal"
    assert "root: expected hardware, got simulated" in error["message"]
    shop.run("policy", "requests")
    shop.run("policy", "dismiss", str(error["details"]["request"]))
    shop.run("service", "distrust", other.anchor().fingerprint)


def test_a_python_job_under_occlum(shop: Enclave) -> None:
    (shop.folder / "app.py").write_text(PROGRAM + "try: os.fork()\nexcept OSError: print('no fork')\n")
    job = JOB.replace("gramine", "occlum")
    (shop.folder / "job.toml").write_text(job)
    refused = shop.run("job", "build", "job.toml", check=False)
    assert "whoever runs the machine can run other files under this measurement" in refused.stderr
    (shop.folder / "job.toml").write_text(job.replace("[sgx]", "[sgx]\nunsafe_host_has_keys = true"))
    bundle = Path(str(shop.json("job", "build", "job.toml")["bundle"]))
    report, _ = _run(shop, bundle, occlum.run)
    allowed = shop.run("policy", "approve", str(report["error"]["details"]["request"]), "--unsafe-accept-simulated")
    assert "whoever runs the machine can take the named keys" in allowed.stderr
    report, done = _run(shop, bundle, occlum.run)
    assert (report["status"], report["exit_code"]) == ("completed", 0), (report, done.stderr)
    assert done.stdout == "did __main__ 2\nno fork\n"
    assert report["details"]["left_out"]["out"].keys() == {"link"}
    assert shop.open("out") == {"deep/said.json": '[["1", "alpha"], 6, ["--x"]]'}


SPARK_PROGRAM = """
import org.apache.spark.sql.SparkSession;
public class Copy {
    public static void main(String[] words) {
        SparkSession spark = SparkSession.builder().getOrCreate();
        spark.read().option("header", "true").csv("/work/in").write().csv("/work/out/said");
        System.out.println("did " + spark.range(1000).selectExpr("sum(id)").first());
        spark.stop();
    }
}
"""


@pytest.mark.long
@pytest.mark.parametrize(("kind", "run"), [("gramine", gramine.run), ("occlum", occlum.run)])
def test_a_spark_job_in_a_jar(kind: str, run: Run, shop: Enclave) -> None:
    if shutil.which("javac") is None:
        pytest.skip("no javac here: apt-get install openjdk-17-jdk-headless")
    (shop.folder / "Copy.java").write_text(SPARK_PROGRAM)
    java = ["javac", "--release", "17", "-cp", f"{jars()}/*", "-d", "classes", "Copy.java"]
    subprocess.run(java, cwd=shop.folder, check=True)
    subprocess.run(["jar", "--create", "--file", "app.jar", "-C", "classes", "."], cwd=shop.folder, check=True)
    job = JOB.replace("gramine", kind).replace("[sgx]", "[sgx]\nunsafe_host_has_keys = true")
    spark = 'program = "app.jar"\nmain_class = "Copy"\n'
    spark += 'engine = { "spark.master" = "local[2]", "spark.driver.memory" = "512m" }'
    job = job.replace('"python"', '"spark"').replace('program = "app.py"\narguments = ["--x"]', spark)
    (shop.folder / "job.toml").write_text(job)
    bundle = Path(str(shop.json("job", "build", "job.toml")["bundle"]))
    if kind == "gramine":
        gramine.sign(bundle)
    report, _ = _run(shop, bundle, run)
    shop.run("policy", "approve", str(report["error"]["details"]["request"]), "--unsafe-accept-simulated")
    report, done = _run(shop, bundle, run)
    assert (report["status"], done.stdout) == ("completed", "did [499500]\n"), done.stderr[-4000:]
    assert {name.split("/")[0] for name in shop.open("out")} == {"said"}
    assert "1,alpha\n" in shop.open("out").values()


KBS_JOB = """
[job]
workload = "python"
program = "app.py"
enclave = "gramine"
[sgx]
unsafe_program_has_keys = true
[sandbox]
network = true
scratch_mb = 64
[[volume]]
name = "in"
path = "in"
key = "{url}/acme/key/sales"
certificate = "kbs.pem"
epoch = {epoch}
manifest = "{manifest}"
"""


def test_a_python_job_whose_key_lies_at_a_stock_kbs(shop: Enclave) -> None:
    shop.run("key", "permit-export", "sales")
    key = bytes.fromhex(shop.run("key", "export", "sales").stdout)
    (shop.folder / "app.py").write_text("print(open('/work/in/a.csv').read())")
    with StockKBS(shop.folder, {"acme/key/sales": key}, name="kbs.example") as kbs:
        (shop.folder / "kbs.pem").write_text(kbs.certificate)
        (shop.folder / "job.toml").write_text(KBS_JOB.format(url=kbs.url, **shop.json("data", "show", "in")))
        bundle = Path(str(shop.json("job", "build", "job.toml")["bundle"]))
        gramine.sign(bundle)
        launch = bundle / "launch" / "launch.json"
        said = json.loads(launch.read_text())
        assert said["doors"] == {f"kbs.example:{kbs.port}": f"kbs.example:{kbs.port}"}
        launch.write_text(json.dumps({**said, "doors": {f"kbs.example:{kbs.port}": f"127.0.0.1:{kbs.port}"}}))
        report, done = _run(shop, bundle)
        assert (report["status"], report["exit_code"]) == ("completed", 0), done.stderr
        assert done.stdout.startswith("id,name")
        assert "init-data" not in kbs.seen[1][2], "MRENCLAVE covers the job"
        kbs.policy = lambda _init_data, _path: False
        report, done = _run(shop, bundle)
    assert (report["status"], done.stdout) == ("refused", "")
    assert report["error"]["message"].startswith(f"KBS kbs.example:{kbs.port} refused")


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_the_trust_service_from_build_to_a_key_that_opens_there_alone(tmp_path: Path) -> None:
    bundle, mine, seed = tmp_path / "bundle", tmp_path / "mine", b"s" * 32
    mine.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{probe.getsockname()[1]}"
    shell = Enclave(folder=mine)
    shell.run("owner", "request", "--name", "shop", "--service", at, "--first")
    built = shell.json("service", "build", str(bundle))
    assert (built["measurement"], len(built["remaining"])) == ("", 5)  # type: ignore[arg-type]
    gramine.sign(bundle)
    measurement = shell.json("service", "build", str(bundle))["measurement"]
    assert isinstance(measurement, str)
    shutil.copy(mine / "shop.pem", bundle / "launch" / "admin.pem")
    pki = SimulatedPKI.create(seed, now=datetime.now(UTC))
    write_bundle(tmp_path / "maker.json", pki.anchor(), [pki.endorsements(datetime.now(UTC))])
    words = ("service", "verify", "--measurement", measurement, "--endorsements", str(tmp_path / "maker.json"))
    ports = {"0.0.0.0:8700": at}
    state = bundle / "service"
    with gramine.started(bundle, seed, ports) as process:
        _until((state / "identity.pem").exists, process)
        first = (*words, "--unsafe-accept-simulated", "--identity", str(state / "identity.pem"), "--pin")
        _until(lambda: "ACCEPTED" in shell.run(*first, check=False).stdout, process)
        shell.run("service", "rotate-root", "--kind", "tee", "--threshold", "2", "--shares", "2", "--yes")
        shell.run("key", "create", "sales")
        assert sorted(p.name for p in (state / "service").iterdir()) == ["locked-leaf.pem", "state.db", "state.db-wal"]
        assert not (bundle / "run").exists()
        process.terminate()
        process.wait(30)
    with gramine.started(bundle, seed, ports) as process:  # it unlocks itself
        _until(lambda: "sales" in shell.run("key", "list", check=False).stdout, process)
        process.terminate()
        process.wait(30)
    template = bundle / "job.manifest.template"
    template.write_text(template.read_text().replace('"error"', '"warning"'))
    gramine.sign(bundle)
    with gramine.started(bundle, seed, ports) as process:  # other code, of the same signer
        _until(lambda: "measurement: expected" in shell.run("key", "list", check=False).stderr, process)
        assert "REFUSED" in shell.run(*words, "--unsafe-accept-simulated", check=False).stdout
        process.terminate()
        assert "sealed to other code or another machine" in process.communicate(timeout=30)[1]
