# ruff: noqa: E501  # programs and tables
"""What the job digest covers, and what it must not."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.errors import InputError
from strongroom.jobs.plan import LaunchPlan, describe, plan_job
from strongroom.jobs.registry import WORKLOADS
from strongroom.jobs.spec import JobKey, JobSpec, Limits, Sandbox, Volume, doors, load_spec

IDENTITY = ("sha256:" + "1" * 64,)


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "app.py").write_text("print(1)")
    (tmp_path / "lib.py").write_text("x = 1")
    (tmp_path / "other.py").write_text("print(2)")
    volume = Volume(name="in", location=tmp_path / "s", dataset="a" * 32, key="sales", owner="f" * 64, mode="ro")
    return JobSpec(
        name="job",
        workload="python",
        program=tmp_path / "app.py",
        arguments=("--n", "3"),
        environment={"LEVEL": "1"},
        files=(tmp_path / "lib.py",),
        volumes=(volume,),
    )


def job(spec: JobSpec, identity: tuple[str, ...] = IDENTITY) -> str:
    return plan_job(spec, WORKLOADS, identity).job


def _volume(spec: JobSpec, **changes: object) -> JobSpec:
    return replace(spec, volumes=(replace(spec.volumes[0], **changes),))  # type: ignore[arg-type]


COVERED: dict[str, Callable[[JobSpec], JobSpec]] = {
    "argument": lambda s: replace(s, arguments=("--n", "4")),
    "argument order": lambda s: replace(s, arguments=("3", "--n")),
    "argument joined": lambda s: replace(s, arguments=("--n 3",)),
    "argument added": lambda s: replace(s, arguments=("--n", "3", "")),
    "environment value": lambda s: replace(s, environment={"LEVEL": "2"}),
    "environment name": lambda s: replace(s, environment={"LEVEM": "1"}),
    "environment gone": lambda s: replace(s, environment={}),
    "inline program": lambda s: replace(s, program=None, inline=("-c", "print(1)")),
    "another program": lambda s: replace(s, program=s.program.with_name("other.py")),  # type: ignore[union-attr]
    "file gone": lambda s: replace(s, files=()),
    "network": lambda s: replace(s, sandbox=Sandbox(network=True)),
    "scratch": lambda s: replace(s, sandbox=Sandbox(scratch_mb=1)),
    "runtime": lambda s: replace(s, limits=Limits(max_runtime_s=1)),
    "publish on failure": lambda s: replace(s, publish_on_failure=True),
    "checkpoints": lambda s: replace(s, checkpoint_s=60),
    "volume name": lambda s: _volume(s, name="jn"),
    "volume data set": lambda s: _volume(s, dataset="b" * 32),
    "volume key": lambda s: _volume(s, key="other"),
    "volume owner": lambda s: _volume(s, owner="e" * 64),
    "volume mode": lambda s: _volume(s, mode="rw"),
    "pinned epoch": lambda s: _volume(s, epoch=3),
    "volume gone": lambda s: replace(s, volumes=()),
    "workload": lambda s: replace(s, workload="spark"),
}


@pytest.mark.parametrize("change", COVERED)
def test_the_digest_covers(spec: JobSpec, change: str) -> None:
    assert job(COVERED[change](spec)) != job(spec)


def test_the_digest_covers_where_a_key_at_a_kbs_lies_and_the_service_is_not_asked_for_it(spec: JobSpec) -> None:
    changes = {"owner": "kbs+https://kbs:8080/acme/key/sales", "manifest": "sha256:" + "7" * 64, "certificate": "PEM"}
    pinned = _volume(spec, epoch=3, **changes)
    document = plan_job(pinned, WORKLOADS, IDENTITY).document
    assert document["volumes"] == []
    volume = {"name": "in", "dataset": "a" * 32, "key": "sales", "mode": "ro", "epoch": "3", **changes}
    assert document["kbs"] == [volume]
    others = [
        _volume(pinned, **{name: value + "0"}) for name, value in changes.items()
    ] + [_volume(pinned, epoch=4), _volume(pinned, dataset="b" * 32), spec]  # fmt: skip
    assert len({job(s) for s in (pinned, *others)}) == 7
    with pytest.raises(InputError, match="enclave kind occlum has no attester"):
        job(replace(pinned, enclave="occlum"))
    assert doors(pinned) == {"doors": {"kbs:8080": "kbs:8080"}}
    assert doors(spec) == {}
    with pytest.raises(InputError, match="a job on several machines needs a key"):
        spark(pinned, spark__master="local-cluster[2,1,512]")


def test_the_digest_covers_the_code_byte_by_byte_and_the_service(spec: JobSpec) -> None:
    before = job(spec)
    assert job(spec, ("sha256:" + "2" * 64,)) != before
    assert job(spec, (*IDENTITY, "sha256:" + "2" * 64)) != before
    assert spec.program is not None
    spec.program.write_text("print(2)")
    assert job(spec) != before
    spec.program.write_text("print(1)")
    assert job(spec) == before
    spec.files[0].write_text("x = 2")
    assert job(spec) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, name="another"),
        lambda s: _volume(s, location=Path("/elsewhere")),
        lambda s: replace(s, volumes=tuple(reversed(s.volumes))),
    ],
)
def test_the_digest_does_not_cover(spec: JobSpec, change: Callable[[JobSpec], JobSpec]) -> None:
    extra = replace(spec.volumes[0], name="out", dataset="c" * 32)
    two = replace(spec, volumes=(spec.volumes[0], extra))
    changed = (
        change(two) if len(change(two).volumes) == 2 else replace(change(spec), volumes=(*change(spec).volumes, extra))
    )
    assert job(changed) == job(two)


def test_the_document_names_no_location_epoch_or_policy(spec: JobSpec) -> None:
    plan = plan_job(spec, WORKLOADS, IDENTITY)
    text = json.dumps(dict(plan.document))
    assert str(spec.volumes[0].location) not in text
    assert "epoch" not in text
    assert "policy" not in text
    shown = describe(plan)
    assert shown["job"] == plan.job
    assert json.loads(json.dumps(shown)) == shown


def spark(spec: JobSpec, environment: dict[str, str] | None = None, **engine: str) -> LaunchPlan:
    settings = {name.replace("__", "."): value for name, value in engine.items()}
    changed = replace(spec, workload="spark", engine=settings, environment=environment or {})
    return plan_job(changed, WORKLOADS, IDENTITY)


def test_the_digest_covers_column_keys_and_a_job_without_has_no_such_field(spec: JobSpec) -> None:
    spec = replace(spec, workload="spark", environment={})
    footer, salary = JobKey(name="footer", owner="f" * 64), JobKey(name="salary", owner="f" * 64)
    assert "keys" not in plan_job(spec, WORKLOADS, IDENTITY).document
    both = replace(spec, keys=(salary, footer))
    assert plan_job(both, WORKLOADS, IDENTITY).document["keys"] == [
        {"name": "footer", "owner": "f" * 64, "mode": "ro"},
        {"name": "salary", "owner": "f" * 64, "mode": "ro"},
    ]
    assert job(replace(spec, keys=(footer, salary))) == job(both)
    others = [
        spec,
        replace(spec, keys=(footer,)),
        replace(spec, keys=(footer, replace(salary, mode="rw"))),
        replace(spec, keys=(footer, replace(salary, owner="e" * 64))),
        replace(spec, keys=(footer, replace(salary, name="bonus"))),
    ]
    assert len({job(s) for s in (both, *others)}) == 6


def test_column_keys_are_named_once_and_are_for_spark(spec: JobSpec) -> None:
    twice = replace(spec, workload="spark", environment={}, keys=(JobKey(name="k"), JobKey(name="k", mode="rw")))
    with pytest.raises(InputError, match="column key 'k' is named twice"):
        plan_job(twice, WORKLOADS, IDENTITY)
    with pytest.raises(InputError, match="workload 'python' has no column keys"):
        plan_job(replace(spec, keys=(JobKey(name="k"),)), WORKLOADS, IDENTITY)


def test_the_digest_covers_engine_settings(spec: JobSpec) -> None:
    plain = spark(spec).job
    for change in (
        {"spark__sql__shuffle__partitions": "3"},
        {"spark__master": "local[1]"},
        {"spark__driver__memory": "2g"},
    ):
        assert spark(spec, **change).job != plain
    assert plan_job(replace(spec, workload="spark", environment={}, main_class="A"), WORKLOADS, IDENTITY).job != plain


@pytest.mark.parametrize(
    "name",
    [
        "spark.hadoop.fs.file.impl", "spark.hadoop.fs.hdfs.impl", "spark.hadoop.fs.AbstractFileSystem.file.impl",
        "spark.hadoop.fs.sealed.agent", "spark.hadoop.fs.sealed.writable", "spark.hadoop.fs.sealed.unknown",
        "spark.jars.packages", "spark.jars.repositories", "spark.jars.ivySettings", "spark.driver.extraClassPath",
        "spark.executor.extraClassPath", "spark.local.dir", "spark.eventLog.enabled", "spark.sql.warehouse.dir",
        "spark.hadoop.parquet.crypto.factory.class", "spark.hadoop.parquet.encryption.kms.client.class",
        "spark.hadoop.parquet.encryption.kek.length.bits", "spark.hadoop.parquet.encryption.data.key.length.bits",
    ],
)  # fmt: skip
def test_spark_settings_that_lead_around_the_seal_are_refused_by_name(spec: JobSpec, name: str) -> None:
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        spark(spec, **{name.replace(".", "__"): "/sealed/out"})


@pytest.mark.parametrize(
    "option",
    ["-javaagent:/work/in/a.jar", "-agentpath:/x", "-cp", "--class-path=/x", "-XX:+HeapDumpOnOutOfMemoryError",
     "-XX:HeapDumpPath=/sealed/out", "-XX:OnError=sh", "-Djava.io.tmpdir=/sealed/out", "-Xbootclasspath/a:/x", "@args", "Main"],
)  # fmt: skip
def test_java_options_that_lead_around_the_seal_are_refused_by_name(spec: JobSpec, option: str) -> None:
    with pytest.raises(InputError) as caught:
        spark(spec, spark__driver__extraJavaOptions=f"-Da=b {option}")
    assert option in str(caught.value)
    assert spark(spec, spark__driver__extraJavaOptions="-Da=b -XX:+UseSerialGC").document["command"]


@pytest.mark.parametrize(
    "name", ["SPARK_LOCAL_DIRS", "SPARK_CONF_DIR", "JAVA_TOOL_OPTIONS", "LD_PRELOAD", "PYTHONPATH", "PYSPARK_PYTHON"]
)
def test_spark_environment_that_leads_around_the_seal_is_refused_by_name(spec: JobSpec, name: str) -> None:
    with pytest.raises(InputError, match=name):
        spark(spec, environment={name: "/sealed/out"})


@pytest.mark.parametrize("master", ["yarn", "spark://h:7077", "local-cluster[1,1]", "local[2]x", "k8s://h"])
def test_spark_masters_that_leave_the_enclave_are_refused(spec: JobSpec, master: str) -> None:
    with pytest.raises(InputError, match="master"):
        spark(spec, spark__master=master)


@pytest.mark.parametrize("name", ["python", "spark", "torchrun"])
def test_threads_wait_without_spinning_and_are_as_many_as_the_libraries_say(spec: JobSpec, name: str) -> None:
    engine = {"spark": {"spark.master": "local-cluster[2,1,1024]"}, "torchrun": {"nnodes": "2"}}.get(name, {})
    document = plan_job(replace(spec, workload=name, environment={}, engine=engine), WORKLOADS, IDENTITY).document
    parts = [document, *([document["workers"]] if engine else [])]
    for part in parts:
        said = part["environment"]  # type: ignore[index]
        assert {key: said[key] for key in said if "OMP" in key or "THREADS" in key} == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_executors_are_a_role_in_the_document(spec: JobSpec) -> None:
    here = spark(spec, spark__master="local-cluster[2, 3, 1024]").document
    workers = here["workers"]
    assert isinstance(workers, dict)
    assert (workers["count"], workers["port"]) == (2, 7078)
    assert "-Xmx1024m" in workers["command"]
    assert workers["command"][workers["command"].index("--cores") + 1] == "3"
    assert workers["environment"]["SPARK_LOCAL_IP"] == "{job.address}"
    assert workers["environment"]["GLOO_SOCKET_IFNAME"] == "job0", "executors train together, by TorchDistributor"
    assert "GLOO_SOCKET_IFNAME" not in here["environment"], "the driver trains alone"  # type: ignore[operator]
    there = spark(replace(spec, workers=2), spark__master="spark://any:7077", spark__executor__cores="3",
                  spark__executor__memory="1024m").document  # fmt: skip
    assert there == here, "where the workers run is not what they do"
    assert "workers" not in spark(spec, spark__master="local[2]").document


@pytest.mark.parametrize(
    "setting", ["spark.executor.instances=0", "spark.executor.cores=x", "spark.executor.memory=lots"]
)
def test_executors_that_cannot_be_are_refused_by_name(spec: JobSpec, setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(InputError, match=name):
        spark(replace(spec, workers=2), spark__master="spark://c", **{name.replace(".", "__"): value})


def test_a_cluster_needs_a_key_and_no_other_network(spec: JobSpec) -> None:
    with pytest.raises(InputError, match="needs a key"):
        spark(replace(spec, volumes=(), keys=()), spark__master="local-cluster[2,1,1024]")
    with pytest.raises(InputError, match="--network"):
        spark(replace(spec, sandbox=Sandbox(network=True)), spark__master="local-cluster[2,1,1024]")


def test_secrets_of_sparks_own_protection_stay_out_of_the_document(spec: JobSpec) -> None:
    settings = {"spark__authenticate": "true", "spark__authenticate__secret": "hunter2", "spark__ssl__enabled": "true"}
    assert spark(spec, **settings).document == spark(spec).document


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"]
)
def test_python_environment_that_loads_unmeasured_code_is_refused(spec: JobSpec, name: str) -> None:
    with pytest.raises(InputError, match=name):
        plan_job(replace(spec, environment={name: "/work/in"}), WORKLOADS, IDENTITY)


def test_plans_that_cannot_be_are_refused(spec: JobSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cobol"):
        plan_job(replace(spec, workload="cobol"), WORKLOADS, IDENTITY)
    with pytest.raises(InputError, match="'in' is used twice"):
        plan_job(replace(spec, volumes=spec.volumes * 2), WORKLOADS, IDENTITY)
    with pytest.raises(InputError, match="not readable"):
        plan_job(replace(spec, program=tmp_path / "missing.py"), WORKLOADS, IDENTITY)
    with pytest.raises(InputError, match="no program"):
        plan_job(replace(spec, program=None), WORKLOADS, IDENTITY)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/app.py").write_text("print(3)")
    with pytest.raises(InputError, match=r"two files .* app\.py|'app\.py'"):
        plan_job(replace(spec, files=(tmp_path / "sub/app.py",)), WORKLOADS, IDENTITY)
    with pytest.raises(InputError, match="engine"):
        plan_job(replace(spec, engine={"spark.x": "1"}), WORKLOADS, IDENTITY)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Sandbox(network="false"), "network"),  # type: ignore[arg-type]
        (lambda: Sandbox(scratch_mb=0), "scratch_mb"),
        (lambda: Sandbox(scratch_mb=-1), "scratch_mb"),
        (lambda: Sandbox(scratch_mb=True), "scratch_mb"),
        (lambda: Limits(max_runtime_s=0), "max_runtime_s"),
        (lambda: Limits(max_runtime_s=10**12), "max_runtime_s"),
        (lambda: Limits(max_runtime_s="9"), "max_runtime_s"),  # type: ignore[arg-type]
    ],
)
def test_limits_have_ranges_and_types(make: Callable[[], object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("job = 3", "table"),
        ("[job]\nname = 'x'\nprogramm = 'a.py'", "programm"),
        ("[jobs]", "jobs"),
        ("[job]\narguments = 'abc'", "arguments"),
        ("[job]\narguments = [1]", "arguments"),
        ("[job]\nfiles = 'abc'", "files"),
        ("[job]\nenvironment = ['a']", "environment"),
        ("[job]\npublish_on_failure = 'false'", "publish_on_failure"),
        ("[job]\nprogram = 3", "program"),
        ("[sandbox]\nnetwerk = true", "netwerk"),
        ("[limits]\nruntime = 1", "runtime"),
        ("[[volume]]\nname = 'a'\npasth = 'b'", "pasth"),
        ("volume = 3", "volume"),
        ("volume = [3]", "volume"),
        ("sandbox = 3", "sandbox"),
        ("[job", "TOML"),
        ("\udcff", "TOML"),
    ],
)
def test_a_job_file_with_a_wrong_field_is_refused_by_name(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=word):
        load_spec(path)


def test_T285_a_plan_pins_a_data_set_and_a_kbs_key_once(spec: JobSpec) -> None:
    pinned = replace(
        spec.volumes[0], owner="kbs+https://k/a/b/c", manifest="sha256:" + "1" * 64, epoch=1, certificate="pem"
    )
    for same, changes in {True: {}, False: {"manifest": "sha256:" + "2" * 64}, None: {"certificate": "other"}}.items():
        twice = replace(spec, volumes=(pinned, replace(pinned, name="again", **changes)))  # type: ignore[arg-type]
        with (
            contextlib.nullcontext()
            if same
            else pytest.raises(InputError, match="volumes in and again: expected one pin")
        ):
            job(twice)
