#!/bin/sh
# Builds the jar that JVM engines load; the same sources and javac give the same bytes.
#
#   java/build.sh PYSPARK_JARS_DIR OUT.jar [JAVAC]           build
#   java/build.sh --check PYSPARK_JARS_DIR OUT.jar [JAVAC]   fail if OUT.jar is not what a build gives
#
# SOURCES=test builds the checks of tests/integration/test_java_*.py instead, against OUT of the main build in MAIN_JAR.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
check=0
if [ "${1:-}" = "--check" ]; then
    check=1
    shift
fi
if [ $# -lt 2 ]; then
    sed -n '2,8p' "$0" >&2
    exit 1
fi
jars=$1
out=$2
javac=${3:-javac}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/classes"

classpath="$jars/hadoop-client-api-*.jar"
classpath=$(ls $classpath):$(ls "$jars"/hadoop-client-runtime-*.jar):$(ls "$jars"/slf4j-api-*.jar)
classpath=$classpath:$(ls "$jars"/parquet-hadoop-*.jar):$(ls "$jars"/parquet-common-*.jar)
classpath=$classpath:$(ls "$jars"/spark-core_*.jar):$(ls "$jars"/spark-common-utils_*.jar):$(ls "$jars"/scala-library-*.jar)
# -classfile: Hadoop's jar lacks the annotations that its own classes name. -g:source,lines: no host paths, no locals.
find "$here/${SOURCES:-src}" -name '*.java' | LC_ALL=C sort > "$work/sources"
"$javac" --release 17 -proc:none -Xlint:all,-options,-classfile,-path -Werror -encoding UTF-8 -g:source,lines \
    -cp "$classpath${MAIN_JAR:+:$MAIN_JAR}" -d "$work/classes" @"$work/sources"

python3 - "$work/classes" "$work/out.jar" "$here/${SOURCES:-src}/services" <<'PY'
import sys, zipfile
from pathlib import Path

root, out = Path(sys.argv[1]), sys.argv[2]
entries = {"META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\r\nCreated-By: Strongroom\r\n\r\n"}
entries |= {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.class"))}
services = Path(sys.argv[3])
entries |= {f"META-INF/services/{p.name}": p.read_bytes() for p in sorted(services.glob("*"))}
# Stored, not deflated: the bytes must not depend on the version of zlib.
with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as jar:
    for name, data in entries.items():
        info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
        info.create_system = 3
        info.external_attr = 0o100644 << 16
        jar.writestr(info, data)
PY

if [ "$check" = 1 ]; then
    cmp "$work/out.jar" "$out" || { echo "$out is not what java/build.sh gives: build and commit it again" >&2; exit 1; }
else
    mkdir -p "$(dirname "$out")"
    cp "$work/out.jar" "$out"
fi
