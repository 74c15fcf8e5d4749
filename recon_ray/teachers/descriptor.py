"""Weight-free image and text descriptors: a stand-in for teachers without weights at hand.

They hold no knowledge of the world: texts are close when they share letters, images when they
share outline, edges and colours. That is enough to exercise every part of a run and to align shapes
with their category names, and not enough for published numbers.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recon_ray.teachers.prompts import PREFIXES, SUFFIXES
from recon_ray.teachers.protocol import ImageTeacher, TextTeacher
from recon_ray.teachers.weights_file import state_dict_sha256

VERSION = "1"  # part of the identity: change it with any change to the features
SCALE = 8.0  # length of every feature; unit-length ones give the distillation loss too little
IMAGE_SIZE = 64
PROJECTION_SEED = 20230518
ORIENTATIONS = 8
EDGE_CELLS, COLOR_CELLS, OUTLINE_CELLS = 4, 4, 8
DESCRIPTOR_DIM = ORIENTATIONS * EDGE_CELLS**2 + 6 * COLOR_CELLS**2 + OUTLINE_CELLS**2

NGRAM_RANGE = (2, 4)
TEMPLATE_WEIGHT = 0.2  # the prompt's share beside the name's 1: the category must dominate


class DescriptorImageTeacher(ImageTeacher):
    """Outline, edge and colour statistics of an image in a fixed random projection.

    Three blocks, each with its mean removed and of unit length: how far each of 8 x 8 cells is from
    the background (the corners' colour), edge energy in 8 orientations over 4 x 4 cells, and means
    and deviations of the colours over 4 x 4 cells. A fixed matrix of random signs maps them to
    ``dim`` numbers; features have length 8. Images of any size are taken and averaged down to 64
    pixels.
    """

    projection: Tensor

    def __init__(self, dim: int = 256) -> None:
        projection = _random_signs(DESCRIPTOR_DIM, dim)
        super().__init__(
            identity={
                "name": "descriptor",
                "tag": f"image-{dim}-v{VERSION}",
                "sha256": state_dict_sha256({f"projection-v{VERSION}": projection}),
            },
            dim=dim,
            image_size=IMAGE_SIZE,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.register_buffer("projection", projection, persistent=False)
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, dim) of images (B, 3, H, W) in [0, 1]."""
        if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.adaptive_avg_pool2d(images, IMAGE_SIZE)
        blocks = [_outline(images), _edges(images), _colors(images)]
        described = torch.cat([_standardize(block) for block in blocks], dim=1)
        return SCALE * F.normalize(described @ self.projection, dim=1)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images have shape {tuple(images.shape)}: the descriptor takes (B, 3, H, W)."
            )


class DescriptorTextTeacher(TextTeacher):
    """Hashed character n-grams of a text.

    A sentence that is one of the 60 prompts is taken apart into template and name: the name's
    n-grams weigh 1, the template's 0.2, so that the prompts of a category differ a little and
    categories differ much. Features have length 8; a text without letters gives zeros.
    """

    def __init__(self, dim: int = 256) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        settings = f"text-{dim}-v{VERSION}|{NGRAM_RANGE}|{TEMPLATE_WEIGHT}|{SCALE}"
        super().__init__(
            identity={
                "name": "descriptor",
                "tag": f"text-{dim}-v{VERSION}",
                "sha256": hashlib.sha256(settings.encode()).hexdigest(),
            },
            dim=dim,
            precision="fp32",
        )
        self.vectorizer = HashingVectorizer(
            analyzer="char_wb", ngram_range=NGRAM_RANGE, n_features=dim, norm="l2"
        )
        self.freeze()

    def forward(self, texts: list[str]) -> Tensor:
        """Return features (T, dim) of texts."""
        templates, names = zip(*map(split_prompt, texts), strict=True)
        mixed = self._hash(names) + TEMPLATE_WEIGHT * self._hash(templates)
        return SCALE * F.normalize(mixed.to(self.device), dim=1)

    def _hash(self, texts: tuple[str, ...]) -> Tensor:
        spelled = [text.replace("_", " ") for text in texts]
        rows = self.vectorizer.transform(spelled).toarray()
        return torch.from_numpy(np.asarray(rows, dtype=np.float32))


def split_prompt(text: str) -> tuple[str, str]:
    """Return template and name of a prompt; another sentence is a name without template."""
    fitting = [suffix for suffix in SUFFIXES if text.endswith(suffix)]
    if not fitting:
        return "", text
    suffix = max(fitting, key=len)
    inner = text.removesuffix(suffix)
    prefix = max((p for p in PREFIXES if inner.startswith(p)), key=len)
    return prefix + suffix, inner.removeprefix(prefix)


def _random_signs(rows: int, columns: int) -> Tensor:
    """Return (rows, columns) of +-1 / sqrt(rows), from raw bits: the same in every version."""
    bits = np.random.PCG64(PROJECTION_SEED).random_raw(math.ceil(rows * columns / 64))
    signs = np.unpackbits(bits.astype("<u8").view(np.uint8))[: rows * columns]
    matrix = torch.from_numpy(signs.astype(np.float32)).reshape(rows, columns)
    return (2 * matrix - 1) / math.sqrt(rows)


def _standardize(block: Tensor) -> Tensor:
    """Remove the mean of each row of (B, X) and give it unit length (zeros stay zeros)."""
    return F.normalize(block - block.mean(dim=1, keepdim=True), dim=1, eps=1e-6)


def _outline(images: Tensor) -> Tensor:
    """Return the distance from the corners' colour, pooled: (B, 64)."""
    ends = (slice(0, 4), slice(-4, None))
    corners = torch.stack([images[..., y, x] for y in ends for x in ends])
    background = corners.mean(dim=(0, 3, 4)).reshape(-1, 3, 1, 1)
    distance = (images - background).abs().mean(dim=1, keepdim=True)
    # Saturates early, so that the shape counts and its shading hardly does.
    return F.avg_pool2d((distance * 8).clamp(max=1), IMAGE_SIZE // OUTLINE_CELLS).flatten(1)


def _edges(images: Tensor) -> Tensor:
    """Return the square root of the edge energy by orientation and cell: (B, 128)."""
    gray = images.mean(dim=1)
    inner = slice(2, IMAGE_SIZE - 2)  # 60 pixels: cells of 15 each
    dx = gray[:, inner, 3:-1] - gray[:, inner, 1:-3]
    dy = gray[:, 3:-1, inner] - gray[:, 1:-3, inner]
    energy = dx * dx + dy * dy + 1e-12
    # cos and sin of twice the gradient's angle, times the square root of its length: squared
    # below, an edge and its reverse count alike, by length.
    root = energy.pow(-0.75)
    double = torch.stack([(dx * dx - dy * dy) * root, 2 * dx * dy * root], dim=1).flatten(2)
    angles = torch.arange(ORIENTATIONS, device=images.device) * (math.tau / ORIENTATIONS)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    weighted = (directions @ double).clamp_(min=0).square_().unflatten(2, energy.shape[1:])
    return F.avg_pool2d(weighted, energy.shape[1] // EDGE_CELLS).flatten(1).sqrt()


def _colors(images: Tensor) -> Tensor:
    """Return mean and deviation of each channel in each cell: (B, 96)."""
    cell = IMAGE_SIZE // COLOR_CELLS
    mean, square = F.avg_pool2d(images, cell), F.avg_pool2d(images.square(), cell)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean, deviation], dim=1).flatten(1)
