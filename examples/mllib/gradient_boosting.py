"""House prices of Boston by Spark's own gradient boosted trees: 506 districts, the last column is the median price.

spark-submit gradient_boosting.py BOSTON_CSV MODEL
strongroom spark-submit --volume model=model:health:rw examples/mllib/gradient_boosting.py health/boston.csv model
"""

import sys

from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import GBTRegressionModel, GBTRegressor
from pyspark.sql import SparkSession

source, target = sys.argv[1:3]
spark = SparkSession.builder.appName("Gradient boosting").getOrCreate()
houses = spark.read.csv(source, header=True, inferSchema=True)
*measures, price = houses.columns
table = VectorAssembler(inputCols=measures, outputCol="features").transform(houses)
train, test = table.select("features", houses[price].alias("label")).randomSplit([0.8, 0.2], seed=7)
GBTRegressor(maxIter=20, maxDepth=3, seed=7).fit(train).write().overwrite().save(target)
model = GBTRegressionModel.load(target)
predictions = model.transform(test)
predictions.show(10)
print(f"rmse {RegressionEvaluator().evaluate(predictions):.3f} over {predictions.count()} districts")
spark.stop()
