r"""Copies taxi trips from a folder of csv files into a Parquet table, one file a batch, each row once.

spark-submit trips.py CSV_FOLDER TABLE CHECKPOINT
strongroom spark-submit --volume table=table:sales:rw --volume state=state:sales:rw examples/streaming/trips.py \
    trips table/t state/c

Kill it whenever you like and start it again: it goes on with the first batch that was not committed. Files that were
added meanwhile come in as well.
"""

import sys

from pyspark.sql import SparkSession

source, sink, checkpoint = sys.argv[1:4]
spark = SparkSession.builder.appName("Taxi trips").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
trips = spark.readStream.schema("at string, value double").option("maxFilesPerTrigger", 1).csv(source)
query = (
    trips.writeStream.format("parquet")
    .option("path", sink)
    .option("checkpointLocation", checkpoint)
    .trigger(availableNow=True)
    .start()
)
query.awaitTermination()
print("rows", spark.read.parquet(sink).count())
spark.stop()
