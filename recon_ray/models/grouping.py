"""Patches of a cloud and their embedding.

Patches are relative to their center and not rescaled; they may overlap. Unusual in the embedding:
in training its two batch norms use statistics over *all* patches, hidden ones included, while only
the visible ones are embedded. The sampling's skip rule (``min_sq_norm``) keeps centers away from
the origin, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ray.models.batch_norm import BatchNorm, BatchStatistics
from recon_ray.models.transformer import Checkpointing
from recon_ray.points import ops


def cut_patches(
    points: Tensor, num_groups: int, group_size: int, *, min_sq_norm: float = -1.0
) -> tuple[Tensor, Tensor]:
    """Cut clouds into patches around furthest-point centers.

    Args:
        points: (B, N, 3) points; half precision is promoted to float32.
        num_groups: Number G of patches.
        group_size: Number K of points in a patch; patches may overlap.
        min_sq_norm: Skip rule of the sampling; 1e-3 is the reference's.

    Returns:
        Patches (B, G, K, 3) relative to their center, and centers (B, G, 3) in sampling order.
    """
    patches, centers, _ = index_patches(points, num_groups, group_size, min_sq_norm=min_sq_norm)
    return patches, centers


def index_patches(
    points: Tensor, num_groups: int, group_size: int, *, min_sq_norm: float = -1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut patches as :func:`cut_patches` does; also return their points' indices (B, G, K)."""
    points = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
    _, centers = ops.furthest_point_sample(points, num_groups, min_sq_norm=min_sq_norm)
    patches, idx = ops.group_knn(points, centers, group_size)
    return patches, centers, idx


class _MaxOverPoints(torch.autograd.Function):
    """Maximum over dim 1; the gradient goes to the first of equal values, as with ``x.max``.

    Written so that a compiler fuses the gradient with its readers; that of ``x.max`` is filled with
    zeros and scattered into.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        values, idx = x.max(dim=1)
        ctx.save_for_backward(idx)
        ctx.size = x.shape[1]
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        (idx,) = ctx.saved_tensors
        positions = torch.arange(ctx.size, device=idx.device)[None, :, None]
        return torch.where(positions == idx[:, None], grads[0][:, None], 0.0)


def max_over_points(x: Tensor) -> Tensor:
    """Return the maximum (P, C) over the points of (P, K, C) patches."""
    if not torch.compiler.is_compiling():
        return x.max(dim=1).values
    return _MaxOverPoints.apply(x) if torch.is_grad_enabled() else _max_by_fours(x)


def _max_by_fours(x: Tensor) -> Tensor:
    """Return the maximum over dim 1, four entries at a time.

    A compiler turns so small reductions into plain reads of neighbouring channels, at the rate of
    the memory; one reduction over all points takes three times as long.
    """
    while (count := x.shape[1]) > 4 and count % 4 == 0:
        x = x.unflatten(1, (count // 4, 4)).amax(dim=2)
    return x.amax(dim=1)


def _narrow_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the rectified linear layer of few channels, without gradient.

    A compiler makes one pass of it, which only writes the result; as a product, the result is
    written, read, rectified and written again.
    """
    if not torch.compiler.is_compiling():
        return F.relu(F.linear(x, weight, bias), inplace=True)
    y = bias
    for channel, column in enumerate(weight.unbind(dim=1)):
        y = torch.addcmul(y, x[..., channel, None], column)
    return F.relu(y)


class PatchEmbed(Checkpointing):
    """Embedding of patches by a small point network with two max-pools (a mini-PointNet).

    The second stage of the original acts on [patch maximum, point feature] of every point; its
    first layer is evaluated here in two halves, once a patch and once a point, and its last layer
    only for the patches whose embedding is asked for. Both are exact.

    Args:
        embed_dim: Width D of the embedding.
        widths: Widths of the first stage's two layers and of the second stage's first layer.
        in_channels: Channels of a point.
    """

    def __init__(
        self, embed_dim: int, widths: Sequence[int] = (128, 256, 512), in_channels: int = 3
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.fc1 = nn.Linear(in_channels, first)
        self.norm1 = BatchNorm(first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(2 * second, third)
        self.norm2 = BatchNorm(third)
        self.fc4 = nn.Linear(third, embed_dim)

    def forward(self, patches: Tensor, context: Tensor | None = None) -> Tensor:
        """Embed ``patches``.

        Args:
            patches: (B, V, K, 3) patches to embed.
            context: (B, M, K, 3) further patches of the same clouds that enter the batch
                statistics in training, as masked patches do in the reference, and nothing else.

        Returns:
            (B, V, D).
        """
        batch, num_patches, group_size, channels = patches.shape
        flat = patches.reshape(-1, group_size, channels)  # (B V, K, 3)
        if not self.training:
            return self._by_running(flat).view(batch, num_patches, -1)
        keep = flat.shape[0]
        if context is not None:
            flat = torch.cat([flat, context.reshape(-1, group_size, channels)])  # (B (V + M), K, 3)
        x, first, second = self._call(self._by_batch, flat, keep)
        self.norm1.track(first)
        self.norm2.track(second)
        return max_over_points(x).view(batch, num_patches, -1)

    def _by_batch(
        self, flat: Tensor, keep: int
    ) -> tuple[Tensor, BatchStatistics | None, BatchStatistics | None]:
        """Embed the points of the first of (P, K, 3) patches: (keep, K, D), and the statistics.

        The maximum follows outside: its backward pass needs the places of the largest values only,
        so that checkpointing does not compute the last product again.
        """
        # Not in place: in place on a view, the backward pass copies the whole gradient three times.
        x, first = self.norm1.normalize(self.fc1(flat))
        x = self.fc2(F.relu(x))  # (P, K, second)
        pooled = max_over_points(x)  # (P, second)
        global_weight, point_weight = self.fc3.weight.split(pooled.shape[-1], dim=1)
        x = F.linear(x, point_weight) + F.linear(pooled, global_weight, self.fc3.bias)[:, None]
        x, second = self.norm2.normalize(x, keep)  # (keep, K, third)
        return self.fc4(F.relu(x)), first, second

    def _by_running(self, flat: Tensor) -> Tensor:
        """Embed (P, K, 3) patches with the running statistics, folded into the layers before."""
        scale, shift = self.norm1.affine()
        weight, bias = self.fc1.weight * scale[:, None], self.fc1.bias * scale + shift
        x = self.fc2(_narrow_layer(flat, weight, bias))
        pooled = max_over_points(x)
        scale, shift = self.norm2.affine()
        weight, bias = self.fc3.weight * scale[:, None], self.fc3.bias * scale + shift
        global_weight, point_weight = weight.split(pooled.shape[-1], dim=1)
        x = F.linear(x, point_weight) + F.linear(pooled, global_weight, bias)[:, None]
        return max_over_points(self.fc4(F.relu(x, inplace=True)))


class PositionEmbed(nn.Module):
    """Embedding of coordinates by a two-layer network."""

    def __init__(self, embed_dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, centers: Tensor) -> Tensor:
        """Embed (..., 3) coordinates as (..., D)."""
        return self.fc2(F.gelu(self.fc1(centers)))
