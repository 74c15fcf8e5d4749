"""Chamfer distance modules with the names that existing point cloud code uses."""

from __future__ import annotations

from torch import Tensor, nn

from recon_ops.operators import chamfer_distance, chamfer_loss


class _Chamfer(nn.Module):
    """A comparison of two clouds, optionally without the padding of a single one.

    Args:
        ignore_zeros: Whether points whose coordinates sum to 0 are left out of a batch of one.
    """

    def __init__(self, ignore_zeros: bool = False) -> None:
        super().__init__()
        self.ignore_zeros = ignore_zeros

    def _without_padding(self, *clouds: Tensor) -> tuple[Tensor, ...]:
        if not self.ignore_zeros or clouds[0].shape[0] != 1:
            return clouds
        return tuple(points[:, points[0].sum(1) != 0] for points in clouds)


class ChamferDistanceL2(_Chamfer):
    """Mean squared distance to the other set, of one direction plus that of the other."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare (B, n, 3) and (B, m, 3) points: ()."""
        return chamfer_loss(*self._without_padding(xyz1, xyz2), norm="l2")


class ChamferDistanceL1(_Chamfer):
    """Mean distance to the other set, averaged over both directions."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare (B, n, 3) and (B, m, 3) points: ()."""
        return chamfer_loss(*self._without_padding(xyz1, xyz2), norm="l1")


class ChamferDistanceL2_split(_Chamfer):  # noqa: N801 - the name is part of the interface
    """The two directions of :class:`ChamferDistanceL2`."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        """Compare (B, n, 3) and (B, m, 3) points: () each."""
        d_ab, d_ba, _, _ = chamfer_distance(*self._without_padding(xyz1, xyz2))
        return d_ab.mean(), d_ba.mean()
