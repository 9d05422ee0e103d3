"""House prices of Boston by gradient boosted trees.

spark-submit regressor.py BOSTON_CSV MODEL
strongroom spark-submit --volume model=model:health:rw examples/xgboost/regressor.py health/boston.csv model
"""

import sys

from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession
from xgboost.spark import SparkXGBRegressor

source, target = sys.argv[1:3]
spark = SparkSession.builder.appName("XGBoost regressor").getOrCreate()
houses = spark.read.csv(source, header=True, inferSchema=True)
label = houses.columns[-1]
table = VectorAssembler(inputCols=houses.columns[:-1], outputCol="features").transform(houses)
train, test = table.select("features", houses[label].alias("label")).randomSplit([0.8, 0.2], seed=7)
booster = SparkXGBRegressor(
    features_col="features", label_col="label", n_estimators=100, max_depth=3, random_state=7, num_workers=1
)
model = booster.fit(train)
predictions = model.transform(test)
predictions.show()
print(f"rmse {RegressionEvaluator().evaluate(predictions):.3f} over {predictions.count()} houses")
model.write().overwrite().save(target)
spark.stop()
