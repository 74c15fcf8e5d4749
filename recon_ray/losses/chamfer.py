"""Chamfer distance of reconstructed patches."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_ray.points import ops


def chamfer(pred: Tensor, target: Tensor, *, squared: bool = True) -> Tensor:
    """Average the symmetric Chamfer distance over a batch of patches.

    Args:
        pred: (..., K, 3) reconstructed points, relative to the patch.
        target: (..., L, 3) true points in the same frame.
        squared: Use squared distances (the "l2" of the literature) if true, half the sum of plain
            ones ("l1") if not.

    Returns:
        () float32 (float64 for float64 points), whatever the precision of the model.

    Raises:
        ValueError: If the shapes do not fit.
    """
    pred, target = _flatten(pred), _flatten(target)
    with torch.autocast(pred.device.type, enabled=False):
        return ops.chamfer_loss(pred, target, norm="l2" if squared else "l1")


def _flatten(points: Tensor) -> Tensor:
    """Join the leading axes and promote to at least float32."""
    points = points.reshape(-1, *points.shape[-2:])
    return points if points.dtype == torch.float64 else points.float()
