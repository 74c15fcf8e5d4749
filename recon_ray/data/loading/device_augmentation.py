"""The published image augmentation for whole batches, in torch, on any device.

By hand, because the result is that of :func:`recon_ray.data.loading.augmentation.augment` (PIL)
number by number: resizing rounds to 8 bit after each direction, pixels move to the nearest one in
PIL's fixed-point arithmetic, look-up tables are integers. A resized pixel may differ by one gray
level of 255, where PIL's sum lies at the border of two levels.

All shapes are fixed and nothing waits for the device: every operation is done for every picture and
the drawn one is taken, so that a step with it can be compiled and captured.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from recon_ray.data.loading.augmentation import (
    AUTO_CONTRAST,
    BRIGHTNESS,
    COLOR,
    CONTRAST,
    CUTOUT_GRAY,
    EQUALIZE,
    MAX_MAGNITUDE,
    NUM_OPS,
    OPERATIONS,
    POSTERIZE,
    SHARPNESS,
    SOLARIZE,
    affine_map,
    blend_factor,
    square_side,
)
from recon_ray.data.loading.images import NUM_PARAMETERS

LEVELS = 256
#: Operations whose result at a pixel depends only on its value.
POINTWISE = (BRIGHTNESS, POSTERIZE, SOLARIZE)
#: Luminance of red, green and blue in units of 2**-16 (ITU-R 601-2), as PIL has it.
LUMA = (19595, 38470, 7471)
FIXED_POINT = 16  # bits after the point in PIL's affine maps


class DeviceAugmentation(nn.Module):
    """Augmentation of the output of :func:`~recon_ray.data.loading.images.load_raw_images`.

    Args:
        image_size: Side of the result in pixels.
    """

    _affine: Tensor
    _tables: Tensor
    _factors: Tensor

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.side = square_side(image_size)
        self.register_buffer("_affine", _affine_table(image_size), persistent=False)
        self.register_buffer("_tables", _pointwise_tables(), persistent=False)
        factors = [blend_factor(magnitude) for magnitude in range(MAX_MAGNITUDE)]
        self.register_buffer("_factors", torch.tensor(factors), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, 3, S, S) uint8, S the side before the crop.
            parameters: (B, P) int64, the choices for these pictures.

        Returns:
            (B, 3, image_size, image_size) float32 in [0, 1], not normalized.

        Raises:
            ValueError: If the shapes are others.
        """
        self._check(images, parameters)
        with torch.autocast(images.device.type, enabled=False):
            width, height, mirrored, *rest = parameters.unbind(1)
            at = torch.arange(self.side, device=images.device)[None]
            across, down = (bicubic_weights(at, size, self.side) for size in (width, height))
            pictures = self._crop(resample(images, across, down), mirrored, *rest[:4])
            for first in range(4, 4 + 3 * NUM_OPS, 3):
                pictures = self.operate(pictures, *rest[first : first + 3])
            return cut_out(pictures, *rest[4 + 3 * NUM_OPS :]).float() / 255

    def _check(self, images: Tensor, parameters: Tensor) -> None:
        if images.shape[1:] != (3, self.side, self.side) or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype}: pictures of "
                f"{self.image_size} pixels are augmented from (B, 3, {self.side}, {self.side}) "
                "uint8."
            )
        if parameters.shape != (len(images), NUM_PARAMETERS):
            raise ValueError(
                f"parameters have shape {tuple(parameters.shape)}: {len(images)} images take "
                f"({len(images)}, {NUM_PARAMETERS})."
            )

    def _crop(self, images: Tensor, mirrored: Tensor, *crop: Tensor) -> Tensor:
        left, top, width, height = crop
        at, size = torch.arange(self.side, device=images.device)[None], self.image_size
        x = torch.where(mirrored[:, None] > 0, self.side - 1 - at, at) - left[:, None]
        across = bicubic_weights(x, width, size)
        down = bicubic_weights(at - top[:, None], height, size)
        # Pillow 13 begins with the columns where they lose most: these pictures are turned.
        turned = ((height > size) & (height - size > 2 * (width - size))).view(-1, 1, 1)
        first, second = torch.where(turned, down, across), torch.where(turned, across, down)
        turned = turned[:, None]
        resized = resample(torch.where(turned, images.mT, images), first, second)
        return torch.where(turned, resized.mT, resized)

    def operate(
        self, images: Tensor, index: Tensor, magnitude: Tensor, is_negative: Tensor
    ) -> Tensor:
        """Apply one operation of the pool to each picture.

        Args:
            images: (B, 3, image_size, image_size) uint8.
            index: (B,) place in :data:`~recon_ray.data.loading.augmentation.OPERATIONS`.
            magnitude: (B,) 1 to 9.
            is_negative: (B,) 1 for the sign -1, else 0.

        Returns:
            (B, 3, image_size, image_size) uint8.
        """
        factor = self._factors[magnitude].view(-1, 1, 1, 1)
        luma = _luma(images)
        tables = self._look_up_tables(images, luma, index, magnitude, factor)
        moved = _moved(images, self._affine[index, magnitude, is_negative])
        looked_up = tables.gather(2, moved.flatten(2).long()).view_as(images)
        index = index.view(-1, 1, 1, 1)
        return torch.where(
            index == COLOR,
            _blend(luma, images, factor),
            torch.where(index == SHARPNESS, _blend(_smooth(images), images, factor), looked_up),
        )

    def _look_up_tables(
        self, images: Tensor, luma: Tensor, index: Tensor, magnitude: Tensor, factor: Tensor
    ) -> Tensor:
        """Return the result of each picture's operation for every level: (B, 3, 256) uint8."""
        levels = torch.arange(LEVELS, device=images.device, dtype=torch.int32)
        counts = _histogram(images)
        pixels = luma.shape[2] * luma.shape[3]
        mean = (2 * luma.sum((2, 3)) + pixels) // (2 * pixels)  # (B, 1), rounded
        contrast = _blend(mean[..., None], levels, factor[..., 0])
        tables = self._tables[index, magnitude][:, None]
        index = index.view(-1, 1, 1)
        tables = torch.where(index == CONTRAST, contrast, tables)
        tables = torch.where(index == AUTO_CONTRAST, _auto_contrast(counts, levels), tables)
        return torch.where(index == EQUALIZE, _equalize(counts, levels), tables)


# -- Resizing --------------------------------------------------------------------------------------


def bicubic_weights(positions: Tensor, length: Tensor, size: int) -> Tensor:
    """Return weights that resize lines of pixels as PIL's bicubic filter does.

    The filter widens where pixels become fewer (antialiasing) and never reaches beyond the line.

    Args:
        positions: (B or 1, S) integers, the place of each of S given pixels in the line; those
            outside of it have no weight.
        length: (B,) integers, pixels of the line.
        size: Pixels of the result.

    Returns:
        (B, size, S) float32; rows sum to 1.
    """
    scale = length.double().view(-1, 1, 1) / size
    reach = scale.clamp(min=1)
    center = (torch.arange(size, device=length.device).double().view(1, -1, 1) + 0.5) * scale
    at = positions[:, None]
    x = ((at + 0.5 - center) / reach).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((at >= 0) & (at < length.view(-1, 1, 1)), weights, 0.0)
    return (weights / weights.sum(2, keepdim=True)).float()


def resample(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Resize pictures, first their rows and then their columns, rounding to 8 bit each time.

    Args:
        images: (B, 3, H, W) uint8.
        across: (B, W2, W) float32 weights.
        down: (B, H2, H) float32 weights.

    Returns:
        (B, 3, H2, W2) uint8.
    """
    batch, channels, height, width = images.shape
    rows = images.to(torch.float32, memory_format=torch.contiguous_format)
    rows = _rounded(rows.view(batch, channels * height, width) @ across.transpose(1, 2))
    columns = down[:, None] @ rows.view(batch, channels, height, across.shape[1])
    return _rounded(columns).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, LEVELS - 1)


# -- Operations ------------------------------------------------------------------------------------


def cut_out(images: Tensor, left: Tensor, top: Tensor, right: Tensor, bottom: Tensor) -> Tensor:
    """Paint a box of each picture gray, its right and bottom included: (B, 3, H, W) uint8."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device)[None]
    y = torch.arange(height, device=images.device)[None]
    inside_x = (x >= left[:, None]) & (x <= right[:, None])
    inside_y = (y >= top[:, None]) & (y <= bottom[:, None])
    inside = inside_y[:, None, :, None] & inside_x[:, None, None]
    return torch.where(inside, CUTOUT_GRAY, images)


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """Return the mix of two pictures, cut to whole levels as PIL does."""
    return (start + factor * (end.to(torch.int32) - start)).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Return the luminance (B, 1, H, W) int32."""
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + (1 << 15)) >> 16


def _smooth(images: Tensor) -> Tensor:
    """Return the mean of 3 x 3 pixels, the one in the middle five times: (B, 3, H, W) int32.

    Pixels at the border stay, as in PIL.
    """
    height, width = images.shape[2:]
    whole = images.to(torch.int32)
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * whole[:, :, 1:-1, 1:-1]
    inner = F.pad((2 * total + 13) // 26, (1, 1, 1, 1))  # rounded thirteenths
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    is_inner = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    return torch.where(is_inner, inner, whole)


def _moved(images: Tensor, coefficients: Tensor) -> Tensor:
    """Take every pixel from its nearest source, black from outside.

    Args:
        images: (B, 3, H, W) uint8.
        coefficients: (B, 6) int32 fixed-point numbers, see :func:`_affine_table`.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=torch.int32)[None, None]
    y = torch.arange(height, device=images.device, dtype=torch.int32)[None, :, None]
    a, b, c, d, e, f = coefficients[..., None, None].unbind(1)
    source_x = (a * x + b * y + c) >> FIXED_POINT
    source_y = (d * x + e * y + f) >> FIXED_POINT
    is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    at = source_y.clamp(0, height - 1) * width + source_x.clamp(0, width - 1)
    at = at.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    taken = images.flatten(2).gather(2, at.long()).view_as(images)
    return torch.where(is_inside[:, None], taken, 0)


def _histogram(images: Tensor) -> Tensor:
    """Return the count of each level in each channel: (B, 3, 256) int32."""
    batch, channels = images.shape[:2]
    counts = torch.zeros(batch, channels, LEVELS, dtype=torch.int32, device=images.device)
    values = images.flatten(2).long()
    return counts.scatter_add(2, values, torch.ones_like(values, dtype=torch.int32))


def _auto_contrast(counts: Tensor, levels: Tensor) -> Tensor:
    """Return tables (B, 3, 256) that spread the levels over all of 0 to 255."""
    low = torch.where(counts > 0, levels, LEVELS).amin(2, keepdim=True)
    high = torch.where(counts > 0, levels, -1).amax(2, keepdim=True)
    scale = 255.0 / (high - low).clamp(min=1).double()
    spread = (levels * scale + -low * scale).to(torch.int32).clamp(0, LEVELS - 1)
    return torch.where(high > low, spread, levels).to(torch.uint8)


def _equalize(counts: Tensor, levels: Tensor) -> Tensor:
    """Return tables (B, 3, 256) after which all levels are about equally frequent."""
    high = torch.where(counts > 0, levels, 0).amax(2, keepdim=True)
    others = counts.sum(2, keepdim=True) - counts.gather(2, high.long())
    step = others // 255
    below = step // 2 + counts.cumsum(2) - counts
    spread = (below // step.clamp(min=1)).clamp(max=LEVELS - 1)
    return torch.where(step > 0, spread, levels).to(torch.uint8)


# -- Tables ----------------------------------------------------------------------------------------


def _affine_table(size: int) -> Tensor:
    """Return fixed-point maps of all operations, (operations, magnitudes, 2, 6) int32, + before -.

    The coefficients are those of :func:`~recon_ray.data.loading.augmentation.affine_map` for the
    middle of a pixel, times 2**16.
    """
    table = torch.empty(len(OPERATIONS), MAX_MAGNITUDE, 2, 6, dtype=torch.int32)
    for index in range(len(OPERATIONS)):
        for magnitude in range(MAX_MAGNITUDE):
            for is_negative, sign in enumerate((1.0, -1.0)):
                a, b, c, d, e, f = affine_map(index, magnitude, sign, size, size)
                middle = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
                fixed = [math.floor(value * (1 << FIXED_POINT) + 0.5) for value in middle]
                table[index, magnitude, is_negative] = torch.tensor(fixed, dtype=torch.int32)
    return table


def _pointwise_tables() -> Tensor:
    """Return the result of each pointwise operation for every level, from PIL; else the level.

    Returns:
        (operations, magnitudes, 256) uint8.
    """
    ramp = torch.arange(LEVELS, dtype=torch.uint8)
    table = ramp.repeat(len(OPERATIONS), MAX_MAGNITUDE, 1)
    image = Image.frombytes("L", (LEVELS, 1), bytes(range(LEVELS))).convert("RGB")
    for index in POINTWISE:
        for magnitude in range(MAX_MAGNITUDE):
            made = OPERATIONS[index](image, magnitude, 1.0).getchannel(0)
            table[index, magnitude] = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8)
    return table
