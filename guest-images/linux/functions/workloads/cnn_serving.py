"""`cnn_serving`: classifies pictures with a convolutional network, in numpy.

The network is SqueezeNet 1.1 (Iandola et al., 2016), all of its 26 convolutions, on pictures of
112 x 112; its weights are drawn by a seeded generator, since none can be shipped.
"""

import hashlib
import io
import random

import numpy as np
from PIL import Image, JpegImagePlugin  # noqa: F401  (the plugin is else imported by the first use)

from . import assets
from .parameters import Size, parse

SIZES = (Size("images", 1, 1, 16),)

PICTURE_PIXELS = 112
CLASSES = 1000
# Squeeze and expand channels of the fire modules; None is a pooling.
FIRE_MODULES = (
    (16, 64), (16, 64), None, (32, 128), (32, 128), None,
    (48, 192), (48, 192), (64, 256), (64, 256),
)  # fmt: skip
_TOP = 5

_weights: dict[str, np.ndarray] = {}
_pictures: list[bytes] = []


def layers() -> list[tuple[str, int, int, int]]:
    """Name, input channels, output channels and kernel side of every convolution."""
    found, channels = [("first", 3, 64, 3)], 64
    for number, fire in enumerate(FIRE_MODULES):
        if fire is None:
            continue
        squeeze, expand = fire
        found.append((f"fire{number}_squeeze", channels, squeeze, 1))
        found.append((f"fire{number}_expand1", squeeze, expand, 1))
        found.append((f"fire{number}_expand3", squeeze, expand, 3))
        channels = 2 * expand
    found.append(("last", channels, CLASSES, 1))
    return found


def setup() -> None:
    """Loads weights and encoded pictures, and classifies one."""
    with np.load(assets.path("cnn.npz")) as stored:
        _weights.update((name, stored[name]) for name in stored.files)
    _pictures.extend(file.read_bytes() for file in sorted(assets.path("pictures").glob("*.jpg")))


def _convolve(data: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
    """Convolution and ReLU: (channels, height, width), zero padding that keeps the size."""
    kernel, bias = _weights[f"{name}.kernel"], _weights[f"{name}.bias"]
    side = kernel.shape[2]
    if side > 1:
        edge = side // 2
        data = np.pad(data, ((0, 0), (edge, edge), (edge, edge)))
    windows = np.lib.stride_tricks.sliding_window_view(data, (side, side), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    height, width = windows.shape[1:3]
    # One matrix product for the whole layer: a column for each place, a row for each weight.
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(-1, height * width)
    result = kernel.reshape(len(kernel), -1) @ columns + bias[:, None]
    return np.maximum(result, 0).reshape(len(kernel), height, width)


def _pool(data: np.ndarray) -> np.ndarray:
    """The largest of 3 x 3, each second place."""
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def classify(pixels: np.ndarray) -> np.ndarray:
    """The probability of each class for a picture of (3, height, width), about 0 with spread 1."""
    data = _pool(_convolve(pixels, "first", stride=2))
    for number, fire in enumerate(FIRE_MODULES):
        if fire is None:
            data = _pool(data)
            continue
        squeezed = _convolve(data, f"fire{number}_squeeze")
        data = np.concatenate(
            (
                _convolve(squeezed, f"fire{number}_expand1"),
                _convolve(squeezed, f"fire{number}_expand3"),
            )
        )
    scores = _convolve(data, "last").mean(axis=(1, 2))
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def _read_picture(generator: random.Random) -> np.ndarray:
    with Image.open(io.BytesIO(generator.choice(_pictures))) as picture:
        side = generator.randint(2 * PICTURE_PIXELS, min(picture.size))
        left = generator.randint(0, picture.width - side)
        top = generator.randint(0, picture.height - side)
        part = picture.resize(
            (PICTURE_PIXELS, PICTURE_PIXELS),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
    pixels = np.asarray(part, dtype=np.float32).transpose(2, 0, 1)
    return (pixels - pixels.mean()) / (pixels.std() + 1)


def handle(fields: dict) -> dict:
    """Classifies `images` parts of pictures that follow from the seed."""
    seed, image_count = parse(fields, SIZES)
    generator = random.Random(seed)
    digest = hashlib.sha256()
    first = None
    for _ in range(image_count):
        probabilities = classify(_read_picture(generator))
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        top = [{"class": int(i), "probability": round(float(probabilities[i]), 6)} for i in best]
        first = first or top
        digest.update(repr(top).encode())
    return {"images": image_count, "first": first, "sha256": digest.hexdigest()}
