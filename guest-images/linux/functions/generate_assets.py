#!/usr/bin/python3
"""Makes what the functions load, from fixed seeds: pictures, texts, a clip, networks, a model.

Run by the build of the root file system inside of it, so that each file is made by the versions
of the libraries that read it.
"""

import argparse
import io
import json
import random
import sys
from pathlib import Path

import cv2
import joblib
import numpy as np
from PIL import Image

from workloads import cnn_serving, lr_training, rnn_serving, video_processing
from workloads.reviews import ReviewWriter

_PICTURES = 8
_PICTURE_PIXELS = (1280, 960)
_ARTICLES = 2000
_CATEGORIES = ("books", "garden", "games", "kitchen", "music", "office", "sports", "tools")
_REVIEW_WORDS = (20, 60)
_MODEL_EPOCHS = 100


def draw_picture(generator: np.random.Generator) -> np.ndarray:
    """Clouds of noise in several scales, with lit discs and grain: it has edges and gradients."""
    width, height = _PICTURE_PIXELS
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for cells in (4, 12, 36, 108):
        noise = generator.random((cells * 3 // 4, cells, 3), dtype=np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.6
    picture *= 200 / picture.max()
    for _ in range(24):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        colour = [float(value) for value in generator.integers(40, 255, 3)]
        cv2.circle(picture, centre, int(generator.integers(12, 120)), colour, -1, cv2.LINE_AA)
    picture += generator.normal(0, 4, picture.shape).astype(np.float32)
    return picture.clip(0, 255).astype(np.uint8)


def make_pictures(folder: Path) -> None:
    """Photograph-like JPEGs."""
    (folder / "pictures").mkdir(exist_ok=True)
    for number in range(_PICTURES):
        encoded = io.BytesIO()
        picture = Image.fromarray(draw_picture(np.random.default_rng([1, number])))
        picture.save(encoded, "JPEG", quality=90)
        (folder / "pictures" / f"{number:02}.jpg").write_bytes(encoded.getvalue())


def make_clip(folder: Path) -> None:
    """A Motion JPEG: a disc that crosses a picture which drifts."""
    width, height = video_processing.WIDTH_PIXELS, video_processing.HEIGHT_PIXELS
    background = draw_picture(np.random.default_rng([2, 0]))
    writer = cv2.VideoWriter(
        str(folder / "clip.avi"),
        cv2.CAP_OPENCV_MJPEG,
        cv2.VideoWriter_fourcc(*"MJPG"),
        video_processing.FRAMES_PER_SECOND,
        (width, height),
    )
    if not writer.isOpened():
        raise OSError(f"{folder / 'clip.avi'} cannot be written")
    for number in range(video_processing.CLIP_FRAMES):
        frame = background[number * 2 :, number * 3 :][:height, :width].copy()
        cv2.circle(frame, (number * 5 % width, height // 2), 40, (40, 180, 230), -1, cv2.LINE_AA)
        writer.write(frame)
    writer.release()


def make_catalogue(folder: Path) -> None:
    """Articles with prices."""
    generator = random.Random("catalogue")
    articles = [
        {
            "id": f"a{number:05}",
            "name": f"article {generator.getrandbits(32):08x}",
            "category": generator.choice(_CATEGORIES),
            "price_cents": generator.randint(99, 49_999),
            "tags": [f"tag{generator.randrange(50)}" for _ in range(4)],
            "stock": {"north": generator.randrange(100), "south": generator.randrange(100)},
        }
        for number in range(_ARTICLES)
    ]
    (folder / "catalogue.json").write_text(json.dumps(articles))


def make_reviews(folder: Path) -> None:
    """Reviews, half of them good ones, and a model that tells them apart."""
    generator, writer = random.Random("reviews"), ReviewWriter()
    reviews = []
    for number in range(lr_training.CORPUS_REVIEWS):
        positive = number % 2 == 0
        text = writer.write(generator, positive, generator.randint(*_REVIEW_WORDS))
        reviews.append({"positive": positive, "text": text})
    (folder / "reviews.json").write_text(json.dumps(reviews))
    model = lr_training.fit(
        [review["text"] for review in reviews],
        [review["positive"] for review in reviews],
        _MODEL_EPOCHS,
    )
    joblib.dump(model, folder / "review-model.joblib")


def make_networks(folder: Path) -> None:
    """Weights that keep the spread of what passes through a layer (He et al., 2015)."""
    generator = np.random.default_rng([3, 0])

    def draw(shape: tuple[int, ...], fan_in: int, gain: float) -> np.ndarray:
        values = generator.standard_normal(shape, dtype=np.float32)
        return values * np.float32((gain / fan_in) ** 0.5)

    cnn = {}
    for name, inputs, outputs, side in cnn_serving.layers():
        cnn[f"{name}.kernel"] = draw((outputs, inputs, side, side), inputs * side * side, 2)
        cnn[f"{name}.bias"] = draw((outputs,), 1, 0.01)
    np.savez(folder / "cnn.npz", **cnn)

    hidden, characters = rnn_serving.HIDDEN_UNITS, len(rnn_serving.ALPHABET)
    rnn = {"embedding": draw((characters, hidden), 1, 1)}
    for layer in range(rnn_serving.LAYERS):
        rnn[f"input{layer}"] = draw((3 * hidden, hidden), hidden, 1)
        rnn[f"state{layer}"] = draw((3 * hidden, hidden), hidden, 1)
        rnn[f"bias{layer}"] = draw((3 * hidden,), 1, 0.01)
    # Large enough that some characters are likely and others are not.
    rnn["output"] = draw((characters, hidden), hidden, 16)
    np.savez(folder / "rnn.npz", **rnn)


def main() -> int:
    """Makes all of it in the folder that is named."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    folder = arguments.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(0)
    for make in (make_pictures, make_clip, make_catalogue, make_reviews, make_networks):
        make(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
