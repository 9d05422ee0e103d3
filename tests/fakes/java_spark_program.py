"""An ordinary PySpark program over a sealed volume, and a host that tampers with it; run by test_java_spark.py.

Runs in a process of its own, since a process has one JVM. `python -m tests.fakes.java_spark_program FOLDER`.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from tests.fakes import java_support
from tests.fakes.java_agent import FakeAgent, FakeVolume, sealed_size

MARKER = "MARKER-b7e2-never-in-the-clear"
CONF = {
    "fs.file.impl": "io.strongroom.hadoop.SealedLocalFileSystem",
    "fs.AbstractFileSystem.file.impl": "io.strongroom.hadoop.SealedFs",
}


def configure(folder: Path, agent: FakeAgent) -> None:
    """Write Spark's and Hadoop's configuration: core-site.xml also reaches code that makes its own Configuration."""
    conf = CONF | {"fs.sealed.agent": str(agent.path), "fs.sealed.writable": f"{folder}/outside,{folder}/local"}
    (folder / "conf").mkdir()
    (folder / "local").mkdir()
    (folder / "outside").mkdir()
    properties = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in conf.items())
    (folder / "conf/core-site.xml").write_text(f"<configuration>{properties}</configuration>")
    lines = [
        f"spark.driver.extraClassPath {java_support.MAIN_JAR}",
        "spark.master local[2]",
        "spark.driver.memory 1g",
        "spark.driver.host 127.0.0.1",
        "spark.ui.enabled false",
        "spark.sql.shuffle.partitions 2",
        f"spark.local.dir {folder}/local",
        f"spark.sql.warehouse.dir {folder}/work/rw/warehouse",
        "spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1",
    ] + [f"spark.hadoop.{k} {v}" for k, v in conf.items()]
    (folder / "conf/spark-defaults.conf").write_text("\n".join(lines) + "\n")
    os.environ["SPARK_CONF_DIR"] = str(folder / "conf")
    os.environ["HADOOP_CONF_DIR"] = str(folder / "conf")
    os.environ["JAVA_HOME"] = str(java_support.java_home(folder / "java"))
    os.environ["PYSPARK_PYTHON"] = sys.executable


def frame(spark: SparkSession, rows: int) -> DataFrame:
    text = f.concat(f.lit(MARKER + " "), f.col("id").cast("string"))
    return spark.range(rows).select(f.col("id"), (f.col("id") % 3).alias("part"), text.alias("text"))


def formats(spark: SparkSession, top: str) -> None:
    data = frame(spark, 2000)
    schema = data.schema
    for name in ("csv", "json", "parquet", "orc"):
        path = f"{top}/{name}"
        data.write.format(name).save(path)
        data.write.format(name).mode("append").save(path)
        read = spark.read.schema(schema).format(name).load(path)
        assert read.count() == 4000, name
        assert read.agg(f.sum("id")).first()[0] == 2 * sum(range(2000)), name
        data.write.format(name).mode("overwrite").save(path)
        assert spark.read.schema(schema).format(name).load(path).filter(f.col("text").contains(MARKER)).count() == 2000
        data.write.format(name).partitionBy("part").save(f"{top}/{name}-parts")
        parts = spark.read.schema(schema).format(name).load(f"{top}/{name}-parts")
        assert parts.filter("part = 1").count() == 667, name
        data.limit(0).write.format(name).save(f"{top}/{name}-empty")
        assert spark.read.schema(schema).format(name).load(f"{top}/{name}-empty").count() == 0
    data.select("text").write.text(f"{top}/text")
    assert spark.read.text(f"{top}/text").filter(f.col("value").startswith(MARKER)).count() == 2000
    data.write.option("compression", "gzip").csv(f"{top}/csv-gz")
    assert spark.read.csv(f"{top}/csv-gz").count() == 2000
    data.write.saveAsTable("sealed_table")
    assert spark.table("sealed_table").count() == 2000


def rdds_and_models(spark: SparkSession, top: str) -> None:
    context = spark.sparkContext
    numbers = context.parallelize(range(1000), 3)
    numbers.map(lambda i: f"{MARKER} {i}").saveAsTextFile(f"{top}/rdd-text")
    assert context.textFile(f"{top}/rdd-text").count() == 1000
    numbers.map(lambda i: {"text": MARKER, "i": i}).saveAsPickleFile(f"{top}/rdd-pickle")
    assert context.pickleFile(f"{top}/rdd-pickle").map(lambda d: d["i"]).sum() == sum(range(1000))
    numbers.map(lambda i: (i, MARKER)).saveAsSequenceFile(f"{top}/rdd-sequence")
    assert context.sequenceFile(f"{top}/rdd-sequence").count() == 1000
    from pyspark.ml import Pipeline, PipelineModel  # needs numpy
    from pyspark.ml.feature import StringIndexer, VectorAssembler

    stages = [StringIndexer(inputCol="text", outputCol="t"), VectorAssembler(inputCols=["id", "t"], outputCol="v")]
    data = frame(spark, 20)
    Pipeline(stages=stages).fit(data).write().overwrite().save(f"{top}/model")
    assert PipelineModel.load(f"{top}/model").transform(data).count() == 20


def streaming(spark: SparkSession, top: str) -> None:
    for batch in (1, 2):  # the second start reads the first one's checkpoint
        frame(spark, 100).select("text").write.mode("append").text(f"{top}/stream-in")
        query = (
            spark.readStream.text(f"{top}/stream-in")
            .writeStream.option("checkpointLocation", f"{top}/checkpoint")
            .trigger(availableNow=True)
            .start(f"{top}/stream-out", format="parquet")
        )
        query.awaitTermination()
        assert spark.read.parquet(f"{top}/stream-out").count() == 100 * batch


def splits(spark: SparkSession, top: str) -> None:
    rows = 300_000
    frame(spark, rows).repartition(1).write.csv(f"{top}/big")
    spark.conf.set("spark.sql.files.maxPartitionBytes", str(777_777))
    data = spark.read.csv(f"{top}/big")
    assert data.rdd.getNumPartitions() > 10, data.rdd.getNumPartitions()
    assert data.count() == rows
    assert data.select(f.sum(f.col("_c0").cast("long"))).first()[0] == sum(range(rows))
    spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert spark.sparkContext.textFile(f"{top}/big", 13).count() == rows


def all_sealed(volume: FakeVolume) -> None:
    files = [p for p in volume.physical.rglob("*") if p.is_file() and ".dataset" not in p.parts]
    assert len(files) > 60, len(files)
    for path in files:
        data = path.read_bytes()
        relative = path.relative_to(volume.physical).as_posix()
        assert data.startswith(b"STRGROOM"), path
        assert MARKER.encode() not in data, path
        assert len(data) == sealed_size(volume.files[relative][0]), path
    assert {p.relative_to(volume.physical).as_posix() for p in files} == set(volume.files)
    assert not volume.open, volume.open
    assert not [p for p in files if p.name.endswith(".crc")]


def refused(action: Callable[[], object], *parts: str) -> None:
    try:
        result = action()
    except Exception as exc:
        message = str(exc)
        assert all(part in message for part in parts), message[:3000]
        return
    raise AssertionError(f"not refused, gave {result}; expected {parts}")


def borders(spark: SparkSession, folder: Path, top: str) -> None:
    data = frame(spark, 10)
    refused(lambda: data.write.csv(f"{folder}/leak"), "AccessControlException", "fs.sealed.writable", "leak")
    assert not (folder / "leak").exists()
    refused(lambda: data.write.csv(f"{folder}/work/ro/leak"), "AccessControlException", "mode ro")
    refused(lambda: data.rdd.saveAsTextFile(f"{folder}/leak2"), "AccessControlException")
    refused(lambda: data.write.csv(f"{top}/.dataset/x"), "AccessControlException")
    data.write.csv(f"{folder}/outside/allowed")
    assert spark.read.csv(f"{folder}/outside/allowed").count() == 10
    jvm = spark._jvm
    assert jvm.org.apache.hadoop.conf.Configuration().get("fs.file.impl") == CONF["fs.file.impl"]
    for key in CONF:
        half = jvm.org.apache.hadoop.conf.Configuration()
        half.unset(key)
        half.set("fs.file.impl.disable.cache", "true")
        start = jvm.io.strongroom.hadoop.SealedLocalFileSystem().initialize
        refused(lambda conf=half, go=start: go(jvm.java.net.URI("file:///"), conf), key)


@contextmanager
def restored(folder: Path, volume: FakeVolume) -> Iterator[None]:
    """Put files and manifest back afterwards."""
    copy = folder.parent / (folder.name + ".copy")
    shutil.copytree(folder, copy)
    files = dict(volume.files)
    yield
    shutil.rmtree(folder)
    copy.rename(folder)
    volume.files = files


def tamperings(folder: Path) -> dict[str, Callable[[list[Path]], str]]:
    """Return what a host may do to the files of a folder; each answers with a name that the refusal must contain."""

    def flip(files: list[Path]) -> str:
        data = bytearray(files[0].read_bytes())
        data[len(data) // 2] ^= 1
        files[0].write_bytes(data)
        return files[0].name

    def cut(files: list[Path]) -> str:
        os.truncate(files[0], 184 + 16_400)
        return files[0].name

    def cut_to_empty(files: list[Path]) -> str:
        os.truncate(files[0], 200)
        return files[0].name

    def nothing(files: list[Path]) -> str:
        os.truncate(files[0], 0)
        return files[0].name

    def swap(files: list[Path]) -> str:
        one, two = files[0].read_bytes(), files[1].read_bytes()
        files[0].write_bytes(two)
        files[1].write_bytes(one)
        return "part-"

    def add(files: list[Path]) -> str:
        shutil.copy(files[0], files[0].with_name("part-99999-added" + files[0].suffix))
        return "part-99999-added"

    def add_folder(files: list[Path]) -> str:
        (files[0].parent / "part=7").mkdir()
        shutil.copy(files[0], files[0].parent / "part=7" / files[0].name)
        return files[0].name

    def drop(files: list[Path]) -> str:
        files[0].unlink()
        return files[0].name

    def plain(files: list[Path]) -> str:
        files[0].write_bytes(b"1,2,3\n" * 10_000)
        return files[0].name

    return {g.__name__: g for g in (flip, cut, cut_to_empty, nothing, swap, add, add_folder, drop, plain)}


def tampering(spark: SparkSession, volume: FakeVolume, top: str) -> None:
    for key in ("ignoreCorruptFiles", "ignoreMissingFiles"):
        spark.conf.set(f"spark.sql.files.{key}", "true")
    schema = frame(spark, 1).schema
    # Parsers of whole files wrap the exceptions of their input, which then pass for malformed text.
    options = {name: {"multiLine": "true"} for name in ("csv-whole", "json-whole")} | {"xml": {"rowTag": "row"}}
    for name in ("csv", "json", "parquet", "orc", "text", "csv-whole", "json-whole", "xml"):
        form = name.removesuffix("-whole")
        data = frame(spark, 3000).repartition(2)
        if name == "json-whole":
            arrays = data.toJSON().glom().map(lambda rows: "[" + ",".join(rows) + "]")
            arrays.saveAsTextFile(f"{top}/tamper-{name}")
        else:
            writer = (data.select("text") if form == "text" else data).write.options(**options.get(name, {}))
            writer.format(form).save(f"{top}/tamper-{name}")
        folder = volume.physical / f"tamper-{name}"

        def read(form: str = form, name: str = name) -> list:
            reader = spark.read.format(form).options(**options.get(name, {}))
            reader = reader if form == "text" else reader.schema(schema)
            text = "value" if form == "text" else "text"
            return reader.load(f"{top}/tamper-{name}").agg(f.count("*"), f.max(f.length(text))).collect()

        good = read()
        assert good[0][0] == 3000, (name, good)
        for kind, tamper in tamperings(folder).items():
            with restored(folder, volume):
                parts = sorted(p for p in folder.rglob("part-*") if p.is_file())
                assert len(parts) == 2
                victim = tamper(parts)
                began = time.monotonic()
                try:
                    refused(read, "SealedIntegrity", victim)
                except AssertionError as exc:
                    raise AssertionError(f"{kind} of {name}") from exc
                assert time.monotonic() - began < 20
            assert read() == good


def main(folder: Path) -> None:
    volumes = []
    for name, mode in (("rw", "rw"), ("ro", "ro")):
        physical = folder / "sealed" / name
        (physical / ".dataset").mkdir(parents=True)
        volumes.append(FakeVolume(name=name, logical=f"{folder}/work/{name}", physical=physical, mode=mode))
    with FakeAgent(folder / "agent.sock", volumes) as agent:
        configure(folder, agent)
        spark = SparkSession.builder.getOrCreate()
        top = volumes[0].logical
        try:
            for step, arguments in (
                (formats, (spark, top)),
                (rdds_and_models, (spark, top)),
                (streaming, (spark, top)),
                (splits, (spark, top)),
                (all_sealed, (volumes[0],)),
                (borders, (spark, folder, top)),
                (tampering, (spark, volumes[0], top)),
            ):
                began = time.monotonic()
                step(*arguments)
                print(f"{step.__name__} {time.monotonic() - began:.1f} s", flush=True)
        finally:
            spark.stop()
    print("ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
