"""A plain PySpark report over TPC-H orders and lineitem: revenue and late deliveries by order priority.

Nothing in it knows of Strongroom:

    spark-submit report.py ORDERS LINEITEM TARGET
"""

import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as f


def main(orders_path: str, lineitem_path: str, target: str) -> None:
    spark = SparkSession.builder.appName("TPC-H report").getOrCreate()
    orders = spark.read.csv(orders_path, header=True, inferSchema=True)
    lineitem = spark.read.csv(lineitem_path, header=True, inferSchema=True)
    joined = orders.join(lineitem, orders.o_orderkey == lineitem.l_orderkey)
    report = (
        joined.groupBy("o_orderpriority")
        .agg(
            f.countDistinct("o_orderkey").alias("orders"),
            f.sum(f.col("l_extendedprice") * (1 - f.col("l_discount"))).cast("decimal(18,2)").alias("revenue"),
            f.sum((f.col("l_receiptdate") > f.col("l_commitdate")).cast("long")).alias("late_items"),
        )
        .orderBy("o_orderpriority")
    )
    report.coalesce(1).write.mode("overwrite").csv(target, header=True)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:4])
