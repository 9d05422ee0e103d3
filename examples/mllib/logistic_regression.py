"""Diabetes among 768 Pima women by logistic regression: eight measures and whether she fell ill.

spark-submit logistic_regression.py PIMA_CSV MODEL
strongroom spark-submit --volume model=model:health:rw examples/mllib/logistic_regression.py health/pima.csv model
"""

import sys

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.sql import SparkSession

source, target = sys.argv[1:3]
measures = ["pregnancies", "glucose", "pressure", "skin", "insulin", "mass", "pedigree", "age"]
spark = SparkSession.builder.appName("Logistic regression").getOrCreate()
women = spark.read.csv(source, schema=", ".join(f"{c} double" for c in [*measures, "label"]))
train, test = women.randomSplit([0.8, 0.2], seed=7)
steps = [
    VectorAssembler(inputCols=measures, outputCol="raw"),
    StandardScaler(inputCol="raw", outputCol="features"),
    LogisticRegression(maxIter=50, regParam=0.01),
]
Pipeline(stages=steps).fit(train).write().overwrite().save(target)
model = PipelineModel.load(target)
for measure, weight in zip(measures, model.stages[-1].coefficients, strict=True):
    print(f"{measure:12}{weight:7.3f}")
predictions = model.transform(test)
area = BinaryClassificationEvaluator().evaluate(predictions)
print(f"area under ROC {area:.3f} over {predictions.count()} women")
spark.stop()
