"""Sampling and searches against the plain-torch specification."""

from __future__ import annotations

import pytest
import torch
from clouds import (
    CLOUDS,
    EXACT,
    Cloud,
    assert_close_distances,
    assert_furthest,
    assert_same_bits,
    assert_same_neighbors,
    grid,
    shell,
    squared,
)

recon_ops = pytest.importorskip("recon_ops", reason="recon_ops is not installed")
from recon_ray.points import reference  # noqa: E402

SIZES = [(1, 1), (3, 2), (3, 3), (2, 31), (2, 32), (3, 33), (200, 64), (1, 1000), (2, 1025)]
LARGE = [(1, 2048), (1, 8191), (1, 8192)]


def counts(limit: int) -> list[int]:
    return sorted({min(k, limit) for k in (1, 3, 20, 32, 33, 64)})


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_sampling(cloud: Cloud, batch: int, size: int, device: torch.device) -> None:
    points = cloud(batch, size).to(device)
    for samples in {1, max(1, size // 3), min(size, 64)}:
        idx, taken = recon_ops.furthest_point_sample(points, samples)
        everything = torch.ones(batch, size, dtype=torch.bool)
        assert_furthest(points, idx, everything)
        if cloud in EXACT:
            assert torch.equal(idx, reference.furthest_point_sample(points, samples)[0])
        assert torch.equal(taken, reference.gather_points(points, idx))


@pytest.mark.parametrize(("batch", "size"), LARGE)
def test_sampling_of_large_clouds(batch: int, size: int, device: torch.device) -> None:
    for points in (shell(batch, size).to(device), grid(batch, size).to(device)):
        idx, _ = recon_ops.furthest_point_sample(points, 200)
        assert_furthest(points, idx, torch.ones(batch, size, dtype=torch.bool))
    assert torch.equal(idx, reference.furthest_point_sample(points, 200)[0])  # exact distances


@pytest.mark.parametrize("size", [1, 2, 33, 300])
def test_sampling_of_all_points_is_a_permutation(size: int, device: torch.device) -> None:
    idx, _ = recon_ops.furthest_point_sample(shell(2, size).to(device), size)
    assert torch.equal(idx.sort(1).values.cpu(), torch.arange(size).expand(2, -1))


def test_sampling_beyond_distinct_points_repeats_the_lowest_index(device: torch.device) -> None:
    points = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]], device=device)
    assert recon_ops.furthest_point_sample(points, 4)[0].tolist() == [[0, 1, 0, 0]]


def test_sampling_starts_where_asked(device: torch.device) -> None:
    points = grid(5, 200).to(device)
    for dtype in (torch.int32, torch.int64):
        start = torch.tensor([0, 7, 199, 3, 3], device=device, dtype=dtype)
        idx, _ = recon_ops.furthest_point_sample(points, 50, start=start)
        assert torch.equal(idx, reference.furthest_point_sample(points, 50, start=start)[0])


@pytest.mark.parametrize("cloud", CLOUDS)
def test_sampling_skips_points_near_the_origin(cloud: Cloud, device: torch.device) -> None:
    points = cloud(3, 120)
    points[0, 30:] *= 0.01  # fewer points are left than are asked for
    points[1] *= 0.001
    points = points.to(device)
    idx, _ = recon_ops.furthest_point_sample(points, 60, min_sq_norm=1e-3)
    eligible = points.square().sum(-1) > 1e-3
    assert_furthest(points, idx, eligible)
    if cloud not in EXACT:
        return
    expected, _ = reference.furthest_point_sample(points, 60, min_sq_norm=1e-3)
    assert torch.equal(idx[1:], expected[1:])


def test_sampling_repeats_index_zero_when_all_points_are_skipped(device: torch.device) -> None:
    points = 0.01 * torch.rand(1, 9, 3, device=device)
    start = torch.tensor([5], device=device)
    idx, _ = recon_ops.furthest_point_sample(points, 4, min_sq_norm=1e-3, start=start)
    assert idx.tolist() == [[5, 0, 0, 0]]


def test_points_that_are_not_finite_are_never_sampled(device: torch.device) -> None:
    points = grid(3, 100).to(device)
    points[1, 40, 2], points[1, 70, 0] = float("nan"), float("inf")
    points[2] = float("nan")
    idx, taken = recon_ops.furthest_point_sample(points, 98)
    expected, _ = reference.furthest_point_sample(points, 98)
    assert torch.equal(idx, expected)
    assert not {40, 70} & set(idx[1].tolist())
    assert idx[2].unique().tolist() == [0]
    assert taken[:2].isfinite().all()
    start = torch.tensor([0, 40, 3], device=device)
    idx, _ = recon_ops.furthest_point_sample(points, 20, start=start)
    assert torch.equal(idx, reference.furthest_point_sample(points, 20, start=start)[0])


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_neighbors(cloud: Cloud, batch: int, size: int, device: torch.device) -> None:
    points = cloud(batch, size).to(device)
    query = points[:, : min(size, 9)].contiguous()
    for k in counts(size):
        sq_dist, idx = recon_ops.knn(points, query, k)
        expected, expected_idx = reference.knn(points, query, k)
        assert_same_neighbors(points, query, idx, expected_idx, cloud in EXACT)
        assert_close_distances(sq_dist, expected)
        patches, again = recon_ops.group_knn(points, query, k)
        assert torch.equal(again, idx)
        assert torch.equal(patches, reference.group_points(points, idx) - query[:, :, None])


@pytest.mark.parametrize(("batch", "size"), LARGE)
def test_neighbors_in_large_clouds(batch: int, size: int, device: torch.device) -> None:
    for cloud in (shell, grid):
        points = cloud(batch, size).to(device)
        for k in (1, 32, 64):
            idx = recon_ops.knn(points, points[:, :70], k)[1]
            expected = reference.knn(points, points[:, :70], k)[1]
            assert_same_neighbors(points, points[:, :70], idx, expected, cloud in EXACT)


@pytest.mark.parametrize("k", [65, 100, 333, 1000])
def test_more_neighbors_than_a_warp_holds(k: int, device: torch.device) -> None:
    for cloud in (shell, grid):
        points = cloud(2, 1000).to(device)
        sq_dist, idx = recon_ops.knn(points, points[:, :5], k)
        expected, expected_idx = reference.knn(points, points[:, :5], k)
        assert_same_neighbors(points, points[:, :5], idx, expected_idx, cloud in EXACT)
        assert_close_distances(sq_dist, expected)
        assert torch.equal(recon_ops.group_knn(points, points[:, :5], k)[1], idx)


def test_unsorted_neighbors_are_the_same_set(device: torch.device) -> None:
    points = grid(3, 500).to(device)
    for k in (1, 31, 64):
        found = recon_ops.knn(points, points[:, :20], k, sorted=False)[1].sort(-1).values
        expected = reference.knn(points, points[:, :20], k)[1].sort(-1).values
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [5, 100, 3000])
def test_neighbors_that_are_nan_come_last(size: int, device: torch.device) -> None:
    points = grid(2, size)
    points[0, 1, 2], points[0, 3], points[0, 4, 0] = float("nan"), 1e30, -float("inf")
    points, query = points.to(device), torch.zeros(2, 2, 3, device=device)
    query[1, 1] = float("nan")
    for k in (2, min(size, 60), size if size <= 100 else 64):
        found, expected = recon_ops.knn(points, query, k)[1], reference.knn(points, query, k)[1]
        assert torch.equal(found, expected)
    assert torch.equal(recon_ops.three_nn(query, points)[1], reference.three_nn(query, points)[1])


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("batch", "size"), [*SIZES, (1, 4100)])
def test_ball_query(
    cloud: Cloud, batch: int, size: int, nearest: bool, device: torch.device
) -> None:
    points = cloud(batch, size).to(device)
    query = torch.cat([points[:, :7], points[:, :1] + 50.0], dim=1)  # the last has no hit
    distances = squared(points.cpu(), query.cpu())
    for radius, slots in [(0.3, 5), (1.0, 32), (1.0, 70), (1e6, 20), (1.5, size + 3)]:
        # Only where no distance is within rounding of the radius.
        off = (distances - radius**2).abs() > 1e-5 * radius**2
        sure = (off.all(-1) if cloud not in EXACT else torch.ones_like(off[..., 0])).to(device)
        idx, count = recon_ops.ball_query(points, query, radius, slots, nearest=nearest)
        expected, expected_count = reference.ball_query(
            points, query, radius, slots, nearest=nearest
        )
        assert torch.equal(count[sure], expected_count[sure])
        if nearest and cloud not in EXACT:
            found, wanted = (
                distances.to(device).gather(2, indices)[sure] for indices in (idx, expected)
            )
            torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-12)
        else:
            assert torch.equal(idx[sure], expected[sure])


def test_ball_query_edges(device: torch.device) -> None:
    points = torch.tensor(
        [[[2.0, 0, 0], [0.5, 0, 0], [0.1, 0, 0], [1.0, 0, 0], [0.2, 0, 0], [float("nan"), 0, 0]]],
        device=device,
    )
    query = torch.tensor([[[0.0, 0, 0], [9.0, 0, 0], [float("nan"), 0, 0]]], device=device)
    idx, count = recon_ops.ball_query(points, query, 1.0, 4)
    assert idx.tolist() == [[[1, 2, 4, 1], [0, 0, 0, 0], [0, 0, 0, 0]]]
    assert count.tolist() == [[3, 0, 0]]
    idx, count = recon_ops.ball_query(points, query, float("inf"), 9)
    assert idx[0, 0].tolist() == [0, 1, 2, 3, 4, 0, 0, 0, 0]
    assert count.tolist() == [[5, 5, 0]]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("batch", "size"), [*SIZES, (1, 2048)])
def test_three_nearest(cloud: Cloud, batch: int, size: int, device: torch.device) -> None:
    unknown, known = cloud(batch, size).to(device), cloud(batch, max(size // 4, 1)).to(device)
    dist, idx = recon_ops.three_nn(unknown, known)
    expected, expected_idx = reference.three_nn(unknown, known)
    available = min(3, known.shape[1])
    found = idx[..., :available]
    wanted = expected_idx[..., :available]
    assert_same_neighbors(known, unknown, found, wanted, cloud in EXACT)
    assert torch.equal(idx[..., available:], idx[..., :1].expand_as(idx)[..., available:])
    assert_close_distances(dist, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float64 and device.type == "cuda":
        with pytest.raises(TypeError, match="xyz must be float16 or bfloat16 or float32 on cuda"):
            recon_ops.knn(torch.zeros(1, 4, 3, device=device, dtype=dtype), None, 1)
        return
    points, query = grid(2, 90).to(device, dtype), grid(2, 10).to(device, dtype)
    for ours, theirs in [
        (recon_ops.furthest_point_sample(points, 30), reference.furthest_point_sample(points, 30)),
        (recon_ops.knn(points, query, 7), reference.knn(points, query, 7)),
        (recon_ops.group_knn(points, query, 7), reference.group_knn(points, query, 7)),
        (recon_ops.ball_query(points, query, 2.0, 7), reference.ball_query(points, query, 2.0, 7)),
        (recon_ops.three_nn(query, points), reference.three_nn(query, points)),
        (recon_ops.chamfer_distance(points, query), reference.chamfer_distance(points, query)),
    ]:
        for found, expected in zip(ours, theirs, strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_index_dtype(device: torch.device) -> None:
    points = grid(2, 40).to(device)
    for result in (
        recon_ops.furthest_point_sample(points, 9, index_dtype=torch.int32)[0],
        recon_ops.knn(points, points, 9, index_dtype=torch.int32)[1],
        recon_ops.ball_query(points, points, 1.0, 9, index_dtype=torch.int32)[1],
        recon_ops.chamfer_distance(points, points, index_dtype=torch.int32)[3],
    ):
        assert result.dtype == torch.int32


def test_clouds_do_not_influence_each_other(device: torch.device) -> None:
    points, query = shell(7, 400).to(device), shell(7, 30).to(device)
    points[3, 5], query[4, 2] = float("nan"), float("inf")
    whole = results(points, query)
    for row in (0, 3, 6):
        alone = results(points[row : row + 1], query[row : row + 1])
        for a, b in zip(alone, whole, strict=True):
            assert torch.equal(a[0].nan_to_num(-7), b[row].nan_to_num(-7))


def results(points: torch.Tensor, query: torch.Tensor) -> list[torch.Tensor]:
    return [
        *recon_ops.furthest_point_sample(points, 40),
        *recon_ops.knn(points, query, 9),
        *recon_ops.group_knn(points, query, 9),
        *recon_ops.ball_query(points, query, 0.4, 9),
        *recon_ops.three_nn(query, points),
        *recon_ops.chamfer_distance(points, query),
    ]


def test_layout_does_not_matter(device: torch.device) -> None:
    points, query = shell(4, 300).to(device), shell(4, 30).to(device)
    transposed = points.transpose(1, 2).contiguous().transpose(1, 2)
    strided = torch.stack([query, -query], dim=2).flatten(1, 2)[:, ::2]
    assert not transposed.is_contiguous()
    assert_same_bits(results(transposed, strided), results(points, query))
    spread = points[:1].expand(4, -1, -1)
    copied = spread.contiguous()
    assert_same_bits(results(spread, query), results(copied, query))


def test_empty_batches_give_empty_results(device: torch.device) -> None:
    empty = torch.zeros(0, 8, 3, device=device)
    shapes = [tuple(result.shape) for result in results_of_empty(empty)]
    assert shapes == [
        (0, 4), (0, 4, 3), (0, 2, 4), (0, 2, 4), (0, 2, 4, 3), (0, 2, 4), (0, 2, 4), (0, 2),
        (0, 8, 3), (0, 8, 3), (0, 8), (0, 8), (0, 8), (0, 8),
    ]  # fmt: skip
    assert recon_ops.chamfer_loss(empty, empty).isnan()  # the mean of nothing, as in torch


def results_of_empty(empty: torch.Tensor) -> list[torch.Tensor]:
    return [
        *recon_ops.furthest_point_sample(empty, 4),
        *recon_ops.knn(empty, empty[:, :2], 4),
        *recon_ops.group_knn(empty, empty[:, :2], 4),
        *recon_ops.ball_query(empty, empty[:, :2], 1.0, 4),
        *recon_ops.three_nn(empty, empty),
        *recon_ops.chamfer_distance(empty, empty),
    ]


def test_sample_and_group(device: torch.device) -> None:
    points = grid(2, 100).to(device)
    patches, idx, centers, center_idx = recon_ops.sample_and_group(points, 8, 5)
    expected_idx, expected_centers = reference.furthest_point_sample(points, 8)
    assert torch.equal(center_idx, expected_idx)
    assert torch.equal(centers, expected_centers)
    assert torch.equal(patches, reference.group_knn(points, centers, 5)[0])
    assert idx.shape == (2, 8, 5)
