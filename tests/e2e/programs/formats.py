"""Writes and reads the same rows through every format and file API of Spark: plain PySpark.

spark-submit formats.py write FOLDER   writes each case to FOLDER/CASE and reads it
spark-submit formats.py read PATH...   reads each FOLDER/CASE
spark-submit formats.py restart SOURCE PATH...   adds rows to SOURCE, then starts the stream of each checkpoint PATH
Each case that is read is one line of JSON: its rows' count and hash, or the error.
"""

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pyspark import RDD
from pyspark.ml.feature import StringIndexer, StringIndexerModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

MARKER = "marker-7c1d"
SCHEMA = "id long, gross_margin string, text string"
ROWS = 2000
NEW_API = "org.apache.hadoop.mapreduce.lib"
WRITABLES = ("org.apache.hadoop.io.LongWritable", "org.apache.hadoop.io.Text")
SINKS = ("", ".flip", ".cut", ".swap", ".add", ".drop")
THREADS = 6
MOST = 2000
ATTEMPTS = 3

Write = Callable[[SparkSession, str], object]
Read = Callable[[SparkSession, str], Any]
"""Returns a DataFrame, an RDD or rows."""


def frame(spark: SparkSession, rows: int = ROWS) -> DataFrame:
    """Return rows that do not compress well, in two partitions, so that each case has two files of several chunks."""
    number = f.col("id").cast("string")
    text = f.concat(f.lit(MARKER + " "), number).alias("text")
    return spark.range(0, rows, 1, 2).select("id", f.sha2(number, 256).alias("gross_margin"), text)


def lines(spark: SparkSession) -> DataFrame:
    return frame(spark).select(f.concat_ws(" ", "text", "gross_margin").alias("value"))


def of_format(kind: str, rows: Callable[[SparkSession], DataFrame] = frame, **options: object) -> tuple[Write, Read]:
    """Return the case of a DataFrame format."""

    def write(spark: SparkSession, path: str) -> None:
        rows(spark).write.format(kind).options(**options).save(path)

    def read(spark: SparkSession, path: str) -> DataFrame:
        return spark.read.schema(SCHEMA).format(kind).options(**options).load(path)

    return write, read


def with_line_breaks(spark: SparkSession) -> DataFrame:
    return frame(spark).withColumn("text", f.concat("text", f.lit("\nsecond line")))


def write_lines(spark: SparkSession, path: str) -> None:
    lines(spark).write.text(path)


def write_arrays(spark: SparkSession, path: str) -> None:
    frame(spark).toJSON().glom().map(lambda rows: "[" + ",\n".join(rows) + "]").saveAsTextFile(path)


def read_arrays(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.schema(SCHEMA).json(path, multiLine=True)


def read_binary(spark: SparkSession, path: str) -> Iterable[object]:
    return [
        (r.length, hashlib.sha256(r.content).hexdigest()) for r in all_rows(spark.read.format("binaryFile").load(path))
    ]


# --- RDDs


def write_sequence(spark: SparkSession, path: str) -> None:
    frame(spark).rdd.map(lambda row: (row.id, row.gross_margin + row.text)).saveAsSequenceFile(path)


def write_new_api(spark: SparkSession, path: str) -> None:
    pairs = frame(spark).rdd.map(lambda row: (row.id, row.gross_margin + row.text))
    pairs.saveAsNewAPIHadoopFile(path, f"{NEW_API}.output.TextOutputFormat", *WRITABLES)


def read_new_api(spark: SparkSession, path: str) -> RDD:
    return spark.sparkContext.newAPIHadoopFile(path, f"{NEW_API}.input.TextInputFormat", *WRITABLES).values()


def write_rdd_checkpoint(spark: SparkSession, path: str) -> None:
    spark.sparkContext.setCheckpointDir(path)
    rdd = lines(spark).rdd.map(tuple)
    rdd.checkpoint()
    rdd.count()


def read_rdd_checkpoint(spark: SparkSession, path: str) -> RDD:
    (found,) = file_system(spark, path).globStatus(hadoop_path(spark, f"{path}/*/rdd-*"))
    context = spark.sparkContext
    return context._checkpointFile(found.getPath().toString(), context.serializer)


# --- models and tables


def write_model(spark: SparkSession, path: str) -> None:
    indexer = StringIndexer(inputCol="gross_margin", outputCol="n", stringOrderType="alphabetAsc")
    indexer.fit(frame(spark)).write().overwrite().save(path)


def name_of(path: str) -> str:
    return re.sub(r"\W", "_", path)


def write_managed_table(spark: SparkSession, path: str) -> None:
    name = name_of(path)
    spark.sql(f"CREATE DATABASE {name} LOCATION '{path}'")
    frame(spark).where("id < 1000").write.saveAsTable(f"{name}.sales")
    frame(spark).createOrReplaceTempView("more")
    spark.sql(f"INSERT INTO {name}.sales SELECT * FROM more WHERE id >= 1000")


def read_managed_table(spark: SparkSession, path: str) -> DataFrame:
    spark.sql(f"CREATE TABLE {name_of(path)}_read USING parquet LOCATION '{path}/sales'")
    return spark.table(f"{name_of(path)}_read")


def write_bucketed_table(spark: SparkSession, path: str) -> None:
    name = name_of(path)
    frame(spark).where("id < 1000").write.bucketBy(2, "id").sortBy("id").option("path", path).saveAsTable(name)
    frame(spark).where("id >= 1000").write.insertInto(name)


def read_bucketed_table(spark: SparkSession, path: str) -> DataFrame:
    buckets = "CLUSTERED BY (id) SORTED BY (id) INTO 2 BUCKETS"
    spark.sql(f"CREATE TABLE {name_of(path)}_read ({SCHEMA}) USING parquet {buckets} LOCATION '{path}'")
    return spark.table(f"{name_of(path)}_read")


# --- Structured Streaming


def scratch() -> str:
    """Return a new folder outside of FOLDER."""
    return tempfile.mkdtemp()


def write_stream_sinks(spark: SparkSession, path: str) -> None:
    """Write the same sink several times: its log holds whole paths, so that a copy elsewhere is no sink."""
    source = scratch() + "/in"
    lines(spark).write.text(source)
    for copy in SINKS:
        stream = spark.readStream.text(source).writeStream.format("parquet").option("checkpointLocation", scratch())
        stream.trigger(availableNow=True).start(path + copy).awaitTermination()


def read_stream_source(spark: SparkSession, path: str) -> DataFrame:
    name = name_of(path)
    stream = spark.readStream.text(path).writeStream.format("memory").queryName(name)
    stream.option("checkpointLocation", scratch()).trigger(availableNow=True).start().awaitTermination()
    return spark.table(name)


def restart(spark: SparkSession, source: str, path: str) -> DataFrame:
    """Go on from the checkpoint at `path`, which may be a new one, and return all counts."""
    session = spark.newSession()
    session.conf.set("spark.sql.shuffle.partitions", "1")
    counts = session.readStream.text(source).groupBy("value").count()
    stream = counts.writeStream.format("memory").queryName(name_of(path)).outputMode("complete")
    stream.option("checkpointLocation", path).trigger(availableNow=True).start().awaitTermination()
    return session.table(name_of(path))


def state_of(provider: str) -> tuple[Write, Read]:
    """Return the case of a streaming aggregation's checkpoint, whose state is read by Spark's `statestore` source."""
    names = "org.apache.spark.sql.execution.streaming.state"

    def write(spark: SparkSession, path: str) -> None:
        session = spark.newSession()
        session.conf.set("spark.sql.streaming.stateStore.providerClass", f"{names}.{provider}")
        source = scratch() + "/in"
        for _ in range(2):  # the second start goes on from the first one's checkpoint
            lines(session).write.mode("append").text(source)
            counts = session.readStream.text(source).groupBy("value").count()
            stream = counts.writeStream.format("noop").outputMode("update").option("checkpointLocation", path)
            stream.trigger(availableNow=True).start().awaitTermination()

    def read(spark: SparkSession, path: str) -> DataFrame:
        return spark.read.format("statestore").load(path).selectExpr("key.value", "value.count")

    return write, read


# --- Hadoop's file APIs


def hadoop_path(spark: SparkSession, path: str) -> object:
    return spark._jvm.org.apache.hadoop.fs.Path(path)


def file_system(spark: SparkSession, path: str) -> object:
    return hadoop_path(spark, path).getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())


def sample(number: int) -> bytes:
    return b"".join(f"{MARKER} {number} {i} {hashlib.sha256(b'%d' % i).hexdigest()}\n".encode() for i in range(ROWS))


def read_all(spark: SparkSession, stream: object) -> bytes:
    try:
        return bytes(spark._jvm.org.apache.commons.io.IOUtils.toByteArray(stream))
    finally:
        stream.close()


def write_file_context(spark: SparkSession, path: str) -> None:
    fs = spark._jvm.org.apache.hadoop.fs
    context = fs.FileContext.getFileContext(spark.sparkContext._jsc.hadoopConfiguration())
    options = spark.sparkContext._gateway.new_array(fs.Options.CreateOpts, 1)
    options[0] = fs.Options.CreateOpts.createParent()
    for number in (1, 2):
        flags = spark._jvm.java.util.EnumSet.of(fs.CreateFlag.CREATE)
        out = context.create(fs.Path(f"{path}/{number}"), flags, options)
        out.write(sample(number))
        out.close()


def read_file_context(spark: SparkSession, path: str) -> Iterable[object]:
    context = spark._jvm.org.apache.hadoop.fs.FileContext.getFileContext(spark.sparkContext._jsc.hadoopConfiguration())
    found = context.util().listStatus(hadoop_path(spark, path))
    return [read_all(spark, context.open(status.getPath())) for status in found]


def write_files(spark: SparkSession, path: str) -> None:
    for number in (1, 2):
        out = file_system(spark, path).create(hadoop_path(spark, f"{path}/{number}"), False)
        out.write(sample(number))
        out.close()


def read_positioned(spark: SparkSession, path: str) -> Iterable[object]:
    """Read eight bytes at every 1000th position of each file, backwards."""
    found = []
    for status in file_system(spark, path).listStatus(hadoop_path(spark, path)):
        stream = file_system(spark, path).open(status.getPath())
        try:
            for at in range(status.getLen() - 8, -1, -1000):
                stream.seek(at)
                found.append((at, stream.readLong()))
        finally:
            stream.close()
    return found


def read_vectored(spark: SparkSession, path: str) -> Iterable[object]:
    """Read each file in ranges of 10,000 bytes, all asked for at once."""
    java = spark._jvm.java
    buffers, handles = java.lang.Class.forName("java.nio.ByteBuffer"), java.lang.invoke.MethodHandles.publicLookup()
    kind = java.lang.invoke.MethodType.methodType(buffers, java.lang.Integer.TYPE)
    allocate = java.lang.invoke.MethodHandleProxies.asInterfaceInstance(
        java.lang.Class.forName("java.util.function.IntFunction"), handles.findStatic(buffers, "allocate", kind)
    )
    found = []
    for status in file_system(spark, path).listStatus(hadoop_path(spark, path)):
        ranges, size = java.util.ArrayList(), status.getLen()
        for at in range(0, size, 10_000):
            ranges.add(spark._jvm.org.apache.hadoop.fs.FileRange.createFileRange(at, min(10_000, size - at)))
        stream = file_system(spark, path).open(status.getPath())
        try:
            stream.readVectored(ranges, allocate)
            # A range's buffer may be part of a larger one.
            found += [
                java.nio.charset.StandardCharsets.ISO_8859_1.decode(part.getData().get()).toString() for part in ranges
            ]
        finally:
            stream.close()
    return found


def write_renamed(spark: SparkSession, path: str) -> None:
    lines(spark).write.text(f"{path}.new")
    fs = file_system(spark, path)
    assert fs.rename(hadoop_path(spark, f"{path}.new"), hadoop_path(spark, path))
    for number, status in enumerate(fs.globStatus(hadoop_path(spark, f"{path}/part-*"))):
        assert fs.rename(status.getPath(), hadoop_path(spark, f"{path}/renamed-{number}"))


def read_lines(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.text(path)


def write_big(spark: SparkSession, path: str) -> None:
    frame(spark, 20 * ROWS).write.csv(path)


def read_big(spark: SparkSession, path: str) -> DataFrame:
    session = spark.newSession()
    session.conf.set("spark.sql.files.maxPartitionBytes", "100000")
    rows = session.read.schema(SCHEMA).csv(path)
    assert rows.rdd.getNumPartitions() > 20
    return rows


CASES: dict[str, tuple[Write, Read]] = {
    "csv": of_format("csv"),
    "csv-multi-line": of_format("csv", with_line_breaks, multiLine=True),
    "csv-gzip": of_format("csv", compression="gzip"),
    "csv-bzip2": of_format("csv", compression="bzip2"),
    "json": of_format("json"),
    "json-multi-line": (write_arrays, read_arrays),
    "xml": of_format("xml", rowTag="row"),
    "text": (write_lines, read_lines),
    "parquet": of_format("parquet"),
    "orc": of_format("orc"),
    "binary-file": (write_lines, read_binary),
    "big-file-split": (write_big, read_big),
    "committer-v1": of_format("csv", **{"mapreduce.fileoutputcommitter.algorithm.version": "1"}),
    "committer-v2": of_format("csv", **{"mapreduce.fileoutputcommitter.algorithm.version": "2"}),
    "rename": (write_renamed, read_lines),
    "rdd-text-file": (
        lambda spark, path: lines(spark).rdd.map(lambda row: row.value).saveAsTextFile(path),
        lambda spark, path: spark.sparkContext.textFile(path),
    ),
    "rdd-pickle-file": (
        lambda spark, path: lines(spark).rdd.map(tuple).saveAsPickleFile(path),
        lambda spark, path: spark.sparkContext.pickleFile(path),
    ),
    "rdd-sequence-file": (write_sequence, lambda spark, path: spark.sparkContext.sequenceFile(path)),
    "rdd-whole-text-files": (
        lambda spark, path: lines(spark).rdd.map(lambda row: row.value).saveAsTextFile(path),
        lambda spark, path: spark.sparkContext.wholeTextFiles(path).values(),
    ),
    "rdd-new-hadoop-api": (write_new_api, read_new_api),
    "rdd-checkpoint": (write_rdd_checkpoint, read_rdd_checkpoint),
    "ml-model": (write_model, lambda spark, path: StringIndexerModel.load(path).labels),
    "table-managed": (write_managed_table, read_managed_table),
    "table-bucketed": (write_bucketed_table, read_bucketed_table),
    "stream-file-sink": (write_stream_sinks, lambda spark, path: spark.read.parquet(path)),
    "stream-file-source": (
        lambda spark, path: lines(spark).rdd.map(lambda row: row.value).saveAsTextFile(path),
        read_stream_source,
    ),
    "stream-state-hdfs": state_of("HDFSBackedStateStoreProvider"),
    "stream-state-rocksdb": state_of("RocksDBStateStoreProvider"),
    "hadoop-file-context": (write_file_context, read_file_context),
    "hadoop-positioned-read": (write_files, read_positioned),
    "hadoop-vectored-read": (write_files, read_vectored),
}


def write(spark: SparkSession, path: str) -> None:
    """Write the case at `path` anew."""
    file_system(spark, path).delete(hadoop_path(spark, path), True)
    CASES[PurePosixPath(path).name][0](spark, path)


def all_rows(found: Any) -> Iterable[object]:
    """Return the rows of what a case gives: themselves, or in a DataFrame or RDD.

    `collect` takes the end of a broken connection to the JVM for the last row (BatchedSerializer.load_stream), which
    was seen once under load, in plain Spark.
    """
    if not hasattr(found, "collect"):
        return found
    rows = found.collect()
    for _ in range(ATTEMPTS):
        if len(rows) == found.count():
            return rows
        rows = found.collect()
    raise AssertionError(f"PySpark lost rows on their way: {len(rows)} of {found.count()}")


def outcome(path: str, read: Callable[[], Any]) -> dict[str, object]:
    """Return what reading the case at `path` gives: the count and hash of its rows, or the lines of the error."""
    place, name = PurePosixPath(path).parts[-2:]
    found: dict[str, object] = {"path": f"{place}/{name}"}
    try:
        rows = sorted(repr(row) for row in all_rows(read()))
    except Exception as exc:
        return found | {"error": type(exc).__name__, "said": list(causes(exc))}
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return found | {"count": len(rows), "hash": digest[:16]}


def causes(error: Exception) -> Iterator[str]:
    """Yield what an error and its causes in the JVM say."""
    yield str(error)[:MOST]
    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while cause is not None:
        yield cause.toString()[:MOST]
        cause = cause.getCause()


def main(mode: str, *paths: str) -> None:
    spark = SparkSession.builder.appName("formats").getOrCreate()
    with ThreadPoolExecutor(THREADS) as pool:
        if mode == "write":
            (folder,) = paths
            paths = tuple(f"{folder}/{case}" for case in CASES)
            list(pool.map(lambda path: write(spark, path), paths))
        if mode == "restart":
            source, *paths = paths
            lines(spark).write.mode("append").text(source)
            work = [partial(restart, spark, source, path) for path in paths]
        else:
            work = [partial(CASES[PurePosixPath(path).name.partition(".")[0]][1], spark, path) for path in paths]
        for found in pool.map(outcome, paths, work):
            print(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
