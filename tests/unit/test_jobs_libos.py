# ruff: noqa: E501  # tables
"""Bundles for SGX: which jobs, which files, how large; manifests that Gramine and Occlum take, equal for equal jobs."""

import hashlib
import json
import os
import shutil
import sys
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from tests.fakes.gramine_schema import refusals
from tests.fakes.occlum_schema import bom_files, refusals_of_bom, refusals_of_settings
from tests.unit.test_jobs_cvm import unpacked

import strongroom.jobs.workloads.spark as spark_workload
from strongroom.attest.sigstruct import Sigstruct
from strongroom.errors import InputError, UnavailableError, VerificationError
from strongroom.jobs.differences import known_to_both, read_build
from strongroom.jobs.enclaves.cvm import ConfidentialVM
from strongroom.jobs.enclaves.gramine import GramineEnclave, build_service
from strongroom.jobs.enclaves.occlum import OcclumEnclave
from strongroom.jobs.plan import Bundle, LaunchPlan, plan_job
from strongroom.jobs.registry import WORKLOADS
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import Cvm, JobKey, JobSpec, Sandbox, Sgx, Volume
from strongroom.kms.policies import difference

TRUSTED = Sgx(unsafe_program_has_keys=True)
OTHER = Sigstruct(measurement=bytes(32), attributes=bytes(16), attribute_mask=bytes(16), signed_on=date(2026, 1, 1))
GOLDEN = Path(__file__).parent.parent / "golden"
OWN, TAG = f"python{sys.version_info.major}.{sys.version_info.minor}", sys.implementation.cache_tag
SITE = f"env/lib/{OWN}/site-packages"


class FewFiles(Runtimes):
    """Runtimes of a few files each, in the shape of the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        texts = {
            "base/usr/bin/bash": "bash", "base/usr/lib/x86_64-linux-gnu/libc.so.6": "libc", "base/etc/passwd": "root",
            "base/usr/lib/x86_64-linux-gnu/libcrypt.so.1": "libcrypt",
            "base/usr/lib/x86_64-linux-gnu/libstdc++.so.6": "libstdc++", "base/usr/share/zoneinfo/UTC": "UTC",
            f"python/bin/{OWN}": "python", f"python/lib/{OWN}/os.py": "os", "library/strongroom/__init__.py": "",
            "guest/strongroom/guest/libos.py": "guest", "jdk/bin/java": "java", "jdk/lib/modules": "modules",
            "env/pyvenv.cfg": "home = /opt/python/bin",
            f"{SITE}/pyspark/jars/spark-core.jar": "jar", f"{SITE}/pyspark/__init__.py": "",
        }  # fmt: skip
        for name, needs in (("numpy", ""), ("torch", "numpy"), ("flask", ""), ("fsspec", "")):
            texts[f"{SITE}/{name}/__init__.py"] = f"# {name}"
            texts[f"{SITE}/{name}/__pycache__/__init__.{TAG}.pyc"] = "code"
            info, extras = f"{SITE}/{name}-1.dist-info", 'Requires-Dist: fsspec; extra == "io"\n' if needs else ""
            required = f"Requires-Dist: {needs}>=1\n" if needs else ""
            extras += 'Requires-Dist: flask; extra == "test"\n' if needs else ""
            texts[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{required}{extras}"
            texts[f"{info}/RECORD"] = f"{name}/__init__.py,,\n{name}-1.dist-info/METADATA,,\n../../../bin/{name},,\n"
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / "python/bin/python3").symlink_to(OWN)
        (folder / "base/usr/bin/sh").symlink_to("bash")
        (folder / "env/bin").mkdir()
        (folder / "env/bin/python3").symlink_to("/opt/python/bin/python3")

    base = lambda self: self.folder / "base"  # noqa: E731
    python = lambda self: self.folder / "python"  # noqa: E731
    guest = lambda self: self.folder / "guest"  # noqa: E731
    library = lambda self: self.folder / "library"  # noqa: E731
    jdk = lambda self: self.folder / "jdk"  # noqa: E731

    def env(self, venv: Path | None = None) -> Path:
        return venv or self.folder / "env"


@pytest.fixture(autouse=True)
def one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's job names the folder of its jars: digests of jobs are those of one version of Python."""
    monkeypatch.setattr(spark_workload, "_CLASS_PATH", spark_workload._CLASS_PATH.replace(OWN, "python3.11"))
    home = spark_workload._ENVIRONMENT["SPARK_HOME"].replace(OWN, "python3.11")
    monkeypatch.setitem(spark_workload._ENVIRONMENT, "SPARK_HOME", home)


@pytest.fixture
def runtimes(tmp_path: Path) -> FewFiles:
    return FewFiles(tmp_path / "runtimes")


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, JobSpec]:
    (tmp_path / "app.py").write_text("import json\nprint(json.dumps(1))\n")
    (tmp_path / "train.py").write_text("import torch\n")
    (tmp_path / "pi.jar").write_bytes(b"PK")
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    volume = Volume(name="in", location=sealed, dataset="a" * 32, key="sales", owner="f" * 64, mode="ro")
    sandbox = Sandbox(network=True, scratch_mb=512)
    python = JobSpec(
        name="j",
        workload="python",
        program=tmp_path / "app.py",
        sandbox=sandbox,
        enclave="gramine",
        volumes=(volume,),
        sgx=TRUSTED,
    )
    spark = {"spark.master": "local[2]", "spark.driver.memory": "1g"}
    return {
        "python": python,
        "torch": replace(python, program=tmp_path / "train.py", sgx=replace(TRUSTED, edmm=True, product=7, svn=2)),
        "spark": replace(
            python, workload="spark", program=tmp_path / "pi.jar", main_class="org.example.Pi", engine=spark
        ),
    }


def planned(spec: JobSpec) -> LaunchPlan:
    return plan_job(spec, WORKLOADS, ("sha256:" + "1" * 64,))


def build(spec: JobSpec, runtimes: Runtimes, folder: Path) -> Bundle:
    kind = GramineEnclave if spec.enclave == "gramine" else OcclumEnclave
    return kind(runtimes, identity_pem="PEM").build(planned(spec), folder / "bundles")


def golden(name: str, text: str) -> None:
    """Compare with a reviewed file; digests of what differs from one Python to the next are of one version here."""
    text = text.replace(OWN, "python3.11").replace(TAG or "", "cpython-311")
    if os.environ.get("WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text(), f"review, then WRITE_GOLDEN=1: {name}"


@pytest.mark.parametrize("name", ["python", "torch", "spark"])
def test_gramine_takes_the_manifest(
    name: str, jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    bundle = build(jobs[name], runtimes, tmp_path)
    text = (bundle.folder / "job.manifest.template").read_text()
    assert refusals(text) == []
    manifest = tomllib.loads(text)
    assert not manifest["sgx"]["debug"]
    assert (manifest["sgx"]["file_check_policy"], manifest["sgx"]["remote_attestation"]) == ("strict", "dcap")
    assert not any("insecure" in key for table in manifest.values() for key in table)
    for item in manifest["sgx"]["trusted_files"][1:]:
        assert (bundle.folder / item["uri"].removeprefix("file:")).is_file()
    assert not bundle.simulated
    with pytest.raises(UnavailableError, match="Gramine's own tools make it"):
        bundle.measurement  # noqa: B018
    golden(f"gramine-{name}.manifest", text)
    named = " --product 7 --svn 2" if name == "torch" else ""
    assert f"--measurement HEX{named} --out" in bundle.remaining[-1]


@pytest.mark.parametrize("name", ["python", "torch", "spark"])
def test_occlum_gets_settings_and_a_bom(
    name: str, jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path
) -> None:
    spec = replace(jobs[name], enclave="occlum", sgx=replace(jobs[name].sgx, edmm=False, unsafe_host_has_keys=True))
    bundle = build(spec, runtimes, tmp_path)
    settings, bom = ((bundle.folder / file).read_text() for file in ("Occlum.json", "bom.yaml"))
    assert refusals_of_settings(settings) == refusals_of_bom(bom) == []
    for at, digest in bom_files(bom).items():
        assert hashlib.sha256((bundle.folder / f"root{at}").read_bytes()).hexdigest() == digest
    golden(f"occlum-{name}.json", settings)
    golden(f"occlum-{name}-bom.yaml", bom)


@pytest.mark.parametrize("name", ["python", "torch", "spark"])
def test_a_confidential_vm_gets_a_first_file_system_and_commands(
    name: str, jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path
) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    spec = replace(
        jobs[name], enclave="cvm", sandbox=Sandbox(scratch_mb=512), cvm=Cvm(kernel=str(tmp_path / "vmlinuz"))
    )
    enclave = ConfidentialVM(runtimes, identity_pem="PEM")
    folder = enclave.build(planned(spec), tmp_path / "bundles").folder
    initrd = f"sha256:{hashlib.sha256((folder / 'initrd.cpio').read_bytes()).hexdigest()}"
    texts = [(folder / f).read_text() for f in ("reference.json", "launch-snp.sh", "launch-tdx.sh")]
    found = unpacked(folder / "initrd.cpio")
    texts += [found["init"][1].decode(), "".join(f"{mode:06o} {at}\n" for at, (mode, _, _) in found.items())]
    text = "\n----\n".join(texts).replace(initrd, "INITRD").replace(str(tmp_path), "/build")
    golden(f"cvm-{name}.txt", text)


def files(bundle: Bundle) -> dict[str, str]:
    found = read_build(bundle.folder)["files"]
    assert isinstance(found, dict)
    return found


def test_only_what_the_program_needs_is_trusted(jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path) -> None:
    python, torch, spark = (files(build(jobs[n], runtimes, tmp_path / n)) for n in ("python", "torch", "spark"))
    for found in (python, torch, spark):
        assert not any("libc.so" in name for name in found)  # Gramine's own
        assert not any("__pycache__" in name for name in found)
        assert not any("flask" in name or "dist-info/RECORD" in name for name in found)
        assert {"file:root/usr/bin/sh", "file:root/opt/python/bin/python3"} <= set(found)
        assert "file:root/usr/lib/x86_64-linux-gnu/libcrypt.so.1" in found  # no C library brings it
    assert {n for n in python if SITE in n} == set()
    # What it imports, what that requires, and its extra where installed; not what its tests need.
    assert {n.split("/")[6] for n in torch if SITE in n} == {
        "torch", "numpy", "fsspec", "torch-1.dist-info", "numpy-1.dist-info", "fsspec-1.dist-info"
    }  # fmt: skip
    assert [n for n in spark if SITE in n] == [f"file:root/opt/{SITE}/pyspark/jars/spark-core.jar"]


def test_a_build_is_reproducible_and_a_change_is_explained(
    jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path
) -> None:
    spec = jobs["torch"]
    first = build(spec, runtimes, tmp_path)
    manifest = (first.folder / "job.manifest.template").read_bytes()
    elsewhere = build(spec, FewFiles(tmp_path / "another" / "place"), tmp_path / "other")
    assert (elsewhere.folder / "job.manifest.template").read_bytes() == manifest
    assert (build(spec, runtimes, tmp_path).folder / "job.manifest.template").read_bytes() == manifest
    with pytest.raises(InputError, match="was built once"):
        read_build(first.folder, before=True)
    (first.folder / "job.sig").write_bytes(OTHER.to_bytes())
    changed = runtimes.folder / SITE / "numpy" / "__init__.py"
    changed.unlink()  # as pip does; an edit in place is seen as well
    changed.write_text("# numpy 2")
    build(spec, runtimes, tmp_path)
    lines = difference(*known_to_both(read_build(first.folder, before=True), read_build(first.folder)))
    assert [line.split(":")[0:2] for line in lines] == [["files.file", f"root/opt/{SITE}/numpy/__init__.py"]]
    assert not (first.folder / "job.sig").exists()
    with open(changed, "a") as file:
        file.write("#")
    assert files(build(spec, runtimes, tmp_path)) != files(elsewhere)


def test_no_earlier_digest_is_believed(
    jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    bundles = [build(jobs["python"], runtimes, tmp_path) for _ in range(2)]
    assert len(read) == 2 * len(files(bundles[0]))
    assert {Path(str(path)).parts[-2] for path in read} >= {"app", "job", "bin"}


def test_occlum_builds_are_explained_too(jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path) -> None:
    spec = replace(jobs["python"], enclave="occlum", sgx=replace(TRUSTED, unsafe_host_has_keys=True))
    bundle = build(spec, runtimes, tmp_path)
    build(replace(spec, sgx=replace(spec.sgx, svn=3)), runtimes, tmp_path)
    lines = difference(read_build(bundle.folder, before=True), read_build(bundle.folder))
    assert len(lines) == 1
    assert "version_number" in lines[0]


REFUSED = {
    "PySpark": ("gramine", "spark", {"program": "app.py", "main_class": ""}, "loopback TCP \\(Py4J\\)"),
    "several machines": ("gramine", "spark", {"engine": {"spark.master": "local-cluster[2,1,1024]"}}, "expected local\\[N\\]"),
    "all cores": ("gramine", "spark", {"engine": {}}, "threads are fixed when it is built"),
    "torchrun": ("gramine", "python", {"workload": "torchrun"}, "meet over loopback TCP"),
    "no network": ("gramine", "python", {"sandbox": Sandbox()}, "cannot take the host's network away"),
    "checkpoints": ("gramine", "python", {"checkpoint_s": 60}, "the guest does not see"),
    "a module": ("gramine", "python", {"program": None, "inline": ("-m", "app")}, "name a program|not known"),
    "fork": ("occlum", "python", {"program": "forks.py"}, "occlum has no fork, and the program imports multiprocessing"),
    "too small": ("gramine", "spark", {"sgx": replace(TRUSTED, size_mb=1024)}, r"expected at least \d+, got 1024: guest 256 .* heap 1024"),
    "few threads": ("gramine", "spark", {"sgx": replace(TRUSTED, max_threads=8)}, "max_threads: expected at least 112 for this job, got 8"),
    "keys": ("gramine", "python", {"sgx": Sgx()}, "the program can get the job's named keys for itself"),
    "a column key": ("occlum", "spark", {"sgx": Sgx(), "volumes": (), "keys": (JobKey(name="k", owner="f" * 64),)}, "named keys"),
    "keys that the host gets": ("occlum", "python", {}, "other files under this measurement, and get the job's named keys"),
    "EDMM": ("occlum", "python", {"sgx": replace(TRUSTED, edmm=True, unsafe_host_has_keys=True)}, "edmm is for gramine"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_there_is_refused_with_the_reason(
    case: str, jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path
) -> None:
    enclave, base, changes, reason = REFUSED[case]
    (tmp_path / "forks.py").write_text("from multiprocessing import Pool\n")
    program = changes.get("program")
    spec = replace(jobs[base], enclave=enclave, **changes)  # type: ignore[arg-type]
    if isinstance(program, str):
        spec = replace(spec, program=tmp_path / program)
    with pytest.raises(InputError, match=reason):
        build(spec, runtimes, tmp_path)
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize(
    ("size", "reason"), [(3, "power of two"), (-1, "from 1"), (True, "from 1"), (1 << 21, "from 1")]
)
def test_sizes_are_checked_before_anything_else(size: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Sgx(size_mb=size)


def test_the_size_grows_with_what_the_jvm_is_given(
    jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path
) -> None:
    def size(memory: str, *options: str) -> int:
        engine = {
            "spark.master": "local[2]", "spark.driver.memory": memory,
            "spark.driver.extraJavaOptions": " ".join(options),
        }  # fmt: skip
        bundle = build(replace(jobs["spark"], engine=engine), runtimes, tmp_path)
        return int(sum(json.loads((bundle.folder / "reference.json").read_text())["size_mb"].values()))

    plain = size("1g")
    assert size("2g") == plain + 1024 + 1024 + 128  # heap, direct memory, collector
    assert size("1g", "-XX:MaxDirectMemorySize=256m") == plain - 768
    assert size("1g", "-Xss4m") == plain + 3 * 112
    assert size("1g", "-XX:MaxHeapSize=2g") == size("2g")


def test_spark_over_loopback_is_encrypted_there_alone(jobs: dict[str, JobSpec]) -> None:
    argv = planned(jobs["spark"]).command.argv
    assert "spark.network.crypto.enabled=true" in argv
    assert "-XX:ActiveProcessorCount=2" in argv
    assert not any("network.crypto" in word for word in planned(replace(jobs["spark"], enclave="sim")).command.argv)


SIGN = """#!{python}
import datetime, hashlib, os, sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from strongroom.attest.sigstruct import Sigstruct
assert "PYTHONPATH" not in os.environ and os.environ["HOME"]
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert os.stat(words["-k"]).st_mode & 0o777 == 0o600
key = load_pem_private_key(open(words["-k"], "rb").read(), None)
text = open(words["-m"], "rb").read()
fields = Sigstruct(measurement=hashlib.sha256(text).digest(), attributes=bytes(16), attribute_mask=bytes(16),
                   signed_on=datetime.date(2026, 1, 1))
open(words["-s"], "wb").write(fields.signed(key, on=fields.signed_on).to_bytes())
open(words["-o"], "wb").write(text)
"""


def test_where_gramine_is_its_tools_expand_and_measure(
    jobs: dict[str, JobSpec], runtimes: FewFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gramine-manifest").write_text('#!/bin/sh\nsed \'s#{{ gramine.runtimedir() }}#/gramine#\' "$1" > "$2"\n')
    (tools / "gramine-sgx-sign").write_text(SIGN.format(python=sys.executable))
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    bundle = build(jobs["python"], runtimes, tmp_path)
    expanded = (bundle.folder / "job.manifest").read_bytes()
    assert (bundle.remaining, bundle.measurement) == ((), hashlib.sha256(expanded).hexdigest())
    assert b"{{" not in expanded
    assert build(jobs["python"], runtimes, tmp_path).measurement == bundle.measurement
    signed = bytearray((bundle.folder / "job.sig").read_bytes())
    signed[960] ^= 1  # the measurement that somebody else would like to have allowed
    (bundle.folder / "job.sig").write_bytes(signed)
    with pytest.raises(VerificationError, match="the signature does not hold"):
        build(jobs["python"], runtimes, tmp_path).measurement  # noqa: B018
    (tools / "gramine-manifest").write_text("#!/bin/sh\necho unknown key: sgx.foo >&2\nexit 1\n")
    changed = replace(jobs["python"], sgx=replace(TRUSTED, svn=1))
    with pytest.raises(InputError, match="gramine-manifest fails: unknown key: sgx"):
        build(changed, runtimes, tmp_path)


def test_gramine_takes_the_manifest_of_the_trust_service(
    runtimes: FewFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    bundle = build_service(runtimes, tmp_path / "service")
    text = (bundle.folder / "job.manifest.template").read_text()
    assert refusals(text) == []
    manifest = tomllib.loads(text)
    # The host has two folders, no say in arguments or environment, and its network.
    assert manifest["sgx"]["allowed_files"] == ["file:launch/", "file:service/"]
    assert manifest["loader"]["argv"][4:] == ["/service", "0.0.0.0:8700", "gramine", "/launch/admin.pem"]
    assert not any("insecure" in key for table in manifest.values() for key in table)
    assert (manifest["sgx"]["debug"], manifest["sgx"]["file_check_policy"]) == (False, "strict")
    found = files(bundle)
    assert {"file:root/opt/strongroom/strongroom/service/main.py", "file:root/opt/python/bin/python3"} <= set(found)
    assert not any(part in name for name in found for part in ("libc.so", "__pycache__", "flask", "/guest/", "/cli/"))
    assert "strongroom service build" in bundle.remaining[3]
    with pytest.raises(UnavailableError, match="Gramine's own tools make it"):
        bundle.measurement  # noqa: B018
    # Equal on any machine; another with any file of it.
    (bundle.folder / "launch" / "admin.pem").write_text("of any owner")
    (bundle.folder / "service" / "state.db").write_text("of any age")
    assert (build_service(runtimes, tmp_path / "service").folder / "job.manifest.template").read_text() == text
    again = build_service(FewFiles(tmp_path / "another"), tmp_path / "elsewhere")
    assert (again.folder / "job.manifest.template").read_text() == text
    (runtimes.folder / "base/etc/passwd").write_text("root, and another")
    assert files(build_service(runtimes, tmp_path / "service")) != found
