"""Clouds that are hard for point operations, and checks that allow rounding but nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def shell(batch: int, count: int) -> Tensor:
    """Random points near a sphere."""
    points = torch.randn(batch, count, 3)
    return points / points.norm(dim=-1, keepdim=True) * (0.9 + 0.1 * torch.rand(batch, count, 1))


def grid(batch: int, count: int) -> Tensor:
    """Small integer coordinates: nearly all distances occur many times, and all are exact."""
    side = max(2, round(count ** (1 / 3)))
    return torch.randint(side, (batch, count, 3)).float()


def coinciding(batch: int, count: int) -> Tensor:
    return torch.full((batch, count, 3), 0.25)


def along_x(batch: int, count: int) -> Tensor:
    points = shell(batch, count)
    return points.gather(1, points[..., :1].argsort(1).expand(-1, -1, 3))


def reversed_x(batch: int, count: int) -> Tensor:
    return along_x(batch, count).flip(1)


def far_away(batch: int, count: int) -> Tensor:
    """An offset of 1,000, at which expanded distance formulas cancel."""
    return shell(batch, count) + 1000.0


def zero_padded(batch: int, count: int) -> Tensor:
    points = shell(batch, count)
    points[:, count - count // 3 :] = 0.0
    return points


def duplicated(batch: int, count: int) -> Tensor:
    half = shell(batch, (count + 1) // 2)
    return torch.cat([half, half], dim=1)[:, :count].contiguous()


Cloud = Callable[[int, int], Tensor]
CLOUDS: list[Cloud] = [
    shell, grid, coinciding, along_x, reversed_x, far_away, zero_padded, duplicated,
]  # fmt: skip
EXACT = (grid, coinciding)
"""Clouds whose distances are exact, so that even ties have one right answer."""


def squared(points: Tensor, query: Tensor) -> Tensor:
    """(B, S, N) squared distances in float64."""
    return (query.double()[:, :, None] - points.double()[:, None]).square().sum(-1)


def assert_close_distances(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(
        found.double().cpu(), expected.double().cpu(), rtol=1e-6, atol=1e-12 * scale
    )


def assert_same_bits(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)


def assert_same_neighbors(
    points: Tensor, query: Tensor, found: Tensor, expected: Tensor, exact: bool
) -> None:
    """Check index for index; where they differ the distances must be equal but for rounding."""
    points, query = points.cpu(), query.cpu()
    found, expected = found.cpu().long(), expected.cpu().long()
    assert found.shape == expected.shape
    if exact:
        assert torch.equal(found, expected)
        return
    distances = squared(points, query)
    # Rounding of a coordinate difference is relative to the coordinates themselves.
    torch.testing.assert_close(
        distances.gather(2, found), distances.gather(2, expected), rtol=2e-6, atol=1e-12
    )
    assert (found != expected).float().mean() <= 0.01 + 2 / max(found.numel(), 1)
    ordered = found.sort(-1).values
    assert (ordered.diff(dim=-1) > 0).all(), "an index occurs twice"


def assert_furthest(points: Tensor, chosen: Tensor, eligible: Tensor) -> None:
    """Check in float64 that every choice was the furthest but for rounding."""
    xyz, chosen, eligible = points.cpu().double(), chosen.cpu().long(), eligible.cpu()
    rows = torch.arange(xyz.shape[0])
    nearest = torch.where(eligible, float("inf"), -1.0).double()
    for step in range(1, chosen.shape[1]):
        last = xyz[rows, chosen[:, step - 1]]
        distance = (xyz - last[:, None]).square().sum(-1)
        nearest = torch.where(eligible, torch.minimum(nearest, distance), nearest)
        largest = nearest.amax(1)
        taken = nearest[rows, chosen[:, step]]
        assert (taken >= largest - 1e-5 * largest.abs() - 1e-12).all(), f"step {step}"
