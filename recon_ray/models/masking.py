"""Which patches are hidden from the encoder. A mask is (B, G) bool, true where hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_ray.points import random
from recon_ray.points.random import RandomSource


def random_mask(centers: Tensor, num_masked: int, source: RandomSource = None) -> Tensor:
    """Hide a uniformly random choice of ``num_masked`` patches, independent for each sample.

    Args:
        centers: (B, G, 3) patch centers.
        num_masked: Number M of patches to hide.
        source: Random numbers.
    """
    batch, num_groups, _ = centers.shape
    return random.permutation(source, num_groups, batch, device=centers.device) < num_masked


def block_mask(centers: Tensor, num_masked: int, source: RandomSource = None) -> Tensor:
    """Hide the ``num_masked`` patches nearest to a random one, itself included.

    Args:
        centers: (B, G, 3) patch centers.
        num_masked: Number M of patches to hide.
        source: Random numbers.
    """
    batch, num_groups, _ = centers.shape
    pick = random.randint(source, num_groups, batch, 1, device=centers.device)
    pivot = centers.gather(1, pick[..., None].expand(-1, -1, 3))  # (B, 1, 3)
    distance = (centers - pivot).square().sum(-1)
    nearest = distance.argsort(dim=1, stable=True)[:, :num_masked]
    mask = torch.zeros(batch, num_groups, dtype=torch.bool, device=centers.device)
    return mask.scatter(1, nearest, True)


MASKS = {"random": random_mask, "block": block_mask}
"""The kinds of masks by name."""


def check_mask(mask: Tensor, batch: int, num_groups: int) -> int:
    """Check a mask made by the caller and give its number M of hidden patches.

    Raises:
        ValueError: If shape or dtype differ, if the samples hide different numbers of patches,
            or if all or none are hidden.
    """
    if mask.shape != (batch, num_groups) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool of shape ({batch}, {num_groups}), found {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    counts = mask.sum(dim=1)
    low, high = int(counts.min()), int(counts.max())
    if low != high or not 0 < high < num_groups:
        raise ValueError(
            f"mask must hide the same number of patches, 1..{num_groups - 1}, in every sample, "
            f"found {low}..{high}"
        )
    return high


def split_by_mask(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Give the indices of visible (B, V) and hidden (B, M) patches, each in index order."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = mask.shape[1] - num_masked
    return order[:, :num_visible], order[:, num_visible:]
