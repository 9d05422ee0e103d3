"""A shuffle between executors, read from and written to sealed Parquet: plain PySpark.

spark-submit neighbours.py INPUT_FOLDER OUTPUT_FOLDER
"""

import os
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as f


def seen_by_task(_part):
    """Return where a task runs, and every variable there that looks like a secret."""
    secrets = sorted(name for name in os.environ if "SECRET" in name or "PASSWORD" in name)
    yield os.environ.get("SPARK_LOCAL_IP"), tuple(secrets)


def main(source: str, target: str) -> None:
    spark = SparkSession.builder.appName("neighbours").getOrCreate()
    table = spark.read.csv(source, header=True, inferSchema=True).repartition(8)
    marked = table.withColumn("text", f.concat(f.lit("marker-in-the-shuffle-"), f.col("timestamp")))
    days = marked.groupBy(f.to_date("timestamp").alias("day")).agg(f.sum("value"), f.max("text").alias("last"))
    days.write.mode("overwrite").parquet(f"{target}/days")
    again = spark.read.parquet(f"{target}/days")
    print("days", again.count(), again.agg(f.max("last"), f.sum("sum(value)")).first())
    tasks = spark.sparkContext.parallelize(range(64), 64).mapPartitions(seen_by_task).collect()
    print("where", sorted({address for address, _ in tasks}))
    print("secrets", sorted({name for _, names in tasks for name in names}))
    spark.stop()


main(*sys.argv[1:])
