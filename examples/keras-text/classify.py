r"""Tells good film reviews from bad ones with Keras, and keeps the model with its words.

python classify.py REVIEWS MODEL [EPOCHS]
strongroom run --venv env --volume model=model:texts:rw -- \
    python examples/keras-text/classify.py reviews/reviews.tsv model

REVIEWS has a line for each: number, mean rating from -4 to 4, text; see README.md.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from strongroom import models

WORDS, TRAIN = 10_000, 8_000


def load(path: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Return texts (string, (n, 1)) and whether each is good (float32, (n,)), without the neutral ones."""
    with open(path, encoding="latin-1") as lines:
        rows = [line.rstrip().split("\t") for line in lines]
    rated = [(text, float(rating)) for _, rating, text in rows if float(rating) != 0]
    rated = [rated[i] for i in np.random.default_rng(1).permutation(len(rated))]
    return tf.constant([[text] for text, _ in rated]), tf.constant([float(rating > 0) for _, rating in rated])


def classifier(texts: tf.Tensor) -> keras.Model:
    words = layers.TextVectorization(max_tokens=WORDS)
    words.adapt(texts)
    model = keras.Sequential([
        keras.Input((1,), dtype="string"), words, layers.Embedding(WORDS, 16), layers.GlobalAveragePooling1D(),
        layers.Dense(16, activation="relu"), layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def main(source: str, target: str, epochs: int) -> None:
    keras.utils.set_random_seed(1)
    texts, good = load(source)
    print(f"{TRAIN} reviews to learn from, {len(texts) - TRAIN} to be tested with")
    model = classifier(texts[:TRAIN])
    model.fit(texts[:TRAIN], good[:TRAIN], batch_size=128, epochs=epochs, verbose=0)
    loss, accuracy = model.evaluate(texts[TRAIN:], good[TRAIN:], verbose=0)
    print(f"after {epochs} epochs: loss {loss:.4f}, accuracy {accuracy:.4f}")
    print("INFO results:", {"loss": loss, "acc Top1Accuracy": accuracy})  # BigDL's shape, for whoever looks for it
    found = {"loss": round(loss, 4), "accuracy": round(accuracy, 4)}
    models.save(model, target, parameters={"epochs": epochs, "words": WORDS, "seed": 1}, metrics=found)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 15)
