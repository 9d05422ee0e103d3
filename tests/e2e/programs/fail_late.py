"""Overwrites a table, then fails."""

import sys

from pyspark.sql import SparkSession

spark = SparkSession.builder.getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
spark.range(5).write.mode("overwrite").parquet(sys.argv[1])
assert spark.read.parquet(sys.argv[1]).count() == 5
print("overwritten")
if sys.argv[2:] == ["fail"]:
    sys.exit(3)
