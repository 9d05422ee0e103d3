"""Fisher's 150 irises by k-means: three clusters of four measures, beside the three species that they were.

spark-submit kmeans.py IRIS_CSV MODEL
strongroom spark-submit --volume model=model:health:rw examples/mllib/kmeans.py health/iris.csv model
"""

import sys

from pyspark.ml.clustering import KMeans, KMeansModel
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession

source, target = sys.argv[1:3]
measures = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
spark = SparkSession.builder.appName("K-means").getOrCreate()
irises = spark.read.csv(source, header=True, schema=", ".join(f"{c} double" for c in measures) + ", species int")
table = VectorAssembler(inputCols=measures, outputCol="features").transform(irises)
KMeans(k=3, seed=7).fit(table).write().overwrite().save(target)
model = KMeansModel.load(target)
for center in model.clusterCenters():
    print("center", *(f"{x:.3f}" for x in center))
clusters = model.transform(table)
clusters.groupBy("species", "prediction").count().orderBy("species", "prediction").show()
print(f"silhouette {ClusteringEvaluator().evaluate(clusters):.3f} over {clusters.count()} irises")
spark.stop()
