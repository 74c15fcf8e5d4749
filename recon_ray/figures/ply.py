"""Writes point clouds as PLY files, which every 3D viewer opens."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = Tensor | npt.NDArray


def write_ply(path: Path | str, points: Array, colors: Array | None = None) -> Path:
    """Write one point cloud as a binary little-endian PLY file.

    Args:
        path: File to write; its folder is made.
        points: (N, 3) coordinates; any leading axes are flattened.
        colors: Same shape; RGB as uint8, or floating point in [0, 1].

    Returns:
        The path.

    Raises:
        ValueError: If the shapes do not fit.
    """
    xyz = to_points(points)
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    header = ["property float x", "property float y", "property float z"]
    if colors is not None:
        fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
        header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    vertices = np.empty(len(xyz), dtype=fields)
    for axis, name in enumerate("xyz"):
        vertices[name] = xyz[:, axis]
    if colors is not None:
        rgb = to_colors(colors, len(xyz))
        for channel, name in enumerate(("red", "green", "blue")):
            vertices[name] = rgb[:, channel]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}", *header]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + vertices.tobytes())
    return path


def to_points(points: Array) -> npt.NDArray[np.float32]:
    """Bring points (..., 3) on any device to a NumPy array (N, 3) float32.

    Raises:
        ValueError: If the last axis is not three long.
    """
    array = to_numpy(points)
    if array.ndim < 2 or array.shape[-1] != 3:
        raise ValueError(f"points have shape {array.shape}: give (..., 3).")
    return array.reshape(-1, 3).astype(np.float32)


def to_colors(colors: Array, count: int) -> npt.NDArray[np.uint8]:
    """Bring colors (..., 3), uint8 or floating point in [0, 1], to a NumPy array (N, 3) uint8.

    Raises:
        ValueError: If there are not ``count`` of them.
    """
    array = to_numpy(colors)
    if array.shape[-1:] != (3,) or array.size != 3 * count:
        raise ValueError(f"colors have shape {array.shape}: give RGB for each of {count} points.")
    if array.dtype != np.uint8:
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return array.reshape(-1, 3)


def to_numpy(values: Array) -> npt.NDArray:
    """Bring values on any device to a NumPy array; bfloat16 becomes float32."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
