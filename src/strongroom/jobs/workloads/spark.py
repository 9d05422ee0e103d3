"""Workload `spark`: a Spark program, started by Spark's own SparkSubmit in the enclave's JVM.

The sealed FileSystem (java/) is `file:` for the program: /work/<volume> is sealed, the rest of /work and /tmp is
enclave memory, everything else is read-only. Settings that would take data around it are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.errors import InputError
from strongroom.jobs.plan import Command, Worker
from strongroom.jobs.runtime_env import PYTHON
from strongroom.jobs.spec import JobSpec
from strongroom.jobs.workloads.python import FIXED_ENVIRONMENT, JOB_INTERFACE, LIBRARY, LOADERS

__all__ = ["AGENT_SOCKET", "PROTECTION", "SparkWorkload"]

AGENT_SOCKET = "/run/strongroom/agent.sock"
_SPARK_HOME = f"/opt/env/lib/{PYTHON}/site-packages/pyspark"
_JAR = "/opt/strongroom/strongroom-spark.jar"
_CONF = "/opt/strongroom/conf"
_CLASS_PATH = f"{_CONF}:{_JAR}:{_SPARK_HOME}/jars/*"

# What Spark's launcher passes on JDK 17 and later (org.apache.spark.launcher.JavaModuleOptions of 4.3), without the
# incubating vector module, which the JDK from PyPI does not have.
_OPENED = (
    "java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util",
    "java.util.concurrent", "java.util.concurrent.atomic", "jdk.internal.ref", "sun.nio.ch", "sun.nio.cs",
    "sun.security.action", "sun.util.calendar",
)  # fmt: skip
_JAVA_OPTIONS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
    "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.allocator.type=pooled",
    "-XX:-UsePerfData",
)

SETTINGS = {
    "spark.hadoop.fs.file.impl": "io.strongroom.hadoop.SealedLocalFileSystem",
    "spark.hadoop.fs.AbstractFileSystem.file.impl": "io.strongroom.hadoop.SealedFs",
    "spark.hadoop.fs.sealed.agent": AGENT_SOCKET,
    "spark.hadoop.fs.sealed.writable": "/work,/tmp",
    "spark.hadoop.parquet.crypto.factory.class": "org.apache.parquet.crypto.keytools.PropertiesDrivenCryptoFactory",
    "spark.hadoop.parquet.encryption.kms.client.class": "io.strongroom.hadoop.ColumnKeys",
    "spark.hadoop.parquet.encryption.data.key.length.bits": "256",
    "spark.hadoop.parquet.encryption.kek.length.bits": "256",
    "spark.local.dir": "/tmp/spark",
    "spark.sql.warehouse.dir": "file:/work/spark-warehouse",
    "spark.python.unix.domain.socket.enabled": "true",
    "spark.python.unix.domain.socket.dir": "/tmp",
    "spark.ui.enabled": "false",
    "spark.eventLog.enabled": "false",
    "spark.driver.host": "localhost",
    "spark.driver.bindAddress": "127.0.0.1",
}
"""Always set. A job that sets one of them to another value is refused."""

_DRIVER_ADDRESS = "10.77.0.1"
_DRIVER_PORT = 7078
_AMONG_PEERS = {
    "spark.driver.host": _DRIVER_ADDRESS,
    "spark.driver.bindAddress": _DRIVER_ADDRESS,
    "spark.driver.port": str(_DRIVER_PORT),
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
}
"""For a job on several machines: the addresses are those of its own network (guest/tunnel.py)."""

_OVER_A_WIRE = {
    "spark.authenticate": "true",  # by a secret that Spark makes itself for a job in one JVM
    "spark.network.crypto.enabled": "true",
    "spark.network.crypto.cipher": "AES/GCM/NoPadding",
}
"""For a LibOS, whose loopback is the host's: large results of tasks take it even in one JVM."""

PROTECTION = (
    ("what lies below /work/<volume>", "yes", "sealed file system for every format; tampering stops the job"),
    ("paths outside volumes", "yes", "writes go to enclave memory (/work, /tmp) or are refused"),
    (
        "shuffle, spill, cache, state stores, Derby",
        "yes",
        "enclave memory, spark.local.dir=/tmp/spark; bounded by --scratch-mb",
    ),
    ("a job that fails or dies", "yes", "undone to the last commit; a stream to its last batch"),
    ("values in folder names (partitionBy)", "yes", "refused, unless the job shows them: --volume ...:rw:names"),
    ("names and sizes of sealed files", "no", "visible to the host"),
    ("columns, against readers of the same data set", "on request", "--column-key and Parquet's own options"),
    ("data between Python and the JVM", "yes", "Unix sockets in enclave memory"),
    (
        "control between Python and the JVM (Py4J)",
        "partly",
        "TCP with a token; own loopback, the host's with --network",
    ),
    ("RPC, shuffle, XGBoost's and torch's own sockets between machines", "yes", "the job's network: mutual TLS 1.3"),
    ("who may be a machine of the job", "yes", "attested enclaves of the same job; no secret that could leak"),
    ("web UI, event log, metrics", "off", "spark.ui.enabled and spark.eventLog.enabled are refused"),
    ("code from elsewhere", "yes", "--jars, --py-files, --files are measured; packages and class paths are refused"),
)
"""What `doctor --spark` prints: what, whether it is protected, and by what."""

_WITHOUT_EFFECT = re.compile(
    r"spark\.(authenticate(\..*)?|ssl\..*|network\.(crypto|sasl)\..*|dynamicAllocation\..*|shuffle\.service\..*)"
)
"""Taken out. What existing jobs protect their wires with is not needed, and a secret must not get into the document."""

_JAVA_VARIABLES = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "SPARK_DIST_CLASSPATH"}
_LOADING = LOADERS | _JAVA_VARIABLES | {"PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_DIRS"}

_REFUSED = (
    (re.compile(r"spark\.hadoop\.fs\..*\.impl"), "it replaces the sealed file system"),
    (re.compile(r"spark\.hadoop\.fs\.sealed\..*"), "it changes which paths are sealed"),
    (
        re.compile(r"spark\.(jars\.)?packages|spark\.jars\.(repositories|ivy.*)"),
        "it fetches unmeasured code at run time",
    ),
    (re.compile(r"spark\.pyspark\.(driver\.)?python"), "it starts Python past what confines it"),
    (re.compile(r"spark\.metrics\.conf.*"), "it writes files and opens ports past the sealed file system"),
    (
        re.compile(rf"spark\.executorEnv\.({'|'.join(sorted(_LOADING))})"),
        "it loads code that was not measured, or replaces a variable of the enclave",
    ),
    (re.compile(r"spark\.archives|spark\.(driver|executor)\.extraLibraryPath"), "it names files outside the enclave"),
    (
        re.compile(r"spark\.driver\.extraClassPath|spark\.executor\.extraClassPath"),
        "name jars with --jars, so that they are measured",
    ),
)


_JAVA_REFUSED = re.compile(
    r"-(javaagent|agentlib|agentpath|cp|classpath|-class-path|-module-path|-patch-module|jar|Xbootclasspath)"
    r"|-XX:(\+HeapDump|HeapDump|ErrorFile|Flags|VMOptionsFile|OnError|OnOutOfMemoryError|LogFile|SharedArchiveFile"
    r"|FlightRecorder|StartFlightRecording|ArchiveClassesAtExit)|-Djava\.(io\.tmpdir|class\.path|library\.path)"
    r"|-Dspark\.|-Xlog"
)


class SparkWorkload:
    """Runs a PySpark program or a jar: in one JVM, or as a driver with executors in enclaves of their own."""

    def command(self, spec: JobSpec) -> Command:
        """Return the JVM's command line."""
        if spec.program is None:
            raise InputError("the job names no program", hint="a .py file or a jar")
        settings = {n: v for n, v in spec.engine.items() if not _WITHOUT_EFFECT.fullmatch(n)}
        executors = _executors(settings, spec.workers)
        master = settings.pop("spark.master", "local[*]")
        if settings.pop("spark.submit.deployMode", "client") != "client":
            raise InputError("deploy mode cluster is not available yet: the driver runs inside this enclave")
        _refuse(settings)
        memory = _memory("spark.driver.memory", settings.pop("spark.driver.memory", "1g"))
        java_options = settings.pop("spark.driver.extraJavaOptions", "").split()
        _refuse_java(java_options)
        _refuse_environment(spec.environment)
        always = SETTINGS | _OVER_A_WIRE if spec.libos else dict(SETTINGS)
        python = spec.program.suffix == ".py"
        environment = {**FIXED_ENVIRONMENT, **_ENVIRONMENT, **(LIBRARY if python else {}), **spec.environment}
        java_options = [*_JAVA_OPTIONS, *(_fixed_cores(master) if spec.libos else ()), *java_options]
        worker = None
        if executors is not None:
            worker = _worker(executors, settings.pop("spark.executor.extraJavaOptions", "").split(), environment)
            master = f"spark-enclaves[{executors.count}]"
            always |= _AMONG_PEERS
            environment["SPARK_LOCAL_IP"] = _DRIVER_ADDRESS
        argv = ["/opt/jdk/bin/java", f"-Xmx{memory}", *java_options]
        argv += ["-cp", _CLASS_PATH, "org.apache.spark.deploy.SparkSubmit", "--master", master]
        for name, value in sorted({**settings, **always}.items()):
            argv += ["--conf", f"{name}={value}"]
        argv += ["--class", spec.main_class] if spec.main_class else []
        argv += [f"/app/{spec.program.name}"]
        return Command(
            argv=tuple(argv),
            environment=environment,
            runtimes=("base", "python", "guest", "env", "jdk", *(("library",) if python else ())),
            staged=False,
            worker=worker,
        )


def _fixed_cores(master: str) -> tuple[str, ...]:
    cores = re.fullmatch(r"local(?:\[([1-9]\d*)(?:,\s*\d+)?\])?", master)
    if cores is None:
        raise InputError(
            f"spark.master: expected local[N], got {master}: an SGX enclave's threads are fixed when it is built"
        )
    return (f"-XX:ActiveProcessorCount={cores[1] or 1}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Executors:
    count: int
    cores: int
    memory: str


def _executors(settings: dict[str, str], machines: int) -> _Executors | None:
    # Takes the settings that say how many; None for a job in one JVM.
    master = settings.get("spark.master", "local[*]")
    if not machines and re.fullmatch(r"local(\[(\d+|\*)(,\s*\d+)?\])?", master):
        return None
    count, cores, memory = settings.pop("spark.executor.instances", ""), "", ""
    settings.pop("spark.master", None)
    own = re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]", master)
    if own and not machines:
        count, cores, memory = own[1], own[2], f"{own[3]}m"
    elif not machines or not re.fullmatch(r"spark://.+|local-cluster.*|local.*", master):
        raise InputError(
            f"master {master!r} is not available: expected local[N], local-cluster[N,cores,MiB] or spark://...",
            hint="spark://... runs on this workspace's cluster: `strongroom cluster deploy --hosts hosts.txt`",
        )
    cores = settings.pop("spark.executor.cores", "") or cores or "1"
    wanted = settings.pop("spark.executor.memory", "") or memory or "1g"
    count = count or str(machines)
    for name, value in (("spark.executor.instances", count), ("spark.executor.cores", cores)):
        if not re.fullmatch(r"[1-9]\d{0,2}", value) or int(value) > 250:
            raise InputError(f"{name} is {value!r}, expected a number from 1 to 250")
    return _Executors(count=int(count), cores=int(cores), memory=_memory("spark.executor.memory", wanted))


def _memory(name: str, text: str) -> str:
    if not re.fullmatch(r"\d+[kmgtKMGT]b?", text):
        raise InputError(f"{name} is {text!r}, expected a size such as 2g")
    return text.rstrip("bB")


def _worker(executors: _Executors, java_options: list[str], environment: Mapping[str, str]) -> Worker:
    _refuse_java(java_options)
    argv = ["/opt/jdk/bin/java", f"-Xmx{executors.memory}", *_JAVA_OPTIONS, *java_options, "-cp", _CLASS_PATH]
    argv += ["org.apache.spark.executor.CoarseGrainedExecutorBackend"]
    argv += ["--driver-url", f"spark://CoarseGrainedScheduler@{_DRIVER_ADDRESS}:{_DRIVER_PORT}"]
    argv += ["--executor-id", "{job.number}", "--hostname", "{job.address}", "--cores", str(executors.cores)]
    argv += ["--app-id", "strongroom", "--resourceProfileId", "0"]
    return Worker(
        count=executors.count,
        argv=tuple(argv),
        environment={**environment, **JOB_INTERFACE, "SPARK_LOCAL_IP": "{job.address}"},
        port=_DRIVER_PORT,
    )


_ENVIRONMENT = {
    "JAVA_HOME": "/opt/jdk",
    "PYSPARK_DRIVER_PYTHON": "/strongroom/guest/bin/python3",
    "PYSPARK_PYTHON": "/strongroom/guest/bin/python3",
    "PYTHONHASHSEED": "0",
    "SPARK_CONF_DIR": _CONF,
    "SPARK_HOME": _SPARK_HOME,
    "SPARK_LOCAL_DIRS": "/tmp/spark",  # enclave memory
    "SPARK_LOCAL_IP": "127.0.0.1",
}


def _refuse(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        if name in SETTINGS and value != SETTINGS[name]:
            raise InputError(f"setting {name}={value} is refused: the enclave needs {SETTINGS[name]}")
        for pattern, reason in _REFUSED:
            if pattern.fullmatch(name) and name not in SETTINGS:
                raise InputError(f"setting {name} is refused: {reason}")


def _refuse_java(options: list[str]) -> None:
    for option in options:
        if not option.startswith("-") or _JAVA_REFUSED.match(option):
            raise InputError(
                f"Java option {option} is refused: it loads code or writes files past the sealed file system"
            )


def _refuse_environment(environment: Mapping[str, str]) -> None:
    refused = sorted(set(environment) & (set(_ENVIRONMENT) | LOADERS | _JAVA_VARIABLES))
    if refused:
        raise InputError(f"environment variable {refused[0]} is refused: it is the enclave's, or loads unmeasured code")
