"""`lr_serving`: classifies a review by TF-IDF and logistic regression (scikit-learn)."""

import hashlib
import random

import joblib

from . import assets
from .parameters import Size, parse
from .reviews import ReviewWriter

SIZES = (Size("words", 4000, 1, 20_000),)

_model = None
_writer = None


def setup() -> None:
    """Loads the fitted vectoriser and classifier."""
    global _model, _writer
    _model = joblib.load(assets.path("review-model.joblib"))
    _writer = ReviewWriter()


def handle(fields: dict) -> dict:
    """Classifies a review of `words` words that follow from the seed."""
    seed, word_count = parse(fields, SIZES)
    generator = random.Random(seed)
    review = _writer.write(generator, generator.random() < 0.5, word_count)
    features = _model["vectoriser"].transform([review])
    probability = float(_model["classifier"].predict_proba(features)[0, 1])
    return {
        "positive": probability >= 0.5,
        "probability": round(probability, 6),
        "terms": int(features.nnz),
        "review_sha256": hashlib.sha256(review.encode()).hexdigest(),
    }
