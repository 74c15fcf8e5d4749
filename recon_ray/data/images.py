"""Decodes rendered views and augments them for an image teacher.

Every random number comes from (seed, epoch, sample id), so a sample's image is the same whatever
batch, worker or order it is loaded in.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from recon_ray.errors import DataError

AugmentationKind: TypeAlias = Literal["none", "reference"]
ImageOp: TypeAlias = Callable[[Image.Image, int, float], Image.Image]

IMAGES_VERSION = 1  # part of a teacher cache's identity: raise it with any change to the pixels
BICUBIC = Image.Resampling.BICUBIC
STREAM = 0x1A6E  # keeps these numbers apart from other uses of the same seed
REFERENCE_SIZE = 224  # the reference's crop; its other sizes in pixels belong to this one
REFERENCE_RESIZE = 256
REFERENCE_CUTOUT = 16
CUTOUT_GRAY = (127, 127, 127)
CROP_SCALE = (0.64, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
NUM_OPS = 2
MAX_MAGNITUDE = 10


def decode_image(data: bytes, sample_id: int) -> Tensor:
    """Decode one PNG or JPEG.

    Args:
        data: The file's bytes.
        sample_id: Row that the image belongs to, for the error message.

    Returns:
        (3, H, W) uint8, RGB; an alpha channel is dropped.

    Raises:
        DataError: If the bytes are no such image.
    """
    return _to_tensor(_open(data, sample_id))


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Brings a view to the size an image teacher takes, augmented or not.

    Attributes:
        kind: ``none`` resizes the shorter side and takes the middle; ``reference`` is the
            published pre-training augmentation: square resize, flip, random crop, two random
            operations and a gray cut-out. At 224 pixels it is the reference's exactly, at other
            sizes its pixel sizes scale along.
        image_size: Side of the result in pixels.
        bgr: Exchange red and blue first: the reference read images in that order and treated them
            as RGB.
    """

    kind: AugmentationKind = "none"
    image_size: int = REFERENCE_SIZE
    bgr: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If the kind is unknown or the size below 8.
        """
        if self.kind not in ("none", "reference"):
            raise ValueError(f"image augmentation is {self.kind!r}: give 'none' or 'reference'.")
        if self.image_size < 8:
            raise ValueError(f"image_size is {self.image_size}: give at least 8.")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Transform one RGB image into another of ``image_size`` pixels square."""
        if self.bgr:
            image = Image.merge("RGB", image.split()[::-1])
        if self.kind == "none":
            return resize_and_crop(image, self.image_size)
        return self._augment(image, rng)

    def _augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        side = round(self.image_size * REFERENCE_RESIZE / REFERENCE_SIZE)
        image = image.resize((side, side), BICUBIC)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        image = random_resized_crop(image, self.image_size, rng)
        image = rand_augment(image, rng)
        extent = round(self.image_size * REFERENCE_CUTOUT / REFERENCE_SIZE)
        return cut_out(image, extent, rng)


def load_images(
    rows: Sequence[Sequence[bytes] | None],
    sample_ids: Sequence[int] | Tensor,
    *,
    epoch: int,
    seed: int,
    transform: ImageTransform,
    num_threads: int = 1,
) -> Tensor:
    """Load one random view of each sample.

    Args:
        rows: For each of B samples, its encoded views (a list or an object array).
        sample_ids: B numbers that name the samples over the whole data set.
        epoch: Which augmentation of the sample (an epoch, or the index of a cached copy).
        seed: Seed of the run.
        transform: What to do with a view.
        num_threads: Threads to decode and transform with; the result does not depend on it.

    Returns:
        (B, 3, H, W) float32 in [0, 1], RGB, not normalized: teachers do that themselves.

    Raises:
        DataError: If a sample has no view, or one that does not decode.
        ValueError: If there are not as many ids as rows.
    """
    ids = [int(sample_id) for sample_id in sample_ids]
    if len(ids) != len(rows):
        raise ValueError(f"{len(rows)} rows of views have {len(ids)} sample ids: give one each.")

    def load(views: Sequence[bytes] | None, sample_id: int) -> Tensor:
        return _load_view(views, sample_id, epoch, seed, transform)

    if num_threads > 1:
        with ThreadPoolExecutor(num_threads) as pool:
            images = list(pool.map(load, rows, ids))
    else:
        images = [load(views, sample_id) for views, sample_id in zip(rows, ids, strict=True)]
    size = transform.image_size
    stacked = torch.stack(images) if images else torch.zeros(0, 3, size, size, dtype=torch.uint8)
    return stacked.float().div_(255)


def sample_rng(seed: int, epoch: int, sample_id: int, *, use: int = 0) -> np.random.Generator:
    """Create the generator of one sample in one epoch; every ``use`` has its own numbers."""
    return np.random.default_rng([STREAM + use, seed, epoch, sample_id])


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` (bicubic) and take the middle square."""
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1:
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Crop 64 to 100 % of the area at an aspect ratio of 3:4 to 4:3, and resize it to a square."""
    left, top, width, height = _crop_box(*image.size, rng)
    cropped = image.crop((left, top, left + width, top + height))
    return cropped.resize((size, size), BICUBIC)


def rand_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply two operations of the pool, each with probability 1/2, at a strength of 1 to 9."""
    for index in rng.integers(len(OPERATIONS), size=NUM_OPS):
        magnitude = int(rng.integers(1, MAX_MAGNITUDE))
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < 0.5:
            image = OPERATIONS[index](image, magnitude, sign)
    return image


def cut_out(image: Image.Image, extent: int, rng: np.random.Generator) -> Image.Image:
    """Paint a gray square of at most ``extent + 1`` pixels at a random place.

    The square's far side is included and it is clipped to the image, as in the reference.
    """
    width, height = image.size
    left = int(max(0.0, rng.uniform(0, width) - extent / 2))
    top = int(max(0.0, rng.uniform(0, height) - extent / 2))
    box = (left, top, min(width, left + extent), min(height, top + extent))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, fill=CUTOUT_GRAY)
    return image


def _enhance(enhancer: type[ImageEnhance._Enhance]) -> ImageOp:
    def apply(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
        return enhancer(image).enhance(0.09 * magnitude + 0.05)  # type: ignore[call-arg]

    return apply


def _shift(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def _identity(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return ImageOps.equalize(image)


def _posterize(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return ImageOps.posterize(image, int(0.4 * magnitude) + 4)


def _solarize(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(25.6 * magnitude))


def _rotate(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return image.rotate(sign * int(3.0 * magnitude))


def _shear_x(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return _shift(image, (1, sign * 0.03 * magnitude, 0, 0, 1, 0))


def _shear_y(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return _shift(image, (1, 0, 0, sign * 0.03 * magnitude, 1, 0))


def _translate_x(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return _shift(image, (1, 0, sign * int(0.03 * magnitude * image.size[0]), 0, 1, 0))


def _translate_y(image: Image.Image, magnitude: int, sign: float) -> Image.Image:
    return _shift(image, (1, 0, 0, 0, 1, sign * int(0.03 * magnitude * image.size[1])))


OPERATIONS: tuple[ImageOp, ...] = (
    _auto_contrast,
    _equalize,
    _identity,
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _posterize,
    _rotate,
    _solarize,
)
"""The augmentation pool: (image, magnitude of 10, sign) to image."""


def _crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop; the middle if no attempt fits."""
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def _load_view(
    views: Sequence[bytes] | None,
    sample_id: int,
    epoch: int,
    seed: int,
    transform: ImageTransform,
) -> Tensor:
    if views is None or len(views) == 0:  # may be an array, whose truth is ambiguous
        raise DataError(
            f"Sample {sample_id} has no view; prepare the data set with views, "
            "or train without an image teacher."
        )
    rng = sample_rng(seed, epoch, sample_id)
    view = views[int(rng.integers(len(views)))]
    return _to_tensor(transform(_open(view, sample_id), rng))


def _open(data: bytes, sample_id: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Sample {sample_id}: a view of {len(data)} bytes is no readable PNG or JPEG; "
            "prepare the data set again from sound images."
        ) from error


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
