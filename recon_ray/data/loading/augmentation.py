"""The published image augmentation: random choices for a picture, and their application by PIL.

Drawing and applying are apart, so that :mod:`recon_ray.data.loading.device_augmentation` can apply
the choices on a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

ImageOp: TypeAlias = Callable[[Image.Image, int, float], Image.Image]
Box: TypeAlias = tuple[int, int, int, int]
#: Of a map from a pixel (x, y) to its source: (a x + b y + c, d x + e y + f).
Coefficients: TypeAlias = tuple[float, float, float, float, float, float]

BICUBIC = Image.Resampling.BICUBIC
REFERENCE_SIZE = 224  # the reference's crop; its other sizes in pixels belong to this one
REFERENCE_RESIZE = 256
REFERENCE_CUTOUT = 16
CUTOUT_GRAY = 127
CROP_SCALE = (0.64, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
NUM_OPS = 2
MAX_MAGNITUDE = 10


@dataclass(frozen=True)
class DrawnOperation:
    """One operation of the pool.

    Attributes:
        index: Its place in :data:`OPERATIONS`.
        magnitude: Strength, 1 to 9.
        sign: 1.0 or -1.0; some operations have a direction.
    """

    index: int
    magnitude: int
    sign: float


@dataclass(frozen=True)
class DrawnAugmentation:
    """All random choices of one augmented picture.

    Attributes:
        mirrored: Whether left and right are exchanged.
        crop: Left, top, width and height of the crop in the square picture.
        operations: Two operations; one that is not applied is the identity.
        gray: Left, top, right and bottom of the gray square, all included, in the result.
    """

    mirrored: bool
    crop: Box
    operations: tuple[DrawnOperation, ...]
    gray: Box

    def numbers(self) -> list[int]:
        """Return the choices as ``NUM_CHOICES`` whole numbers, in the order of the attributes."""
        operations = [n for o in self.operations for n in (o.index, o.magnitude, int(o.sign < 0))]
        return [int(self.mirrored), *self.crop, *operations, *self.gray]


NUM_CHOICES = 1 + 4 + 3 * NUM_OPS + 4


def square_side(image_size: int) -> int:
    """Return the side of the square to which a picture is resized before it is cropped."""
    return round(image_size * REFERENCE_RESIZE / REFERENCE_SIZE)


def draw_augmentation(image_size: int, rng: np.random.Generator) -> DrawnAugmentation:
    """Draw how one picture becomes another of ``image_size`` pixels square."""
    side, extent = square_side(image_size), round(image_size * REFERENCE_CUTOUT / REFERENCE_SIZE)
    return DrawnAugmentation(
        mirrored=bool(rng.random() < 0.5),
        crop=draw_crop(side, side, rng),
        operations=draw_operations(rng),
        gray=draw_gray(image_size, extent, rng),
    )


def draw_crop(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw 64 to 100 % of the area at an aspect ratio of 3:4 to 4:3.

    Returns:
        Left, top, width and height; the middle if no attempt fits.
    """
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def draw_operations(rng: np.random.Generator) -> tuple[DrawnOperation, ...]:
    """Draw two operations of the pool, each with probability 1/2, at a strength of 1 to 9."""
    drawn = []
    for index in rng.integers(len(OPERATIONS), size=NUM_OPS):
        magnitude = int(rng.integers(1, MAX_MAGNITUDE))
        sign = 1.0 if rng.random() < 0.5 else -1.0
        chosen = int(index) if rng.random() < 0.5 else IDENTITY
        drawn.append(DrawnOperation(chosen, magnitude, sign))
    return tuple(drawn)


def draw_gray(size: int, extent: int, rng: np.random.Generator) -> Box:
    """Draw a square of at most ``extent + 1`` pixels, clipped to an image of ``size`` pixels.

    Its far side is included, as in the reference.
    """
    left = int(max(0.0, rng.uniform(0, size) - extent / 2))
    top = int(max(0.0, rng.uniform(0, size) - extent / 2))
    return left, top, min(size, left + extent), min(size, top + extent)


def augment(image: Image.Image, drawn: DrawnAugmentation, image_size: int) -> Image.Image:
    """Apply the choices to an RGB image with PIL."""
    side = square_side(image_size)
    image = image.resize((side, side), BICUBIC)
    if drawn.mirrored:
        image = ImageOps.mirror(image)
    image = crop_and_resize(image, drawn.crop, image_size)
    return cut_out(operate(image, drawn.operations), drawn.gray)


def crop_and_resize(image: Image.Image, crop: Box, size: int) -> Image.Image:
    """Cut out (left, top, width, height) and resize it to a square."""
    left, top, width, height = crop
    return image.crop((left, top, left + width, top + height)).resize((size, size), BICUBIC)


def operate(image: Image.Image, operations: Sequence[DrawnOperation]) -> Image.Image:
    """Apply operations of the pool, one after the other."""
    for one in operations:
        image = OPERATIONS[one.index](image, one.magnitude, one.sign)
    return image


def cut_out(image: Image.Image, box: Box) -> Image.Image:
    """Paint (left, top, right, bottom), all included, gray."""
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, fill=(CUTOUT_GRAY,) * 3)
    return image


# -- The pool --------------------------------------------------------------------------------------

(
    AUTO_CONTRAST,
    EQUALIZE,
    IDENTITY,
    BRIGHTNESS,
    COLOR,
    CONTRAST,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
    POSTERIZE,
    ROTATE,
    SOLARIZE,
) = range(14)


def blend_factor(magnitude: int) -> float:
    """Return the part of the original in a picture of less brightness, color, or the like."""
    return 0.09 * magnitude + 0.05


def affine_map(index: int, magnitude: int, sign: float, width: int, height: int) -> Coefficients:
    """Return the map of an operation that moves pixels; that of any other changes nothing."""
    maps: dict[int, Coefficients] = {
        SHEAR_X: (1, sign * 0.03 * magnitude, 0, 0, 1, 0),
        SHEAR_Y: (1, 0, 0, sign * 0.03 * magnitude, 1, 0),
        TRANSLATE_X: (1, 0, sign * int(0.03 * magnitude * width), 0, 1, 0),
        TRANSLATE_Y: (1, 0, 0, 0, 1, sign * int(0.03 * magnitude * height)),
        ROTATE: _rotation(sign * int(3.0 * magnitude), width / 2, height / 2),
    }
    return maps.get(index, (1, 0, 0, 0, 1, 0))


def _rotation(degrees: float, x: float, y: float) -> Coefficients:
    """Return a counter-clockwise rotation about (x, y), rounded as in ``PIL.Image.rotate``."""
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return (
        cosine, sine, cosine * -x + sine * -y + x,
        -sine, cosine, -sine * -x + cosine * -y + y,
    )  # fmt: skip


def _affine(index: int) -> ImageOp:
    def apply(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
        coefficients = affine_map(index, magnitude, sign, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, coefficients)

    return apply


def _enhance(enhancer: type[ImageEnhance._Enhance]) -> ImageOp:
    def apply(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
        return enhancer(image).enhance(blend_factor(magnitude))  # type: ignore[call-arg]

    return apply


#: The pool: (image, magnitude of 10, sign) to image.
OPERATIONS: tuple[ImageOp, ...] = (
    lambda image, magnitude, sign: ImageOps.autocontrast(image),
    lambda image, magnitude, sign: ImageOps.equalize(image),
    lambda image, magnitude, sign: image,
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Sharpness),
    _affine(SHEAR_X),
    _affine(SHEAR_Y),
    _affine(TRANSLATE_X),
    _affine(TRANSLATE_Y),
    lambda image, magnitude, sign: ImageOps.posterize(image, int(0.4 * magnitude) + 4),
    _affine(ROTATE),
    lambda image, magnitude, sign: ImageOps.solarize(image, 256 - int(25.6 * magnitude)),
)
