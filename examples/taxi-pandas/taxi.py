r"""Prepares New York's taxi counts with pandas on Spark, as a pandas program would.

spark-submit taxi.py CSV_FILE
strongroom spark-submit examples/taxi-pandas/taxi.py trips/nyc_taxi.csv

`trips` is a sealed folder with the file: columns `timestamp` and `value`, every half hour
(https://github.com/numenta/NAB, data/realKnownCause/nyc_taxi.csv); see README.md.
"""

import sys

import pyspark.pandas as ps
from pyspark.sql import SparkSession

ps.set_option("compute.default_index_type", "sequence")  # 0, 1, 2 ... as in pandas
data = ps.read_csv(sys.argv[1])
print(f"INFO data collected: [{data.to_pandas()}]")  # these lines are in the shape of Orca's example

data2 = data.sample(frac=0.5, random_state=7).sort_index().reset_index(drop=True)
data2["datetime"] = ps.to_datetime(data2["timestamp"])
data2["hours"] = data2["datetime"].dt.hour
data2["awake"] = ((data2["hours"] >= 6) | (data2["hours"] == 0)).astype(int)
print(f"INFO data2 collected: [{data2.to_pandas()}]")
print("Stopping orca context", flush=True)
SparkSession.getActiveSession().stop()
