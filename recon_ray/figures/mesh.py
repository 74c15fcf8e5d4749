"""Brings point clouds into the form that TensorBoard's mesh plugin takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

POINT_SIZE = 0.025  # of clouds in the unit sphere
DEFAULT_COLOR = (70, 110, 160)


def point_mesh(points: Tensor, colors: Tensor | None = None) -> dict[str, Any]:
    """Prepare point clouds for ``SummaryWriter.add_mesh(tag, **point_mesh(points))``.

    Args:
        points: (B, N, 3) or (N, 3) coordinates, on any device.
        colors: Same shape, uint8 RGB; one blue for all without.

    Returns:
        ``vertices`` (B, N, 3) float32, ``colors`` (B, N, 3) uint8, both on the CPU, and
        ``config_dict``, which makes the plugin draw points.

    Raises:
        ValueError: If the shapes do not fit or the colors are not uint8.
    """
    vertices = _batched(points).float()
    if colors is None:
        rgb = torch.tensor(DEFAULT_COLOR, dtype=torch.uint8).expand(vertices.shape).contiguous()
    else:
        rgb = _batched(colors)
    if rgb.shape != vertices.shape or rgb.dtype != torch.uint8:
        raise ValueError(
            f"colors are {rgb.dtype} of shape {tuple(rgb.shape)}: give uint8 of shape "
            f"{tuple(vertices.shape)}."
        )
    material = {"cls": "PointsMaterial", "size": POINT_SIZE}
    return {"vertices": vertices, "colors": rgb, "config_dict": {"material": material}}


def absolute_patches(patches: Tensor, centers: Tensor) -> Tensor:
    """Put center-relative patches where they belong in the cloud.

    Args:
        patches: (B, M, K, 3) points relative to their center.
        centers: (B, M, 3) centers.

    Returns:
        (B, M * K, 3) points.
    """
    return (patches + centers.unsqueeze(2)).flatten(1, 2)


def _batched(values: Tensor) -> Tensor:
    values = values.detach().cpu()
    if values.ndim == 2:
        values = values.unsqueeze(0)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"point clouds have shape {tuple(values.shape)}: give (B, N, 3).")
    return values
