"""Masks that hide patches from the encoder: (B, G) bool, true where hidden.

All samples hide the same number M = int(ratio * G) of patches; visible and hidden patches keep
their index order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recon_ray.points import ops, random
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

    Arguments are those of :func:`random_mask`.
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
    """Check a mask made by the caller and return its number M of hidden patches.

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
    """Return the indices of visible (B, V) and hidden (B, M) patches, each in index order."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = mask.shape[1] - num_masked
    return order[:, :num_visible], order[:, num_visible:]


class SplitPatches(NamedTuple):
    """Patches of a cloud in two parts, each in index order.

    Attributes:
        mask: (B, G) bool, true where hidden.
        visible: (B, V, K, 3) patches that the encoder sees.
        visible_centers: (B, V, 3).
        hidden: (B, M, K, 3) patches to reconstruct.
        hidden_centers: (B, M, 3).
    """

    mask: Tensor
    visible: Tensor
    visible_centers: Tensor
    hidden: Tensor
    hidden_centers: Tensor


def hide_patches(
    patches: Tensor,
    centers: Tensor,
    *,
    mask: Tensor | None,
    mask_type: str,
    num_masked: int,
    source: RandomSource = None,
) -> SplitPatches:
    """Hide some patches from the encoder.

    Args:
        patches: (B, G, K, 3) patches.
        centers: (B, G, 3) their centers.
        mask: (B, G) bool to use in place of a random mask, true where hidden.
        mask_type: Key of :data:`MASKS`.
        num_masked: Number M of patches to hide where no mask is given.
        source: Random numbers.

    Raises:
        ValueError: If a given mask does not fit.
    """
    if mask is None:
        mask = MASKS[mask_type](centers, num_masked, source)
    else:
        num_masked = check_mask(mask, *centers.shape[:2])
    visible, hidden = split_by_mask(mask, num_masked)  # (B, V), (B, M)
    return SplitPatches(
        mask=mask,
        visible=_pick_patches(patches, visible),
        visible_centers=ops.gather_points(centers, visible),
        hidden=_pick_patches(patches, hidden),
        hidden_centers=ops.gather_points(centers, hidden),
    )


def count_masked(mask_ratio: float, mask_type: str, num_groups: int) -> int:
    """Return the number M of patches that a ratio hides, rounded down.

    Raises:
        ValueError: If the kind of mask is unknown, or all or no patches would be hidden.
    """
    num_masked = int(mask_ratio * num_groups)
    if not 0 < num_masked < num_groups:
        raise ValueError(
            f"mask_ratio must hide 1..{num_groups - 1} of num_groups={num_groups} patches, "
            f"found {num_masked}"
        )
    if mask_type not in MASKS:
        raise ValueError(f"mask_type must be one of {', '.join(MASKS)}, found {mask_type!r}")
    return num_masked


def _pick_patches(patches: Tensor, idx: Tensor) -> Tensor:
    """Pick (B, S) of (B, G, K, 3) patches: (B, S, K, 3)."""
    picked = ops.gather_points(patches.flatten(2), idx)
    return picked.view(*idx.shape, *patches.shape[2:])
