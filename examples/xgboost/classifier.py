"""Diabetes among Pima women by gradient boosted trees.

spark-submit classifier.py PIMA_CSV MODEL
strongroom spark-submit --volume model=model:health:rw examples/xgboost/classifier.py health/pima.csv model
"""

import sys

from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession
from xgboost.spark import SparkXGBClassifier

source, target = sys.argv[1:3]
columns = [f"f{i}" for i in range(1, 9)]
spark = SparkSession.builder.appName("XGBoost classifier").getOrCreate()
women = spark.read.csv(source, schema=", ".join(f"{c} double" for c in [*columns, "label"]))
table = VectorAssembler(inputCols=columns, outputCol="features").transform(women)
train, test = table.randomSplit([0.8, 0.2], seed=7)
booster = SparkXGBClassifier(
    features_col="features", label_col="label", n_estimators=50, max_depth=3, random_state=7, num_workers=1
)
model = booster.fit(train)
predictions = model.transform(test)
predictions.select(*columns, "label", "rawPrediction", "probability", "prediction").show()
area = BinaryClassificationEvaluator().evaluate(predictions)
print(f"area under ROC {area:.3f} over {predictions.count()} women")
model.write().overwrite().save(target)
spark.stop()
