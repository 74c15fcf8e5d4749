"""The operations of ``pointnet2_ops.pointnet2_utils`` with its names, layouts and quirks.

Features are channels-first (B, C, N), indices int32, and sampling skips points within 0.032 of the
origin. Gradients flow through features, not through indices and distances.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_ops import operators

_SKIPPED_SQ_NORM = 1e-3


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Choose ``npoint`` of (B, N, 3) points: (B, npoint) int32, repeating one beyond N."""
    available = min(npoint, xyz.shape[1])
    idx, _ = operators.furthest_point_sample(
        xyz.detach(), available, min_sq_norm=_SKIPPED_SQ_NORM, index_dtype=torch.int32
    )
    if npoint > available:
        # All distances are 0 then, and the first point that is not skipped is the furthest.
        eligible = xyz.float().square().sum(-1) > _SKIPPED_SQ_NORM
        again = eligible.int().argmax(1, keepdim=True).to(torch.int32)
        idx = torch.cat([idx, again.expand(-1, npoint - available)], dim=1)
    return idx


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Pick columns of (B, C, N) features by (B, npoint) indices: (B, C, npoint)."""
    return operators.gather_points(features.transpose(1, 2), idx).transpose(1, 2).contiguous()


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Pick columns of (B, C, N) features by (B, npoint, nsample): (B, C, npoint, nsample)."""
    return operators.group_points(features.transpose(1, 2), idx).permute(0, 3, 1, 2).contiguous()


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """Find the first ``nsample`` points within ``radius`` of (B, npoint, 3) centers, int32."""
    idx, _ = operators.ball_query(
        xyz.detach(), new_xyz.detach(), radius, nsample, index_dtype=torch.int32
    )
    return idx


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three (B, m, 3) known points nearest to each (B, n, 3) unknown one.

    Returns:
        Distances (B, n, 3), not squared, and int32 indices. Where fewer than three are known the
        missing slots have index 0.
    """
    dist, idx = operators.three_nn(unknown.detach(), known.detach(), index_dtype=torch.int32)
    if known.shape[1] < 3:
        idx[..., known.shape[1] :] = 0
    return dist, idx


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend three columns of (B, C, m) features by (B, n, 3) indices and weights: (B, C, n)."""
    blended = operators.three_interpolate(features.transpose(1, 2), idx, weight)
    return blended.transpose(1, 2).contiguous()


class QueryAndGroup(nn.Module):
    """Group points and features around centers by a ball query.

    Args:
        radius: Exclusive radius of the ball.
        nsample: Number of points in a group.
        use_xyz: Whether the relative coordinates are part of the result.
    """

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True) -> None:
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """Give (B, 3 + C, npoint, nsample) for (B, N, 3), (B, npoint, 3) and (B, C, N)."""
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        if features is None:
            if not self.use_xyz:
                raise ValueError("features must be given when use_xyz is False, found None")
            return self._relative(xyz, new_xyz, idx)
        grouped = grouping_operation(features, idx)
        if not self.use_xyz:
            return grouped
        return torch.cat([self._relative(xyz, new_xyz, idx), grouped], dim=1)

    def _relative(self, xyz: Tensor, new_xyz: Tensor, idx: Tensor) -> Tensor:
        grouped = operators.group_points(xyz, idx) - new_xyz[:, :, None]
        return grouped.permute(0, 3, 1, 2).contiguous()


class GroupAll(nn.Module):
    """Make one group of all points.

    Args:
        use_xyz: Whether the coordinates are part of the result.
    """

    def __init__(self, use_xyz: bool = True) -> None:
        super().__init__()
        self.use_xyz = use_xyz

    def forward(
        self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None
    ) -> Tensor:
        """Give (B, 3 + C, 1, N) for (B, N, 3) and (B, C, N); ``new_xyz`` is not used."""
        columns = xyz.transpose(1, 2)[:, :, None]
        if features is None:
            return columns
        return (
            torch.cat([columns, features[:, :, None]], 1) if self.use_xyz else features[:, :, None]
        )
