"""A plain PySpark profile of any csv or Parquet table: rows, and per column nulls, distinct values, least and most.

spark-submit profile_table.py TABLE TARGET
"""

import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as f


def main(table: str, target: str) -> None:
    spark = SparkSession.builder.appName("profile").getOrCreate()
    reader = spark.read
    data = (
        reader.parquet(table)
        if table.rstrip("/").endswith("parquet")
        else reader.csv(table, header=True, inferSchema=True)
    )
    columns = [
        data.select(
            f.lit(name).alias("column"),
            f.count(f.lit(1)).alias("rows"),
            f.sum(f.col(f"`{name}`").isNull().cast("long")).alias("nulls"),
            f.approx_count_distinct(f.col(f"`{name}`")).alias("distinct"),
            f.min(f.col(f"`{name}`")).cast("string").alias("least"),
            f.max(f.col(f"`{name}`")).cast("string").alias("most"),
        )
        for name in data.columns[:20]
    ]
    report = columns[0]
    for column in columns[1:]:
        report = report.unionByName(column)
    report.coalesce(1).write.mode("overwrite").csv(target, header=True)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:3])
