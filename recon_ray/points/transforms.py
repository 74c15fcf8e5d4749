"""Transforms of batches of point clouds, each sample with its own random numbers.

Every function takes (B, N, 3) points, works on their device and returns new points. The random ones
take a ``source`` (see :mod:`recon_ray.points.random`). Ranges are those of the reference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_ray.points import ops, random
from recon_ray.points.random import RandomSource, SampleGenerator

CANDIDATE_POINTS = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}
"""Points that furthest point sampling keeps before the random pick (reference)."""

CANDIDATE_RATIO = 75 / 64
"""Candidates for a point that is picked, in most of that table; used for other numbers too."""


def normalize(points: Tensor) -> Tensor:
    """Center clouds at their mean and scale them to the unit sphere.

    Args:
        points: (B, N, 3) points.

    Returns:
        (B, N, 3) with the largest norm 1. A cloud of coinciding points becomes zeros, where the
        reference would divide by zero.
    """
    centered = points - points.mean(dim=1, keepdim=True)
    radius = torch.linalg.vector_norm(centered, dim=-1).amax(dim=1)[:, None, None]
    return centered / torch.where(radius > 0, radius, 1.0)


def _between(low: float, high: float, numbers: Tensor, like: Tensor) -> Tensor:
    """Map uniform numbers in [0, 1) to [low, high) in the points' dtype."""
    return (low + (high - low) * numbers).to(like.dtype)


def rotate_y(points: Tensor, source: RandomSource = None) -> Tensor:
    """Turn each cloud about the y axis by its own angle, uniform over the circle."""
    turn = random.uniform(source, len(points), device=points.device).to(points.dtype)  # (B,)
    angle = 2.0 * math.pi * turn[:, None]
    cos, sin = angle.cos(), angle.sin()  # (B, 1)
    x, y, z = points.unbind(-1)
    return torch.stack([cos * x - sin * z, y, sin * x + cos * z], dim=-1)


def scale(
    points: Tensor, source: RandomSource = None, *, low: float = 2 / 3, high: float = 3 / 2
) -> Tensor:
    """Stretch each axis of each cloud by its own factor from [low, high)."""
    numbers = random.uniform(source, len(points), 1, 3, device=points.device)
    return points * _between(low, high, numbers, points)


def translate(points: Tensor, source: RandomSource = None, *, distance: float = 0.2) -> Tensor:
    """Shift each cloud on each axis by its own amount from [-distance, distance)."""
    numbers = random.uniform(source, len(points), 1, 3, device=points.device)
    return points + _between(-distance, distance, numbers, points)


def scale_and_translate(
    points: Tensor,
    source: RandomSource = None,
    *,
    low: float = 2 / 3,
    high: float = 3 / 2,
    distance: float = 0.2,
) -> Tensor:
    """Stretch each axis of each cloud, then shift it."""
    return translate(scale(points, source, low=low, high=high), source, distance=distance)


def random_subset(points: Tensor, n: int, source: RandomSource = None) -> Tensor:
    """Pick ``n`` points of each cloud without replacement, in random order.

    Args:
        points: (B, N, 3) points.
        n: Number of points to pick, at most N.
        source: Random numbers; each cloud has its own choice.

    Returns:
        (B, n, 3).

    Raises:
        ValueError: If a cloud has fewer than ``n`` points.
    """
    available = points.shape[1]
    if not 1 <= n <= available:
        raise ValueError(f"n must be in 1..{available} (points in a cloud), found {n}")
    order = random.permutation(source, available, len(points), device=points.device)
    return ops.gather_points(points, order[:, :n])


def thin(
    points: Tensor, n: int, *, start: Tensor | None = None, min_sq_norm: float = -1.0
) -> Tensor:
    """Keep evenly spread points of each cloud, chosen by furthest point sampling.

    Where all are kept they are not sampled, which would only permute them. Points that the skip
    rule excludes are then replaced as by sampling: by the start, or by the first point that is not
    skipped if the start is; the start itself is always kept.

    Args:
        points: (B, N, 3) points.
        n: Number of points to keep; N at most are kept.
        start: (B,) index of the first point; 0 by default.
        min_sq_norm: Skip rule of furthest point sampling.

    Returns:
        (B, min(n, N), 3).
    """
    if n < points.shape[1]:
        return ops.furthest_point_sample(points, n, start=start, min_sq_norm=min_sq_norm)[1]
    if min_sq_norm < 0:
        return points
    is_allowed = points.float().square().sum(-1) > min_sq_norm  # (B, N)
    index = torch.arange(points.shape[1], device=points.device)
    is_start = index == (0 if start is None else start[:, None])
    repeated = (2 * is_allowed.int() + is_start.int()).argmax(dim=1, keepdim=True)
    kept = (is_allowed | is_start)[..., None]
    return torch.where(kept, points, ops.gather_points(points, repeated))


def candidate_points(n: int) -> int:
    """Return the number of points that are kept evenly spread before ``n`` are picked at random."""
    return CANDIDATE_POINTS.get(n, math.ceil(n * CANDIDATE_RATIO))


def resample(
    points: Tensor, n: int, source: RandomSource = None, *, min_sq_norm: float = -1.0
) -> Tensor:
    """Thin clouds evenly, then pick ``n`` of the remaining points at random.

    Furthest point sampling keeps the candidate points of the reference (:data:`CANDIDATE_POINTS`,
    at most N). With a generator or the default one the same positions of that
    order are picked in the whole batch, as the reference does. With a :class:`SampleGenerator` each
    sample has its own pick, since its result must not depend on the batch: the same
    distribution for a sample.

    Args:
        points: (B, N, 3) points.
        n: Number of points to pick: 1024, 2048, 4096 or 8192.
        source: Random numbers.
        min_sq_norm: Skip rule of furthest point sampling.

    Returns:
        (B, n, 3).

    Raises:
        ValueError: If ``n`` is not in the table or a cloud has fewer points.
    """
    if n not in CANDIDATE_POINTS:
        raise ValueError(f"n must be one of {', '.join(map(str, CANDIDATE_POINTS))}, found {n}")
    candidates = min(CANDIDATE_POINTS[n], points.shape[1])
    if n > candidates:
        raise ValueError(f"cannot pick {n} of {candidates} points")
    points = thin(points, candidates, min_sq_norm=min_sq_norm)
    if isinstance(source, SampleGenerator):
        return random_subset(points, n, source)
    order = random.permutation(source, candidates, 1, device=points.device)
    return points[:, order[0, :n]]
