"""Decoding and augmentation of rendered views for an image teacher.

Every random number comes from (seed, epoch, sample id), so a sample's image does not depend on its
batch, worker or order.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recon_ray.data.loading.augmentation import (
    BICUBIC,
    NUM_CHOICES,
    REFERENCE_SIZE,
    augment,
    draw_augmentation,
    square_side,
)
from recon_ray.errors import DataError

AugmentationKind: TypeAlias = Literal["none", "reference"]

IMAGES_VERSION = 1  # part of a teacher cache's identity: raise it with any change to the pixels
STREAM = 0x1A6E  # keeps these numbers apart from other uses of the same seed
#: Numbers of a picture beside its pixels: its width and height, and the choices for it.
NUM_PARAMETERS = 2 + NUM_CHOICES


def decode_image(data: bytes, sample_id: int) -> Tensor:
    """Decode one PNG or JPEG to (3, H, W) uint8, RGB; an alpha channel is dropped.

    Raises:
        DataError: If the bytes are not such an image; the message has the sample id.
    """
    pixels = torch.from_numpy(np.array(_open(data, sample_id), dtype=np.uint8))
    return pixels.permute(2, 0, 1).contiguous()


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Transform of a view to the input size of an image teacher, with or without augmentation.

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
        return augment(image, draw_augmentation(self.image_size, rng), self.image_size)


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
        transform: Transform of a view.
        num_threads: Threads to decode with; the result does not depend on it.

    Returns:
        (B, 3, H, W) float32 in [0, 1], RGB, not normalized, which is done by the teachers.

    Raises:
        DataError: If a sample has no view, or one that does not decode.
        ValueError: If there are not as many ids as rows.
    """
    size = transform.image_size
    # An array: this thread's inference mode does not hold in the others.
    pixels = np.empty((len(rows), 3, size, size), dtype=np.uint8)

    def load(row: int, view: Image.Image, rng: np.random.Generator) -> None:
        pixels[row] = np.asarray(transform(view, rng)).transpose(2, 0, 1)

    _for_each_view(load, rows, sample_ids, epoch, seed, num_threads)
    return torch.from_numpy(pixels).float().div_(255)


def load_raw_images(
    rows: Sequence[Sequence[bytes] | None],
    sample_ids: Sequence[int] | Tensor,
    *,
    epoch: int,
    seed: int,
    transform: ImageTransform,
    num_threads: int = 1,
) -> tuple[Tensor, Tensor]:
    """Decode the views of :func:`load_images` and draw their augmentation, for use on a device.

    The arguments are those of :func:`load_images`, with a transform of the kind ``reference``.

    Returns:
        (B, 3, S, S) uint8 pixels, S the side before the crop: every view at its own size in the
        corner at the top left, a larger one resized to the whole. And (B, P) int64: width and
        height of that, then :meth:`~recon_ray.data.loading.augmentation.DrawnAugmentation.numbers`.
        Both are for :class:`~recon_ray.data.loading.device_augmentation.DeviceAugmentation`.

    Raises:
        DataError: As :func:`load_images`.
        ValueError: As :func:`load_images`, or for a transform of another kind.
    """
    if transform.kind != "reference":
        raise ValueError(f"image augmentation is {transform.kind!r}: only 'reference' is drawn.")
    side = square_side(transform.image_size)
    pixels = np.zeros((len(rows), side, side, 3), dtype=np.uint8)
    parameters = np.empty((len(rows), NUM_PARAMETERS), dtype=np.int64)

    def load(row: int, view: Image.Image, rng: np.random.Generator) -> None:
        if max(view.size) > side:
            view = view.resize((side, side), BICUBIC)
        width, height = view.size
        pixels[row, :height, :width] = np.asarray(view)[..., :: -1 if transform.bgr else 1]
        drawn = draw_augmentation(transform.image_size, rng)
        parameters[row] = [width, height, *drawn.numbers()]

    _for_each_view(load, rows, sample_ids, epoch, seed, num_threads)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(parameters)


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


def _for_each_view(
    load: Callable[[int, Image.Image, np.random.Generator], None],
    rows: Sequence[Sequence[bytes] | None],
    sample_ids: Sequence[int] | Tensor,
    epoch: int,
    seed: int,
    num_threads: int,
) -> None:
    """Choose and decode a view of each sample, in threads; call ``load`` with its generator."""
    ids = [int(sample_id) for sample_id in sample_ids]
    if len(ids) != len(rows):
        raise ValueError(f"{len(rows)} rows of views have {len(ids)} sample ids: give one each.")

    def load_some(numbers: range) -> None:
        for number in numbers:
            views, sample_id = rows[number], ids[number]
            if views is None or len(views) == 0:  # may be an array, whose truth is ambiguous
                raise DataError(
                    f"Sample {sample_id} has no view; prepare the data set with views, "
                    "or train without an image teacher."
                )
            rng = sample_rng(seed, epoch, sample_id)
            view = views[int(rng.integers(len(views)))]
            load(number, _open(view, sample_id), rng)

    if num_threads > 1:
        shares = [range(first, len(ids), num_threads) for first in range(num_threads)]
        list(_pool(num_threads).map(load_some, shares))  # raises what a thread raised
    else:
        load_some(range(len(ids)))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="decode")


def _open(data: bytes, sample_id: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Sample {sample_id}: a view of {len(data)} bytes is not a readable PNG or JPEG; "
            "prepare the data set again from sound images."
        ) from error
