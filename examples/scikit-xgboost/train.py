r"""Trains a logistic regression (scikit-learn) and boosted trees (XGBoost) on one table, without Spark, and saves both.

python train.py TABLE MODEL
strongroom run --volume model=model:health:rw -- python examples/scikit-xgboost/train.py health/pima.csv model

TABLE is the Pima table of ../mllib/README.md: eight columns and the outcome, which is 1 for diabetes.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

from strongroom import models

MODELS = {
    "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
    "trees": XGBClassifier(n_estimators=60, max_depth=3, learning_rate=0.1, random_state=1, n_jobs=2),
}


def main(table: str, target: str) -> None:
    with open(table) as lines:
        rows = np.array([line.split(",") for line in lines if line[0] not in "@\n"], dtype=float)
    values, outcome = rows[:, :-1], rows[:, -1].astype(int)
    for name, model in MODELS.items():
        score = float(cross_val_score(model, values, outcome, cv=5, scoring="roc_auc").mean())
        model.fit(values, outcome)
        metrics = {"roc_auc": round(score, 4)}
        models.save(model, f"{target}/{name}", parameters={"model": repr(model)}, metrics=metrics)
        print(f"{name}: ROC {score:.4f} over {len(rows)} women, five folds")


main(sys.argv[1], sys.argv[2])
