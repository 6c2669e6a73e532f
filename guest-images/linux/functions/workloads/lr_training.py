"""`lr_training`: fits TF-IDF and a logistic regression on reviews (scikit-learn)."""

import json
import random
import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from . import assets
from .parameters import Size, parse

CORPUS_REVIEWS = 4000

SIZES = (Size("documents", 3000, 10, 3000), Size("epochs", 8, 1, 100))

_positive: list[str] = []
_negative: list[str] = []


def setup() -> None:
    """Reads the reviews."""
    for review in json.loads(assets.path("reviews.json").read_bytes()):
        (_positive if review["positive"] else _negative).append(review["text"])


def fit(texts: list[str], labels: list[bool], epochs: int) -> dict:
    """A vectoriser and a classifier, fitted in at most `epochs` iterations of L-BFGS."""
    vectoriser = TfidfVectorizer(min_df=2)
    classifier = LogisticRegression(solver="lbfgs", max_iter=epochs)
    with warnings.catch_warnings():
        # The caller says how long to train; that more would fit better is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(vectoriser.fit_transform(texts), labels)
    return {"vectoriser": vectoriser, "classifier": classifier}


def handle(fields: dict) -> dict:
    """Trains on `documents` reviews that follow from the seed, as many good ones as bad ones."""
    seed, document_count, epochs = parse(fields, SIZES)
    generator = random.Random(seed)
    positive_count = document_count // 2
    sample = [(text, True) for text in generator.sample(_positive, positive_count)]
    sample += [
        (text, False) for text in generator.sample(_negative, document_count - positive_count)
    ]
    texts, labels = zip(*sample, strict=True)
    model = fit(list(texts), list(labels), epochs)
    classifier, vectoriser = model["classifier"], model["vectoriser"]
    predicted = classifier.predict(vectoriser.transform(texts))
    return {
        "vocabulary": len(vectoriser.vocabulary_),
        "iterations": int(classifier.n_iter_[0]),
        "accuracy": round(float((predicted == labels).mean()), 6),
        "weights_l2": round(float((classifier.coef_**2).sum() ** 0.5), 4),
        "bias": round(float(classifier.intercept_[0]), 5),
    }
