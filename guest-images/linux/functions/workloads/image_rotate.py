"""`image_rotate`: decodes a JPEG, takes a part of it, rotates it and encodes it again (Pillow)."""

import hashlib
import io
import random

from PIL import Image, JpegImagePlugin  # noqa: F401  (the plugin is else imported by the first use)

from . import assets
from .parameters import Size, parse

SIZES = (
    Size("width", 256, 16, 1024),
    Size("height", 192, 16, 1024),
    Size("quarter_turns", 1, 0, 3),
)

# The part is this much larger than the result, each way, where the picture allows it.
_REDUCTION = 3
_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}

_pictures: list[bytes] = []


def setup() -> None:
    """Reads the encoded pictures."""
    _pictures.extend(file.read_bytes() for file in sorted(assets.path("pictures").glob("*.jpg")))


def handle(fields: dict) -> dict:
    """Gives the `width` x `height` rotation of a part; picture and part follow from the seed."""
    seed, width, height, quarter_turns = parse(fields, SIZES)
    generator = random.Random(seed)
    with Image.open(io.BytesIO(generator.choice(_pictures))) as picture:
        part_width = min(picture.width, width * _REDUCTION)
        part_height = min(picture.height, height * _REDUCTION)
        left = generator.randint(0, picture.width - part_width)
        top = generator.randint(0, picture.height - part_height)
        part = picture.resize(
            (width, height),
            Image.Resampling.LANCZOS,
            box=(left, top, left + part_width, top + part_height),
        )
    if quarter_turns:
        part = part.transpose(_TURNS[quarter_turns])
    encoded = io.BytesIO()
    part.save(encoded, "JPEG", quality=85)
    return {
        "width": part.width,
        "height": part.height,
        "jpeg_bytes": encoded.tell(),
        "sha256": hashlib.sha256(encoded.getvalue()).hexdigest(),
    }
