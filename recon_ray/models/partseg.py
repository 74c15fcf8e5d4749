"""Part segmentation: a label for every point of a cloud whose category is known.

Patches are read after several blocks, each time through the encoder's one final norm; the tokens
enter as their maximum *without* that norm. The learning rate of parameter groups follows names:
:func:`is_part_head_parameter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ray.models.batch_norm import BatchNorm
from recon_ray.models.cloud import EncoderModel
from recon_ray.models.heads import drop_units
from recon_ray.models.initialization import init_part_segmenter
from recon_ray.points import ops
from recon_ray.points.random import RandomSource


class PartFeatures(NamedTuple):
    """Input of the part head.

    Attributes:
        patches: (B, G, F D) normalized patches after the F chosen blocks, side by side.
        token: (B, D) maximum over the three tokens of the last block, not normalized.
        centers: (B, G, 3) patch centers.
    """

    patches: Tensor
    token: Tensor
    centers: Tensor


class CategoryEmbed(nn.Module):
    """Embedding of the category of a shape."""

    def __init__(self, num_categories: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(num_categories, width, bias=False)
        self.norm = BatchNorm(width)

    def forward(self, category: Tensor) -> Tensor:
        """Map (B,) category indices to (B, width)."""
        # For a one-hot vector the layer returns a row of its transposed weight.
        return F.leaky_relu(self.norm(self.fc.weight.T[category]), 0.2)


class FeaturePropagation(nn.Module):
    """Interpolation of the patches' features at the points, by the three nearest centers of each.

    The first layer is linear and the three weights of a point sum to 1, so that it is evaluated
    once a patch and interpolated after that: exact, and with N / G times less work.

    Args:
        in_dim: Width of the patches' features.
        widths: Widths of the two layers.
    """

    def __init__(self, in_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        first, second = widths
        self.fc1 = nn.Linear(3 + in_dim, first)
        self.norm1 = BatchNorm(first)
        self.fc2 = nn.Linear(first, second)
        self.norm2 = BatchNorm(second)

    def forward(self, points: Tensor, centers: Tensor, x: Tensor) -> Tensor:
        """Map (B, G, in_dim) at (B, G, 3) centers to (B, N, width) at (B, N, 3) points."""
        distances, idx = ops.three_nn(points, centers)  # (B, N, 3) each
        weights = 1.0 / (distances.square() + 1e-8)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        point_weight, patch_weight = self.fc1.weight.split([3, x.shape[-1]], dim=1)
        x = ops.three_interpolate(F.linear(x, patch_weight), idx, weights)  # (B, N, first)
        x = x + F.linear(points, point_weight, self.fc1.bias)
        x = F.relu(self.norm1(x))
        return F.relu(self.norm2(self.fc2(x)))


class PartHead(nn.Module):
    """Classifier of points by their own features and those of the whole shape.

    Args:
        point_dim: Width of a point's features.
        global_dim: Width of the shape's features.
        widths: Widths of the two hidden layers.
        dropout: Part of the first hidden layer's units that is dropped in training.
    """

    def __init__(
        self, point_dim: int, global_dim: int, widths: Sequence[int], num_parts: int, dropout: float
    ) -> None:
        super().__init__()
        first, second = widths
        self.dropout = dropout
        self.fc1 = nn.Linear(point_dim + global_dim, first)
        self.norm1 = BatchNorm(first)
        self.fc2 = nn.Linear(first, second)
        self.norm2 = BatchNorm(second)
        self.fc3 = nn.Linear(second, num_parts)

    def forward(self, x: Tensor, shape: Tensor, source: RandomSource = None) -> Tensor:
        """Return (B, N, parts) logits of (B, N, point_dim) features and (B, global_dim) ones."""
        # The first layer acts on both side by side; the shape's half is evaluated once a shape.
        point_weight, shape_weight = self.fc1.weight.split([x.shape[-1], shape.shape[-1]], dim=1)
        x = F.linear(x, point_weight) + F.linear(shape, shape_weight, self.fc1.bias)[:, None]
        x = F.relu(self.norm1(x))
        x = drop_units(x, self.dropout, source, enabled=self.training)
        x = F.relu(self.norm2(self.fc2(x)))
        return self.fc3(x)


def is_part_head_parameter(name: str) -> bool:
    """Return whether a parameter is in the group that learns ten times as fast (published rule).

    These are the layers that the published model names after convolutions, and the batch norm of
    the category; the other batch norms are not. Prefixes of wrappers make no difference.
    """
    parts = name.split(".")
    in_head = "propagation" in parts or "part_head" in parts
    return "category" in parts or (in_head and parts[-2].startswith("fc"))


class PartSegmenter(EncoderModel):
    """Labels of the points of clouds: parts of their category.

    Args:
        num_parts: Number of parts over all categories.
        num_categories: Number of categories.
        feature_blocks: Blocks whose patches are read; by default those that end the thirds of the
            depth (3, 7, 11 of 12).
        category_dim: Width of the category's embedding.
        propagation_widths: Widths of the layers that carry features to the points.
        head_widths: Widths of the hidden layers of the head.
        dropout: Dropout in the head.
        init: ``scratch`` or ``reference``, see :mod:`recon_ray.models.initialization`.
        others: Sizes, see :class:`~recon_ray.models.cloud.EncoderModel`.

    Raises:
        ValueError: If the sizes do not fit each other, or a name is unknown.
    """

    recomputes_embedding = True

    def __init__(
        self,
        *,
        num_parts: int = 50,
        num_categories: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 128,
        group_size: int = 32,
        drop_path: float = 0.1,
        feature_blocks: Sequence[int] | None = None,
        category_dim: int = 64,
        propagation_widths: Sequence[int] = (1536, 1024),
        head_widths: Sequence[int] = (512, 256),
        dropout: float = 0.5,
        init: str = "scratch",
        patch_widths: Sequence[int] = (128, 256, 512),
        fps_min_sq_norm: float = -1.0,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            patch_widths=patch_widths,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.num_parts, self.num_categories = num_parts, num_categories
        self.feature_blocks = _feature_blocks(feature_blocks, depth)
        width = len(self.feature_blocks) * embed_dim
        self.category = CategoryEmbed(num_categories, category_dim)
        self.propagation = FeaturePropagation(width, propagation_widths)
        global_dim = 2 * width + embed_dim + category_dim
        self.part_head = PartHead(
            propagation_widths[1], global_dim, head_widths, num_parts, dropout
        )
        init_part_segmenter(self, init)

    def encode_parts(self, points: Tensor, source: RandomSource = None) -> PartFeatures:
        """Encode (B, N, 3) clouds for :meth:`forward_head`."""
        patches, centers = self._cut(points)
        numbers = self._drop_numbers(source, points, self.encoder.drop_rates.shape[0])
        queries, _, kept = self.encoder.forward_blocks(
            patches, centers, drop_numbers=numbers, keep=self.feature_blocks
        )
        x = torch.cat([self.encoder.norm(part) for part in kept], dim=-1)  # (B, G, F D)
        return PartFeatures(x, queries.amax(dim=1), centers)

    def forward_head(
        self,
        features: PartFeatures,
        points: Tensor,
        category: Tensor,
        source: RandomSource = None,
    ) -> Tensor:
        """Return log-probabilities (B, N, parts) of the points.

        Args:
            features: Of :meth:`encode_parts`.
            points: (B, N, 3) the clouds.
            category: (B,) int64 category of each cloud.
            source: Random numbers of dropout.
        """
        x = features.patches
        category_feature = self.category(category)
        shape = torch.cat([x.amax(dim=1), x.mean(dim=1), features.token, category_feature], dim=-1)
        propagated = self.propagation(points, features.centers, x)  # (B, N, width)
        return F.log_softmax(self.part_head(propagated, shape, source).float(), dim=-1)

    def forward(self, points: Tensor, category: Tensor, source: RandomSource = None) -> Tensor:
        """Return log-probabilities (B, N, parts) of the points of (B, N, 3) clouds.

        Args:
            points: (B, N, 3) clouds.
            category: (B,) int64 category of each cloud.
            source: Random numbers of stochastic depth and dropout.
        """
        return self.forward_head(self.encode_parts(points, source), points, category, source)


def _feature_blocks(blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if blocks is None:
        return tuple(sorted({max(depth * third // 3 - 1, 0) for third in (1, 2, 3)}))
    if not blocks or sorted({*blocks}) != list(blocks) or not 0 <= blocks[0] <= blocks[-1] < depth:
        raise ValueError(
            f"feature_blocks must be rising numbers in 0..{depth - 1} (depth), found {list(blocks)}"
        )
    return tuple(blocks)
