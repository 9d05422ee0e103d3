"""A regression on Boston housing and a classifier on Pima diabetes, both saved and loaded again: plain PySpark ML.

spark-submit models.py boston.csv pima.dat OUTPUT_FOLDER
"""

import sys

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f


def boston(spark: SparkSession, path: str, target: str) -> None:
    table = spark.read.csv(path, header=True, inferSchema=True).coalesce(1).cache()
    *features, label = table.columns
    steps = [VectorAssembler(inputCols=features, outputCol="features"), LinearRegression(labelCol=label)]
    Pipeline(stages=steps).fit(table).write().overwrite().save(f"{target}/boston-model")
    guessed = PipelineModel.load(f"{target}/boston-model").transform(table)
    print("boston", guessed.count(), "rmse", RegressionEvaluator(labelCol=label).evaluate(guessed))
    guessed.select(*features, label, "prediction").write.mode("overwrite").parquet(f"{target}/boston")


def pima(spark: SparkSession, path: str, target: str) -> None:
    lines = spark.read.text(path).coalesce(1).where(~f.col("value").startswith("@"))
    words = f.split("value", r",\s*")
    numbers = [words[i].cast("double").alias(f"x{i}") for i in range(8)]
    label = f.trim(words[8]).isin("positive", "tested_positive").cast("double").alias("label")
    table: DataFrame = lines.select(*numbers, label).cache()
    steps = [VectorAssembler(inputCols=table.columns[:8], outputCol="features"), LogisticRegression(maxIter=10)]
    Pipeline(stages=steps).fit(table).write().overwrite().save(f"{target}/pima-model")
    guessed = PipelineModel.load(f"{target}/pima-model").transform(table)
    right = guessed.where("label = prediction").count()
    print("pima", guessed.count(), "positive", table.where("label = 1").count(), "right", right)
    flat = guessed.select(*table.columns, "prediction")
    flat.write.mode("overwrite").orc(f"{target}/pima-orc")
    flat.write.mode("overwrite").json(f"{target}/pima-json")


if __name__ == "__main__":
    session = SparkSession.builder.appName("models").getOrCreate()
    boston(session, sys.argv[1], sys.argv[3])
    pima(session, sys.argv[2], sys.argv[3])
    session.stop()
