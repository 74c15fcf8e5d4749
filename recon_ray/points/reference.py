"""The point operations in plain torch: the specification of every other backend.

Everything here runs on any device, takes float16, bfloat16, float32 and float64, computes distances
as a sum of squared differences in at least float32, resolves ties to the lowest index, and keeps
temporaries under 256 MiB by working in pieces. Arguments are checked in
:mod:`recon_ray.points.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_MAX_ELEMENTS = (
    256 << 20
) // 32  # elements of a distance block; about 32 bytes of temporaries each


def _coordinates(points: Tensor) -> Tensor:
    """Promote half precision to float32; geometry is never computed in less."""
    return points.float() if points.dtype in (torch.float16, torch.bfloat16) else points


def _slices(total: int, size: int) -> Iterator[slice]:
    """Cut ``range(total)`` into slices of at most ``size`` (at least 1) items."""
    step = max(size, 1)
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return (B, n, m) squared distances between (B, n, 3) and (B, m, 3), axis after axis."""
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    for axis in range(a.shape[-1]):
        difference = a[:, :, None, axis] - b[:, None, :, axis]
        total = difference.square_() if axis == 0 else total.addcmul_(difference, difference)
    return total


def furthest_point_sample(
    xyz: Tensor, num_samples: int, *, start: Tensor | None = None, min_sq_norm: float = -1.0
) -> tuple[Tensor, Tensor]:
    """Choose points one after the other, each the furthest from those already chosen.

    Args:
        xyz: (B, N, 3) points.
        num_samples: Number S of points to choose.
        start: (B,) index of the first point; 0 by default.
        min_sq_norm: Points with a squared norm at or below this are never chosen, except as the
            start. The default skips none; 1e-3 is the rule of ``pointnet2_ops``, which the
            published weights were trained with. When no other point is left index 0 is repeated.

    Returns:
        Indices (B, S) int64 in the order of choice, and the points (B, S, 3), which are
        differentiable. Points that are not finite are never chosen, except as the start.
    """
    indices = _furthest_indices(_coordinates(xyz.detach()), num_samples, start, min_sq_norm)
    return indices, gather_points(xyz, indices)


def _furthest_indices(
    xyz: Tensor, num_samples: int, start: Tensor | None, min_sq_norm: float
) -> Tensor:
    eligible = xyz.isfinite().all(-1) & (xyz.square().sum(-1) > min_sq_norm)  # (B, N)
    # One contiguous row per axis: every update below is then a plain vector operation.
    axes = xyz.nan_to_num(0.0, 0.0, 0.0).permute(2, 0, 1).contiguous()  # (3, B, N)
    nearest = torch.full_like(axes[0], -1.0).masked_fill_(eligible, float("inf"))  # (B, N)
    difference, distance = torch.empty_like(axes), torch.empty_like(nearest)
    indices = torch.zeros(xyz.shape[0], num_samples, dtype=torch.int64, device=xyz.device)
    chosen = indices[:, :1] if start is None else start.to(torch.int64)[:, None]
    indices[:, :1] = chosen
    for step in range(1, num_samples):
        torch.sub(axes, axes.gather(2, chosen.expand(3, -1, -1)), out=difference)
        torch.mul(difference[0], difference[0], out=distance)
        distance.addcmul_(difference[1], difference[1]).addcmul_(difference[2], difference[2])
        torch.minimum(nearest, distance, out=nearest)
        chosen = nearest.argmax(1, keepdim=True)  # the first of equals
        indices[:, step : step + 1] = chosen
    return indices


def _smallest(distances: Tensor, k: int) -> Tensor:
    """Return (..., k) indices of the smallest of (..., N) distances, ties to the lowest index."""
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    # The bits of non-negative floats order like integers (NaN last), so distance and index make one
    # key.
    index = torch.arange(distances.shape[-1], device=distances.device)
    key = distances.nan_to_num(float("nan"), float("inf")).view(torch.int32).to(torch.int64)
    key = key.bitwise_left_shift_(32).bitwise_or_(index)
    return key.topk(k, dim=-1, largest=False).values & 0xFFFFFFFF


def _by_blocks(xyz: Tensor, query: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``rule`` to the (b, s, N) squared distances of blocks; join its (b, s, k) results."""
    cloud, points = _coordinates(xyz.detach()), _coordinates(query.detach())
    if cloud.shape[0] == 0:
        return rule(_squared_distances(points, cloud))
    num_points = cloud.shape[1]
    batches = []
    for batch in _slices(cloud.shape[0], _MAX_ELEMENTS // (num_points * points.shape[1])):
        rows = _slices(points.shape[1], _MAX_ELEMENTS // num_points)
        blocks = [rule(_squared_distances(points[batch, row], cloud[batch])) for row in rows]
        batches.append(torch.cat(blocks, dim=1))
    return torch.cat(batches)


def knn(xyz: Tensor, query: Tensor, k: int, *, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest points of each query.

    Args:
        xyz: (B, N, 3) points.
        query: (B, S, 3) query points.
        k: Number of neighbors, at most N.
        sorted: Accepted for the faster backends; the result is always sorted here.

    Returns:
        Squared distances (B, S, k), ascending and differentiable, and indices (B, S, k) int64.
        Equal distances go to the lowest index, NaN distances last.
    """
    indices = _by_blocks(xyz, query, lambda distances: _smallest(distances, k))
    neighbors = _coordinates(group_points(xyz, indices))
    return (neighbors - _coordinates(query)[:, :, None]).square().sum(-1), indices


def group_knn(
    xyz: Tensor, centers: Tensor, k: int, *, features: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cut the patch of the ``k`` nearest points around each center.

    Args:
        xyz: (B, N, 3) points.
        centers: (B, G, 3) centers.
        k: Number of points in a patch.
        features: (B, N, C) features to append, or None.

    Returns:
        Patches (B, G, k, 3 + C) with coordinates relative to the center, and indices (B, G, k).
    """
    indices = _by_blocks(xyz, centers, lambda distances: _smallest(distances, k))
    patches = group_points(xyz, indices) - centers[:, :, None]  # (B, G, K, 3)
    if features is not None:
        patches = torch.cat([patches, group_points(features, indices).to(patches.dtype)], dim=-1)
    return patches, indices


def ball_query(
    xyz: Tensor, query: Tensor, radius: float, max_neighbors: int, *, nearest: bool = False
) -> tuple[Tensor, Tensor]:
    """Find points closer than ``radius`` to each query.

    Args:
        xyz: (B, N, 3) points.
        query: (B, S, 3) query points.
        radius: Exclusive distance.
        max_neighbors: Number of index slots.
        nearest: Take the closest points, sorted, instead of the first ones in index order.

    Returns:
        Indices (B, S, max_neighbors) int64 and the number found (B, S) int64. Free slots
        repeat the first hit; a query without any gets zeros.
    """
    num_points = xyz.shape[1]
    slots = min(max_neighbors, num_points)

    def rule(distances: Tensor) -> Tensor:
        hit = distances < radius * radius
        if nearest:
            order = _smallest(distances.masked_fill(~hit, float("inf")), slots)
            return order.masked_fill(~hit.gather(-1, order), num_points)
        index = torch.arange(num_points, device=distances.device)
        return torch.where(hit, index, num_points).topk(slots, dim=-1, largest=False).values

    found = _by_blocks(xyz, query, rule)  # (B, S, slots); N stands for none
    count = (found < num_points).sum(-1)
    first = torch.where(count > 0, found[..., 0], 0)[..., None]
    indices = first.expand(*first.shape[:-1], max_neighbors).clone()
    indices[..., :slots] = torch.where(found < num_points, found, first)
    return indices, count


def gather_points(features: Tensor, idx: Tensor) -> Tensor:
    """Pick rows of (B, N, C) features by (B, S) indices: (B, S, C), differentiable."""
    batch, num_points, channels = features.shape
    offsets = torch.arange(batch, device=idx.device)[:, None] * num_points
    rows = (idx.to(torch.int64) + offsets).flatten()
    picked = features.reshape(batch * num_points, channels).index_select(0, rows)
    return picked.view(batch, idx.shape[1], channels)


def group_points(features: Tensor, idx: Tensor) -> Tensor:
    """Pick rows of (B, N, C) features by (B, S, K) indices: (B, S, K, C), differentiable."""
    batch, num_queries, k = idx.shape
    picked = gather_points(features, idx.reshape(batch, num_queries * k))
    return picked.view(batch, num_queries, k, features.shape[-1])


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three known points nearest to each unknown one.

    Args:
        unknown: (B, N, 3) points.
        known: (B, M, 3) points.

    Returns:
        Distances (B, N, 3), not squared, and indices (B, N, 3) int64. With fewer than three known
        points the missing slots repeat the nearest at an infinite distance.
    """
    available = min(3, known.shape[1])
    squared, indices = knn(known, unknown, available)
    distances = _safe_sqrt(squared)
    if available < 3:
        missing = 3 - available
        indices = torch.cat([indices, indices[..., :1].expand(-1, -1, missing)], dim=-1)
        infinite = torch.full_like(distances[..., :1], float("inf"))
        distances = torch.cat([distances, infinite.expand(-1, -1, missing)], dim=-1)
    return distances, indices


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend three rows of (B, M, C) features by (B, N, 3) indices and weights: (B, N, C)."""
    return (group_points(features, idx) * weight.to(features.dtype)[..., None]).sum(2)


def _safe_sqrt(squared: Tensor) -> Tensor:
    """Compute the square root with gradient 0 at 0, where the true one is infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), squared * 0)


def _nearest_both_ways(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (B, n) nearest of b to each a and the (B, m) nearest of a to each b."""
    to_b: list[Tensor] = []
    best = torch.full(b.shape[:2], float("inf"), dtype=b.dtype, device=b.device)
    to_a = torch.zeros(b.shape[:2], dtype=torch.int64, device=b.device)
    for rows in _slices(a.shape[1], _MAX_ELEMENTS // max(b.shape[0] * b.shape[1], 1)):
        distances = _squared_distances(a[:, rows], b)  # (B, r, m)
        distances = distances.masked_fill_(distances.isnan(), float("inf"))  # never the nearest
        to_b.append(distances.argmin(2))
        value, index = distances.min(1)
        closer = value < best
        best = torch.where(closer, value, best)
        to_a = torch.where(closer, index + rows.start, to_a)
    return torch.cat(to_b, dim=1), to_a


def chamfer_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the squared distance of each point to the nearest point of the other set.

    Args:
        a: (B, n, 3) points.
        b: (B, m, 3) points.

    Returns:
        ``d_ab`` (B, n) and ``d_ba`` (B, m), squared and differentiable in both sets, and the
        indices of the nearest points ``i_ab`` (B, n) and ``i_ba`` (B, m).
    """
    first, second = _coordinates(a), _coordinates(b)
    pairs_at_once = max(_MAX_ELEMENTS // (a.shape[1] * b.shape[1]), 1)
    with torch.no_grad():
        pieces = [
            _nearest_both_ways(first[part], second[part])
            for part in _slices(max(a.shape[0], 1), pairs_at_once)
        ]
    to_b = torch.cat([piece[0] for piece in pieces])
    to_a = torch.cat([piece[1] for piece in pieces])
    d_ab = (first - gather_points(second, to_b)).square().sum(-1)
    d_ba = (second - gather_points(first, to_a)).square().sum(-1)
    return d_ab, d_ba, to_b, to_a


def chamfer_loss(pred: Tensor, target: Tensor, *, norm: str = "l2") -> Tensor:
    """Average the symmetric Chamfer distance over a batch of point sets.

    Args:
        pred: (B, n, 3) points.
        target: (B, m, 3) points.
        norm: "l2" is mean(d_ab) + mean(d_ba) of squared distances; "l1" is half the sum of the
            means of plain distances, with gradient 0 where two points coincide.

    Returns:
        () in float32, or float64 for float64 points.
    """
    d_ab, d_ba, _, _ = chamfer_distance(pred, target)
    if norm == "l1":
        return (_safe_sqrt(d_ab).mean() + _safe_sqrt(d_ba).mean()) / 2
    return d_ab.mean() + d_ba.mean()
