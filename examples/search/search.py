r"""Searches for the best boosted trees: each trial is a Spark task, and the best settings are fitted once more.

spark-submit search.py TABLE MODEL
strongroom spark-submit --master 'local-cluster[2,1,1024]' --volume model=model:health:rw \
    examples/search/search.py health/pima.csv model

TABLE is the Pima table of ../mllib/README.md: eight columns and the outcome, which is 1 for diabetes. MODEL takes
the best model, in a folder with the record of its settings and ROC, and the table of trials.
"""

import itertools
import os
import socket
import sys

import numpy as np
from pyspark.sql import SparkSession
from sklearn.model_selection import StratifiedKFold, cross_val_score
from xgboost import XGBClassifier

from strongroom import models

GRID = {"max_depth": [2, 3, 5], "learning_rate": [0.05, 0.2], "n_estimators": [40, 120]}


def classifier(settings):
    return XGBClassifier(**settings, random_state=1, n_jobs=1)


def trial(table, settings):
    """Return settings, mean ROC over five folds, and the machine that found it."""
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    scores = cross_val_score(classifier(settings), table[:, :-1], table[:, -1], cv=folds, scoring="roc_auc")
    where = os.environ.get("SPARK_LOCAL_IP", socket.gethostname())
    return {**settings, "roc": round(float(scores.mean()), 4), "machine": where}


def main(source, target):
    spark = SparkSession.builder.appName("search").getOrCreate()
    columns = ", ".join(f"c{i} double" for i in range(9))
    table = np.array(spark.read.csv(source, schema=columns).collect())
    shared = spark.sparkContext.broadcast(table)
    grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    tasks = spark.sparkContext.parallelize(grid, len(grid))
    trials = tasks.map(lambda settings: trial(shared.value, settings)).collect()
    for found in trials:
        print(*(f"{name}={value}" for name, value in found.items()))
    best = max(trials, key=lambda found: found["roc"])
    settings = {name: best[name] for name in GRID}
    print(f"best of {len(trials)} over {len(table)} women: {settings}, ROC {best['roc']:.4f}")
    model = classifier(settings).fit(table[:, :-1], table[:, -1])
    models.save(model, f"{target}/best", parameters=settings, metrics={"roc": best["roc"], "trials": len(trials)})
    spark.createDataFrame(trials).coalesce(1).write.mode("overwrite").json(f"{target}/trials")
    spark.stop()


main(*sys.argv[1:])
