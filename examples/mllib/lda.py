"""Topics of a folder of texts by latent Dirichlet allocation: each file is a document.

spark-submit lda.py TEXT_FOLDER MODEL
strongroom spark-submit --volume model=model:health:rw examples/mllib/lda.py texts model
"""

import sys

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.clustering import LDA
from pyspark.ml.feature import CountVectorizer, RegexTokenizer, StopWordsRemover
from pyspark.sql import SparkSession

source, target = sys.argv[1:3]
spark = SparkSession.builder.appName("LDA").getOrCreate()
texts = spark.read.text(source, wholetext=True).coalesce(1).sort("value")  # the order must not depend on the folder
steps = [
    RegexTokenizer(inputCol="value", outputCol="words", pattern="[^a-z]+", minTokenLength=4),
    StopWordsRemover(inputCol="words", outputCol="telling"),
    CountVectorizer(inputCol="telling", outputCol="features", minDF=3, maxDF=0.8),
    LDA(k=4, maxIter=30, optimizer="online", seed=7),
]
Pipeline(stages=steps).fit(texts).write().overwrite().save(target)
model = PipelineModel.load(target)
*_, counter, lda = model.stages
for topic in lda.describeTopics(8).collect():
    print("topic", topic.topic, *(counter.vocabulary[i] for i in topic.termIndices))
counted = model.transform(texts)
print(f"log perplexity {lda.logPerplexity(counted):.3f} over {counted.count()} texts, {lda.vocabSize()} words")
spark.stop()
