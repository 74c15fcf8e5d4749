from __future__ import annotations

import pytest
import torch

from recon_ray.points import ops, reference

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def grid() -> torch.Tensor:
    """A cube of 27 points: massive ties."""
    axis = torch.arange(3.0)
    return torch.cartesian_prod(axis, axis, axis)[None]


def naive_fps(xyz: torch.Tensor, count: int, start: int = 0) -> list[int]:
    chosen = [start]
    while len(chosen) < count:
        distance = torch.cdist(xyz.double(), xyz[chosen].double()).amin(1)
        chosen.append(int(torch.nonzero(distance == distance.max())[0]))
    return chosen


def test_sampling_takes_the_furthest_point() -> None:
    points = torch.randn(3, 40, 3)
    indices, sampled = ops.furthest_point_sample(points, 40)
    for row in range(3):
        assert indices[row].tolist() == naive_fps(points[row], 40)
    assert torch.equal(sampled, points.gather(1, indices[..., None].expand(-1, -1, 3)))


def test_sampling_starts_where_asked_and_ties_go_to_the_lowest_index() -> None:
    assert ops.furthest_point_sample(grid(), 9)[0][0].tolist() == naive_fps(grid()[0], 9)
    points = torch.randn(2, 20, 3)
    indices, _ = ops.furthest_point_sample(points, 5, start=torch.tensor([7, 3]))
    assert indices[0].tolist() == naive_fps(points[0], 5, 7)
    assert indices[1].tolist() == naive_fps(points[1], 5, 3)
    indices, _ = ops.furthest_point_sample(0.01 * torch.rand(1, 9, 3), 4, min_sq_norm=1e-3)
    assert indices.tolist() == [[0, 0, 0, 0]]


def test_sampling_never_chooses_a_point_that_is_not_finite() -> None:
    points = torch.randn(2, 10, 3)
    clean = ops.furthest_point_sample(points, 9)[0]
    points[1, 4], points[1, 6, 2] = float("nan"), float("inf")
    indices, _ = ops.furthest_point_sample(points, 9)
    assert torch.equal(indices[0], clean[0])
    assert not {4, 6} & set(indices[1].tolist())


def test_sampled_points_and_distances_are_differentiable() -> None:
    points = torch.randn(1, 6, 3, requires_grad=True)
    indices, sampled = ops.furthest_point_sample(points, 3)
    sampled.sum().backward()
    expected = torch.zeros(6).scatter(0, indices[0], 1.0)
    assert torch.equal(points.grad[0, :, 0], expected)
    points = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    query = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, q: ops.knn(p, q, 3)[0], (points, query))


@pytest.mark.parametrize("dtype", TYPES)
def test_neighbors_equal_brute_force(dtype: torch.dtype) -> None:
    points, query = torch.randn(2, 50, 3).to(dtype), torch.randn(2, 9, 3).to(dtype)
    distances, indices = ops.knn(points, query, 6)
    expected = torch.cdist(query.double(), points.double()).square()
    values, order = expected.sort(dim=-1, stable=True)
    assert torch.equal(indices, order[..., :6])
    torch.testing.assert_close(distances.double(), values[..., :6], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbor_ties_go_to_the_lowest_index(dtype: torch.dtype) -> None:
    _, indices = ops.knn(grid().to(dtype), grid().to(dtype)[:, :1], 7)
    # Distances from a corner: itself, three along edges, three across faces.
    assert indices[0, 0].tolist() == [0, 1, 3, 9, 4, 10, 12]


def test_nan_neighbors_come_last() -> None:
    points = torch.randn(1, 5, 3)
    points[0, 1] = float("nan")
    points[0, 3] = 1e30  # squared distance overflows to infinity
    _, indices = ops.knn(points, torch.zeros(1, 1, 3), 5)
    assert indices[0, 0, 3:].tolist() == [3, 1]


def test_blocks_do_not_change_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    points, query = torch.randn(3, 30, 3), torch.randn(3, 11, 3)
    whole = [ops.knn(points, query, 5), ops.chamfer_distance(points, query)]
    monkeypatch.setattr(reference, "_MAX_ELEMENTS", 70)
    pieces = [ops.knn(points, query, 5), ops.chamfer_distance(points, query)]
    for a, b in zip(whole, pieces, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_patches_are_relative_to_their_centers() -> None:
    points, features = torch.randn(2, 20, 3), torch.randn(2, 20, 4)
    patches, indices = ops.group_knn(points, points[:, :5], 4, features=features)
    assert patches.shape == (2, 5, 4, 7)
    for b, g, k in [(0, 0, 0), (1, 4, 3)]:
        i = indices[b, g, k]
        torch.testing.assert_close(patches[b, g, k, :3], points[b, i] - points[b, g])
        assert torch.equal(patches[b, g, k, 3:], features[b, i])
    assert torch.equal(patches[:, :, 0, :3], torch.zeros(2, 5, 3))  # the center itself


def test_ball_query_takes_the_first_in_index_order() -> None:
    points = torch.tensor([[[2.0, 0, 0], [0.5, 0, 0], [0.1, 0, 0], [1.0, 0, 0], [0.2, 0, 0]]])
    query = torch.tensor([[[0.0, 0, 0], [9.0, 0, 0]]])
    indices, count = ops.ball_query(points, query, 1.0, 4)
    assert indices.tolist() == [[[1, 2, 4, 1], [0, 0, 0, 0]]]  # the radius itself is outside
    assert count.tolist() == [[3, 0]]
    assert ops.ball_query(points, query, 1.0, 2)[0][0, 0].tolist() == [1, 2]
    assert ops.ball_query(points, query, 1.0, 4, nearest=True)[0][0, 0].tolist() == [2, 4, 1, 2]
    assert ops.ball_query(points, query, 1.0, 7)[0].shape == (1, 2, 7)


def test_gather_and_group_pick_rows_and_scatter_gradients() -> None:
    features = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2).requires_grad_()
    idx = torch.tensor([[2, 0, 2, 1], [1, 1, 0, 0]])
    assert ops.gather_points(features, idx)[1].tolist() == [[8, 9], [8, 9], [6, 7], [6, 7]]
    grouped = ops.group_points(features, idx.view(2, 2, 2).to(torch.int32))
    assert grouped.shape == (2, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda f: ops.gather_points(f, idx), features)


def test_three_nearest_and_interpolation() -> None:
    known = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [9, 0, 0]]])
    distances, indices = ops.three_nn(torch.tensor([[[1.0, 0, 0]]]), known)
    assert indices.tolist() == [[[1, 0, 2]]]
    assert distances.tolist() == [[[0, 1, 2]]]
    features = torch.tensor([[[1.0], [10], [100], [1000]]], requires_grad=True)
    weight = torch.tensor([[[0.5, 0.3, 0.2]]], requires_grad=True)
    blended = ops.three_interpolate(features, indices, weight)
    assert blended.item() == pytest.approx(0.5 * 10 + 0.3 * 1 + 0.2 * 100)
    blended.backward()
    assert weight.grad.tolist() == [[[10, 1, 100]]]
    assert features.grad.flatten().tolist() == pytest.approx([0.3, 0.5, 0.2, 0])
    distances, indices = ops.three_nn(
        torch.zeros(1, 1, 3), torch.tensor([[[2.0, 0, 0], [1, 0, 0]]])
    )
    assert indices.tolist() == [[[1, 0, 1]]]
    assert distances.tolist() == [[[1, 2, float("inf")]]]


def test_empty_batches_give_empty_results_and_layout_does_not_matter() -> None:
    empty = torch.zeros(0, 8, 3)
    assert ops.furthest_point_sample(empty, 4)[1].shape == (0, 4, 3)
    assert ops.group_knn(empty, empty[:, :2], 4)[0].shape == (0, 2, 4, 3)
    assert ops.ball_query(empty, empty[:, :2], 1.0, 4)[0].shape == (0, 2, 4)
    assert ops.chamfer_distance(empty, empty)[0].shape == (0, 8)
    points = torch.randn(2, 3, 30).transpose(1, 2)
    indices, sampled = ops.furthest_point_sample(points, 6)
    again, _ = ops.furthest_point_sample(points.contiguous(), 6)
    assert torch.equal(indices, again)
    patches, _ = ops.group_knn(points, sampled, 4)
    assert torch.equal(patches, ops.group_knn(points.contiguous(), sampled, 4)[0])
