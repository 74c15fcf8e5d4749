"""The public operations: check the arguments, then call the compiled operators.

Shapes: B clouds, N points, S queries or samples, G centers, K neighbors, C channels. Coordinates in
half precision are computed in float32; mixed dtypes are promoted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon_ops import _register  # noqa: F401 - the operators do not exist before
from recon_ops._check import (
    check_count,
    check_features,
    check_index_dtype,
    check_indices,
    check_points,
    check_together,
)

_ops = torch.ops.recon_ops


def _geometry(*points: Tensor) -> tuple[Tensor, ...]:
    """Bring coordinates to one dtype, at least float32, and make them contiguous."""
    dtype = torch.float32
    for value in points:
        dtype = torch.promote_types(dtype, value.dtype)
    return tuple(value.to(dtype).contiguous() for value in points)


def _check_pair(first: str, a: Tensor, second: str, b: Tensor) -> None:
    check_points(first, a)
    check_points(second, b)
    check_together(first, a, second, b)


def furthest_point_sample(
    xyz: Tensor,
    num_samples: int,
    *,
    start: Tensor | None = None,
    min_sq_norm: float = -1.0,
    index_dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """Choose points one after the other, each the furthest from those already chosen.

    Args:
        xyz: (B, N, 3) points.
        num_samples: Number S of points to choose, at most N.
        start: (B,) index of the first point; 0 by default.
        min_sq_norm: Points with a squared norm at or below this are never chosen, except as the
            start. The default skips none; 1e-3 is the rule of ``pointnet2_ops``. When no other
            point is left index 0 is repeated.
        index_dtype: int64 or int32.

    Returns:
        Indices (B, S) in the order of choice, and the points (B, S, 3) in the dtype of ``xyz``,
        which are differentiable. Points that are not finite are never chosen, except as the start.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape, size or device does not fit.
        IndexError: If ``start`` is out of range (checked on the CPU only).
    """
    check_points("xyz", xyz)
    check_count("num_samples", num_samples, "points in xyz", xyz.shape[1])
    check_index_dtype(index_dtype)
    if start is not None:
        check_indices("start", start, 1, xyz.shape[1])
        check_together("xyz", xyz, "start", start)
        start = start.to(torch.int64).contiguous()
    (points,) = _geometry(xyz)
    idx, sampled = _ops.furthest_point_sample(points, num_samples, start, float(min_sq_norm))
    return idx.to(index_dtype), sampled.to(xyz.dtype)


def knn(
    xyz: Tensor,
    query: Tensor,
    k: int,
    *,
    sorted: bool = True,
    index_dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest points of each query.

    Args:
        xyz: (B, N, 3) points.
        query: (B, S, 3) query points.
        k: Number K of neighbors, at most N.
        sorted: Whether the neighbors must be in ascending order.
        index_dtype: int64 or int32.

    Returns:
        Squared distances (B, S, K), differentiable, and indices (B, S, K). Equal distances go to
        the lowest index, NaN distances last.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape, size or device does not fit.
    """
    _check_pair("xyz", xyz, "query", query)
    check_count("k", k, "points in xyz", xyz.shape[1])
    check_index_dtype(index_dtype)
    sq_dist, idx = _ops.knn(*_geometry(xyz, query), k, sorted)
    return sq_dist, idx.to(index_dtype)


def group_knn(
    xyz: Tensor,
    centers: Tensor,
    k: int,
    *,
    features: Tensor | None = None,
    index_dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """Cut the patch of the ``k`` nearest points around each center.

    Args:
        xyz: (B, N, 3) points.
        centers: (B, G, 3) centers.
        k: Number K of points in a patch, at most N.
        features: (B, N, C) features to append, or None.
        index_dtype: int64 or int32.

    Returns:
        Patches (B, G, K, 3 + C), differentiable, with coordinates relative to the center, and
        indices (B, G, K).

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape, size or device does not fit.
    """
    _check_pair("xyz", xyz, "centers", centers)
    check_count("k", k, "points in xyz", xyz.shape[1])
    check_index_dtype(index_dtype)
    if features is not None:
        check_features("features", features)
        check_together("xyz", xyz, "features", features)
        if features.shape[1] != xyz.shape[1]:
            raise ValueError(
                f"features has {features.shape[1]} rows but xyz has {xyz.shape[1]} points"
            )
    patches, idx = _ops.group_knn(*_geometry(xyz, centers), k)
    patches = patches.to(torch.promote_types(xyz.dtype, centers.dtype))
    if features is not None:
        grouped = _ops.group_points(features.contiguous(), idx)
        patches = torch.cat([patches, grouped.to(patches.dtype)], dim=-1)
    return patches, idx.to(index_dtype)


def sample_and_group(
    xyz: Tensor, num_groups: int, k: int, *, min_sq_norm: float = -1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose centers by furthest point sampling and cut a patch around each.

    Args:
        xyz: (B, N, 3) points.
        num_groups: Number G of centers.
        k: Number K of points in a patch.
        min_sq_norm: See :func:`furthest_point_sample`.

    Returns:
        Patches (B, G, K, 3), their indices (B, G, K), centers (B, G, 3) and their indices (B, G).
    """
    center_idx, centers = furthest_point_sample(xyz, num_groups, min_sq_norm=min_sq_norm)
    patches, idx = group_knn(xyz, centers, k)
    return patches, idx, centers, center_idx


def ball_query(
    xyz: Tensor,
    query: Tensor,
    radius: float,
    max_neighbors: int,
    *,
    nearest: bool = False,
    index_dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """Find points closer than ``radius`` to each query.

    Args:
        xyz: (B, N, 3) points.
        query: (B, S, 3) query points.
        radius: Exclusive distance, above 0.
        max_neighbors: Number K of index slots.
        nearest: Take the closest points, sorted, instead of the first ones in index order.
        index_dtype: int64 or int32.

    Returns:
        Indices (B, S, K) and the number found (B, S), at most K. Free slots repeat the first hit;
        a query without any gets zeros.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape, size or device does not fit.
    """
    _check_pair("xyz", xyz, "query", query)
    check_index_dtype(index_dtype)
    if max_neighbors < 1:
        raise ValueError(f"max_neighbors must be at least 1, found {max_neighbors}")
    if not radius > 0:
        raise ValueError(f"radius must be above 0, found {radius}")
    points, queries = _geometry(xyz, query)
    idx, count = _ops.ball_query(points, queries, float(radius), max_neighbors, nearest)
    return idx.to(index_dtype), count.to(index_dtype)


def gather_points(features: Tensor, idx: Tensor) -> Tensor:
    """Pick rows of (B, N, C) features by (B, S) indices: (B, S, C), differentiable.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape or device does not fit.
        IndexError: If an index is out of range (checked on the CPU only).
    """
    check_features("features", features)
    check_indices("idx", idx, 2, features.shape[1])
    check_together("features", features, "idx", idx)
    return _ops.gather_points(features.contiguous(), idx.contiguous())


def group_points(features: Tensor, idx: Tensor) -> Tensor:
    """Pick rows of (B, N, C) features by (B, S, K) indices: (B, S, K, C), differentiable.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape or device does not fit.
        IndexError: If an index is out of range (checked on the CPU only).
    """
    check_features("features", features)
    check_indices("idx", idx, 3, features.shape[1])
    check_together("features", features, "idx", idx)
    return _ops.group_points(features.contiguous(), idx.contiguous())


def three_nn(
    unknown: Tensor, known: Tensor, *, index_dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor]:
    """Find the three known points nearest to each unknown one.

    Args:
        unknown: (B, N, 3) points.
        known: (B, M, 3) points.
        index_dtype: int64 or int32.

    Returns:
        Distances (B, N, 3), not squared and differentiable with gradient 0 at 0, and indices
        (B, N, 3). With fewer than three known points the missing slots repeat the nearest at an
        infinite distance.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape or device does not fit.
    """
    _check_pair("unknown", unknown, "known", known)
    check_index_dtype(index_dtype)
    dist, idx = _ops.three_nn(*_geometry(unknown, known))
    return dist, idx.to(index_dtype)


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend three rows of features.

    Args:
        features: (B, M, C) features.
        idx: (B, N, 3) row indices.
        weight: (B, N, 3) weights, taken in the dtype of the features.

    Returns:
        (B, N, C), differentiable in the features and the weights.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape or device does not fit.
        IndexError: If an index is out of range (checked on the CPU only).
    """
    check_features("features", features)
    check_features("weight", weight)
    check_indices("idx", idx, 3, features.shape[1])
    check_together("features", features, "idx", idx)
    check_together("features", features, "weight", weight)
    if idx.shape[-1] != 3 or weight.shape != idx.shape:
        raise ValueError(
            f"idx and weight must both have shape (B, N, 3), found {tuple(idx.shape)} and "
            f"{tuple(weight.shape)}"
        )
    weight = weight.to(features.dtype).contiguous()
    return _ops.three_interpolate(features.contiguous(), idx.contiguous(), weight)


def chamfer_distance(
    a: Tensor, b: Tensor, *, index_dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the squared distance of each point to the nearest point of the other set.

    Args:
        a: (B, n, 3) points.
        b: (B, m, 3) points.
        index_dtype: int64 or int32.

    Returns:
        ``d_ab`` (B, n) and ``d_ba`` (B, m), squared and differentiable in both sets, and the
        indices of the nearest points ``i_ab`` (B, n) and ``i_ba`` (B, m).

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape or device does not fit.
    """
    _check_pair("a", a, "b", b)
    check_index_dtype(index_dtype)
    d_ab, d_ba, i_ab, i_ba = _ops.chamfer_distance(*_geometry(a, b))
    return d_ab, d_ba, i_ab.to(index_dtype), i_ba.to(index_dtype)


def chamfer_loss(pred: Tensor, target: Tensor, *, norm: str = "l2") -> Tensor:
    """Average the symmetric Chamfer distance over a batch of point sets.

    The forward pass computes the gradients of the inputs that require one too, so that the backward
    pass is one multiplication.

    Args:
        pred: (B, n, 3) points.
        target: (B, m, 3) points.
        norm: "l2" is mean(d_ab) + mean(d_ba) of squared distances; "l1" is half the sum of the
            means of plain distances, with gradient 0 where two points coincide.

    Returns:
        () in float32, or float64 for float64 points.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If a shape, device or the norm does not fit.
    """
    _check_pair("pred", pred, "target", target)
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm must be 'l1' or 'l2', found {norm!r}")
    points = _geometry(pred, target)
    needs = (torch.is_grad_enabled() and value.requires_grad for value in points)
    return _ops.chamfer_loss_forward(*points, norm == "l2", *needs)[0]
