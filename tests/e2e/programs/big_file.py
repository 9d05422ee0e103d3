"""Counts the lines of a big file and finds those with a mark: plain PySpark, no Python in the tasks.

spark-submit big_file.py FILE
"""

import sys
import time

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

spark = SparkSession.builder.appName("big-file").getOrCreate()
began = time.monotonic()
lines = spark.read.text(sys.argv[1])
print("parts", lines.rdd.getNumPartitions())
mark = f.regexp_extract(f.when(f.col("value").contains("mark-"), f.substring("value", 1001, 20)), r"mark-\w+", 0)
found = lines.select(f.length("value").alias("length"), mark.alias("mark")).agg(
    f.count("*"), f.min("length"), f.max("length"), f.sort_array(f.collect_list("mark"))
)
count, shortest, longest, marks = found.first()
print("lines", count, shortest, longest, *(m for m in marks if m))
print("seconds", round(time.monotonic() - began, 1))
spark.stop()
