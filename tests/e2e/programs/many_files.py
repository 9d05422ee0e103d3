"""Reads a folder of many small files, and writes as many: plain PySpark.

spark-submit many_files.py SOURCE TARGET FILES
"""

import sys
import time

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

source, target, files = sys.argv[1], sys.argv[2], int(sys.argv[3])
spark = SparkSession.builder.appName("many-files").getOrCreate()
began = time.monotonic()
count, total = spark.read.schema("n long, text string").csv(source).agg(f.count("*"), f.sum("n")).first()
print("read", count, total, round(time.monotonic() - began, 1))
began = time.monotonic()
spark.range(0, files, 1, files).select("id", f.lit("marker-many")).write.csv(target)
print("written", round(time.monotonic() - began, 1))
began = time.monotonic()
count, total = spark.read.schema("n long, text string").csv(target).agg(f.count("*"), f.sum("n")).first()
print("again", count, total, round(time.monotonic() - began, 1))
spark.stop()
