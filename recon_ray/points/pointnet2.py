"""The operations of an installed ``pointnet2_ops``, under our names and layouts.

That package computes on CUDA float32 only, skips points near the origin in furthest point
sampling, and returns int32 indices. Each function here returns None where the package's result
would differ from ours; the caller then uses the reference.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

SKIPPED_SQ_NORM = 1e-3
"""The package never chooses a point whose squared norm is at or below this."""


def _functions() -> Any:  # noqa: ANN401  (an optional package without types)
    return import_module("pointnet2_ops.pointnet2_utils")


def _is_supported(*tensors: Tensor) -> bool:
    return all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in tensors)


def furthest_point_sample(
    xyz: Tensor, num_samples: int, *, start: Tensor | None, min_sq_norm: float
) -> Tensor | None:
    """Return (B, S) int64 indices; only with the package's own skip rule.

    The package starts at index 0: with another start its point changes places with the first one.
    Where no other point is left the start is repeated, if it is not skipped itself.
    """
    if not _is_supported(xyz) or min_sq_norm != SKIPPED_SQ_NORM:
        return None
    points, order = xyz.detach(), None
    if start is not None:
        first = start.to(torch.int64)[:, None]
        order = torch.arange(xyz.shape[1], device=xyz.device).repeat(len(xyz), 1)
        order[:, :1] = first
        order.scatter_(1, first, 0)
        points = points.gather(1, order[..., None].expand(-1, -1, 3))
    indices: Tensor = _functions().furthest_point_sample(points.contiguous(), num_samples)
    return indices.long() if order is None else order.gather(1, indices.long())


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return distances (B, N, 3) and int64 indices; only without gradient and with three points."""
    needs_gradient = unknown.requires_grad or known.requires_grad
    if not _is_supported(unknown, known) or needs_gradient or known.shape[1] < 3:
        return None
    distances, indices = _functions().three_nn(unknown.contiguous(), known.contiguous())
    return distances, indices.long()
