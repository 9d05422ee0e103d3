"""Reads a table again and again, and says so: plain PySpark.

spark-submit reads_on.py SOURCE SECONDS
"""

import sys
import time

from pyspark.sql import SparkSession

spark = SparkSession.builder.appName("reads-on").getOrCreate()
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    print("rows", spark.read.csv(sys.argv[1]).count(), flush=True)
    time.sleep(1)
