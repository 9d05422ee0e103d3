"""Revenue by city: the orders of one company joined with the customers of another. Plain PySpark."""

import sys

from pyspark.sql import SparkSession

orders_path, customers_path, result_path = sys.argv[1:]
spark = SparkSession.builder.appName("two-owners-join").getOrCreate()
orders = spark.read.csv(orders_path, header=True, inferSchema=True)
customers = spark.read.csv(customers_path, header=True, inferSchema=True)
revenue = orders.join(customers, "customer").groupBy("city").sum("amount").withColumnRenamed("sum(amount)", "revenue")
revenue.orderBy("city").coalesce(1).write.mode("overwrite").csv(result_path, header=True)
revenue.orderBy("city").show()
spark.stop()
