"""Taxi passengers by hour, read from and written to csv, json, text, Parquet and ORC: plain PySpark.

spark-submit taxi_report.py INPUT_FOLDER OUTPUT_FOLDER
"""

import functools
import sys

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

SCHEMA = StructType([StructField("timestamp", StringType()), StructField("value", IntegerType())])
FORMATS = ("csv", "json", "orc", "parquet", "text")


def read(spark: SparkSession, kind: str, path: str) -> DataFrame:
    if kind == "text":
        words = f.split(f.col("value"), " = ")
        return spark.read.text(path).select(words[0].alias("timestamp"), words[1].cast("int").alias("value"))
    return spark.read.schema(SCHEMA).format(kind).options(header=True).load(path)


def by_hour(table: DataFrame) -> DataFrame:
    hour = f.hour(f.to_timestamp("timestamp")).alias("hour")
    return table.groupBy(hour).agg(f.count("*").alias("rows"), f.sum("value").alias("passengers"), f.max("value"))


def main(source: str, target: str) -> None:
    spark = SparkSession.builder.appName("taxi-report").getOrCreate()
    answers = {}
    for kind in FORMATS:
        table = read(spark, kind, f"{source}/taxi.{kind}")
        answers[kind] = sorted(tuple(row) for row in by_hour(table).collect())
        january = table.where("timestamp >= '2015-01-01'").coalesce(1)
        if kind == "text":
            january = january.select(f.concat_ws(" = ", "timestamp", "value").alias("value"))
        january.write.mode("overwrite").format(kind).options(header=True).save(f"{target}/{kind}")
    assert all(answer == answers["csv"] for answer in answers.values())
    for row in answers["csv"]:
        print(*row)
    written = [read(spark, kind, f"{target}/{kind}").withColumn("kind", f.lit(kind)) for kind in FORMATS]
    together = functools.reduce(DataFrame.unionByName, written).groupBy("kind").agg(f.count("*"), f.sum("value"))
    for row in sorted(together.collect()):
        print(*row)
    peaks = written[-1].rdd.map(lambda row: (row.timestamp[:10], row.value))
    for day, most in sorted(peaks.reduceByKey(max).collect()):
        print(day, most)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
