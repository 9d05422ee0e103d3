"""Breast cancer by a random forest: 569 biopsies with 30 measures each, the last column says whether benign.

spark-submit random_forest.py BREAST_CANCER_CSV MODEL
strongroom spark-submit --volume model=model:health:rw examples/mllib/random_forest.py health/breast_cancer.csv model
"""

import sys

from pyspark.ml.classification import RandomForestClassificationModel, RandomForestClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession

source, target = sys.argv[1:3]
measures = [f"m{i}" for i in range(1, 31)]
spark = SparkSession.builder.appName("Random forest").getOrCreate()
biopsies = spark.read.csv(source, header=True, schema=", ".join(f"{c} double" for c in [*measures, "label"]))
table = VectorAssembler(inputCols=measures, outputCol="features").transform(biopsies)
train, test = table.randomSplit([0.8, 0.2], seed=7)
RandomForestClassifier(numTrees=20, seed=7).fit(train).write().overwrite().save(target)
model = RandomForestClassificationModel.load(target)
predictions = model.transform(test)
predictions.select("label", "probability", "prediction").show(10, truncate=False)
accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predictions)
print(f"accuracy {accuracy:.3f} over {predictions.count()} biopsies, {model.getNumTrees} trees")
spark.stop()
