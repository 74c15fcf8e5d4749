"""Pixels of drawn pictures."""

import numpy as np
from PIL import Image


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def is_orange(pixels):
    return (pixels[..., 0] - pixels[..., 2] > 60).sum()


def is_blue(pixels):
    return (pixels[..., 2] - pixels[..., 0] > 60).sum()
