"""Random pictures and their files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def noise(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A random RGB picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=form)
    return stream.getvalue()
