"""`video_processing`: decodes frames of a clip, turns them grey and writes them again (OpenCV)."""

import hashlib
import os
import random
import tempfile

import cv2

from . import assets
from .parameters import Size, parse

CLIP_FRAMES = 96
WIDTH_PIXELS, HEIGHT_PIXELS = 320, 240
FRAMES_PER_SECOND = 24.0

SIZES = (Size("frames", 12, 1, 24),)

_clip = ""


def setup() -> None:
    """Decodes one frame, which starts the codecs."""
    global _clip
    # Results must not depend on the number of processors, nor an invocation wait for a thread pool.
    cv2.setNumThreads(0)
    _clip = str(assets.path("clip.avi"))
    capture = _open_clip()
    capture.release()


def _open_clip() -> cv2.VideoCapture:
    # OpenCV's own reader of Motion JPEG; the default, FFmpeg, decodes with threads.
    capture = cv2.VideoCapture(_clip, cv2.CAP_OPENCV_MJPEG)
    if not capture.isOpened():
        raise OSError(f"the clip {_clip} cannot be decoded")
    return capture


def handle(fields: dict) -> dict:
    """Makes a grey clip of `frames` frames; where it begins follows from the seed."""
    seed, frame_count = parse(fields, SIZES)
    generator = random.Random(seed)
    first = generator.randint(0, CLIP_FRAMES - frame_count)
    # A gain differs between seeds, as clips do.
    gain = generator.uniform(0.6, 1.4)
    handle_fd, written = tempfile.mkstemp(suffix=".avi")
    os.close(handle_fd)
    try:
        means = _process(first, frame_count, gain, written)
        with open(written, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = os.path.getsize(written)
    finally:
        os.unlink(written)
    return {
        "first_frame": first,
        "frames": frame_count,
        "means": means[:8],
        "clip_bytes": size_bytes,
        "sha256": digest,
    }


def _process(first: int, frame_count: int, gain: float, written: str) -> list[float]:
    capture = _open_clip()
    writer = cv2.VideoWriter(
        written,
        cv2.CAP_OPENCV_MJPEG,
        cv2.VideoWriter_fourcc(*"MJPG"),
        FRAMES_PER_SECOND,
        (WIDTH_PIXELS, HEIGHT_PIXELS),
        isColor=False,
    )
    means = []
    try:
        if not writer.isOpened():
            raise OSError(f"{written} cannot be written")
        capture.set(cv2.CAP_PROP_POS_FRAMES, first)
        for number in range(first, first + frame_count):
            decoded, frame = capture.read()
            if not decoded:
                raise OSError(f"frame {number} of the clip cannot be decoded")
            grey = cv2.convertScaleAbs(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), alpha=gain)
            means.append(round(float(grey.mean()), 3))
            writer.write(grey)
    finally:
        writer.release()
        capture.release()
    return means
