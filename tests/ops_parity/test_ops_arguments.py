"""Bad arguments are refused with one sentence, and the compatible names keep their quirks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from clouds import shell

ops = pytest.importorskip("recon_ops", reason="recon_ops is not installed")
from recon_ops.compat import chamfer, pointnet2_utils  # noqa: E402

from recon_ray.points import reference  # noqa: E402

P = torch.rand(2, 8, 3)
Q = torch.rand(2, 4, 3)
IDX = torch.zeros(2, 4, dtype=torch.int64)
THREE = torch.zeros(2, 4, 3, dtype=torch.int64)


BAD_ARGUMENTS: dict[type[Exception], list[tuple[Callable[[], object], str]]] = {
    TypeError: [
        (lambda: ops.knn([1.0], Q, 2), "xyz must be a tensor, found list"),
        (
            lambda: ops.knn(P.long(), Q, 2),
            "xyz must be float16 or bfloat16 or float32 or float64, found torch.int64",
        ),
        (
            lambda: ops.furthest_point_sample(P, 2, index_dtype=torch.int16),
            "index_dtype must be int32 or int64, found torch.int16",
        ),
        (
            lambda: ops.gather_points(P, IDX.float()),
            "idx must be int32 or int64, found torch.float32",
        ),
    ],
    ValueError: [
        (lambda: ops.knn(P.to("meta"), Q, 2), "xyz must be on cpu or cuda, found meta"),
        (lambda: ops.knn(P, Q[0], 2), r"query must have 3 dimensions, found shape \(4, 3\)"),
        (lambda: ops.knn(P[..., :2], Q, 2), r"xyz must have shape \(B, N, 3\), found \(2, 8, 2\)"),
        (
            lambda: ops.knn(P[:, :0], Q, 2),
            r"xyz must hold at least one point, found shape \(2, 0, 3\)",
        ),
        (lambda: ops.knn(P, Q[:1], 2), "xyz has a batch of 2 but query has one of 1"),
        (lambda: ops.knn(P, Q, 9), r"k must be in 1..8 \(points in xyz\), found 9"),
        (lambda: ops.group_knn(P, Q, 0), r"k must be in 1..8 \(points in xyz\), found 0"),
        (
            lambda: ops.group_knn(P, Q, 2, features=P[:, :5]),
            "features has 5 rows but xyz has 8 points",
        ),
        (
            lambda: ops.furthest_point_sample(P, 9),
            r"num_samples must be in 1..8 \(points in xyz\), found 9",
        ),
        (lambda: ops.ball_query(P, Q, 0.0, 4), "radius must be above 0, found 0.0"),
        (lambda: ops.ball_query(P, Q, 1.0, 0), "max_neighbors must be at least 1, found 0"),
        (
            lambda: ops.three_interpolate(P, THREE, torch.rand(2, 4, 2)),
            r"idx and weight must both have shape \(B, N, 3\), found \(2, 4, 3\) and \(2, 4, 2\)",
        ),
        (lambda: ops.chamfer_loss(P, Q, norm="l3"), "norm must be 'l1' or 'l2', found 'l3'"),
    ],
    IndexError: [
        (
            lambda: ops.furthest_point_sample(P, 2, start=torch.tensor([0, 8])),
            "start must lie in 0..7, found 0..8",
        ),
        (lambda: ops.gather_points(P, IDX - 1), r"idx must lie in 0..7, found -1..-1"),
    ],
}


@pytest.mark.parametrize(
    ("call", "message", "error"),
    [(*case, error) for error, cases in BAD_ARGUMENTS.items() for case in cases],
)
def test_bad_arguments(call: Callable[[], object], message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        call()


@pytest.mark.cuda
def test_devices_must_agree() -> None:
    with pytest.raises(ValueError, match="xyz is on cuda:0 but query is on cpu; move one of them"):
        ops.knn(P.cuda(), Q, 2)


def test_kernels_check_what_memory_safety_needs() -> None:
    operators = torch.ops.recon_ops
    for call in (
        lambda: operators.gather_points(P, IDX + 8),
        lambda: operators.group_points(P, THREE - 1),
        lambda: operators.gather_points_backward(Q, IDX + 3, 3),
        lambda: operators.three_interpolate(P, THREE + 8, torch.rand(2, 4, 3)),
        lambda: operators.furthest_point_sample(P, 3, torch.tensor([-1, 0]), -1.0),
    ):
        with pytest.raises(RuntimeError, match=r"must lie in 0\.\."):
            call()
    for call in (
        lambda: operators.furthest_point_sample(P, 9, None, -1.0),
        lambda: operators.knn(P, Q, 9, True),
        lambda: operators.knn(P, Q[:1], 2, True),
        lambda: operators.knn(P, Q.double(), 2, True),
        lambda: operators.chamfer_distance(P, Q[:, :0]),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_compatible_names_use_channels_first_and_int32(device: torch.device) -> None:
    points, features = shell(2, 50).to(device), torch.randn(2, 6, 50, device=device)
    idx = pointnet2_utils.furthest_point_sample(points, 12)
    assert idx.dtype == torch.int32
    expected, _ = reference.furthest_point_sample(points, 12, min_sq_norm=1e-3)
    assert torch.equal(idx.long(), expected)
    columns = features.gather(2, expected[:, None].expand(-1, 6, -1))
    assert torch.equal(pointnet2_utils.gather_operation(features, idx), columns)
    centers = reference.gather_points(points, expected)
    found = pointnet2_utils.ball_query(0.5, 7, points, centers)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), reference.ball_query(points, centers, 0.5, 7)[0])
    grouped = pointnet2_utils.grouping_operation(features, found)
    assert grouped.shape == (2, 6, 12, 7)
    assert torch.equal(grouped[1, :, 3, 2], features[1, :, found[1, 3, 2]])
    dist, near = pointnet2_utils.three_nn(points, centers)
    assert near.dtype == torch.int32
    weight = 1 / (dist + 1)
    blended = pointnet2_utils.three_interpolate(columns, near, weight)
    wanted = reference.three_interpolate(columns.transpose(1, 2), near, weight)
    torch.testing.assert_close(blended, wanted.transpose(1, 2))


def test_compatible_sampling_repeats_beyond_the_points() -> None:
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    assert pointnet2_utils.furthest_point_sample(points, 5).tolist() == [[0, 1, 2, 1, 1]]


def test_compatible_groups(device: torch.device) -> None:
    points, features = shell(2, 30).to(device), torch.randn(2, 4, 30, device=device)
    features.requires_grad_()
    centers = points[:, :5].contiguous()
    grouped = pointnet2_utils.QueryAndGroup(0.6, 8)(points, centers, features)
    assert grouped.shape == (2, 7, 5, 8)
    assert torch.equal(
        grouped[:, 3:], pointnet2_utils.QueryAndGroup(0.6, 8, use_xyz=False)(
            points, centers, features
        ),
    )  # fmt: skip
    grouped.sum().backward()
    assert features.grad.sum().item() == pytest.approx(2 * 4 * 5 * 8)
    everything = pointnet2_utils.GroupAll()(points, None, features)
    assert everything.shape == (2, 7, 1, 30)
    with pytest.raises(ValueError, match="features must be given"):
        pointnet2_utils.QueryAndGroup(0.6, 8, use_xyz=False)(points, centers)


def test_compatible_chamfer(device: torch.device) -> None:
    a, b = shell(2, 30).to(device), shell(2, 20).to(device)
    for module, norm in ((chamfer.ChamferDistanceL1(), "l1"), (chamfer.ChamferDistanceL2(), "l2")):
        expected = reference.chamfer_loss(a, b, norm=norm)
        torch.testing.assert_close(module(a, b), expected, rtol=1e-5, atol=1e-7)
    padded = torch.cat([a[:1], torch.zeros(1, 5, 3, device=device)], dim=1)
    found = chamfer.ChamferDistanceL2(ignore_zeros=True)(padded, b[:1])
    torch.testing.assert_close(found, reference.chamfer_loss(a[:1], b[:1]), rtol=1e-5, atol=1e-7)
    both = chamfer.ChamferDistanceL2_split()(a, b)
    torch.testing.assert_close(sum(both), reference.chamfer_loss(a, b), rtol=1e-5, atol=1e-7)


@pytest.mark.cuda
def test_the_real_package_agrees() -> None:
    """The compatible names against the package whose names they are, where it is installed."""
    real = pytest.importorskip("pointnet2_ops.pointnet2_utils")
    points, features = shell(3, 500).cuda(), torch.randn(3, 8, 500).cuda()
    idx = pointnet2_utils.furthest_point_sample(points, 60)
    assert (idx == real.furthest_point_sample(points, 60)).float().mean() > 0.99
    centers = pointnet2_utils.gather_operation(points.transpose(1, 2).contiguous(), idx)
    centers = centers.transpose(1, 2).contiguous()
    found = pointnet2_utils.ball_query(0.3, 16, points, centers)
    assert (found == real.ball_query(0.3, 16, points, centers)).float().mean() > 0.99
    assert torch.equal(
        pointnet2_utils.grouping_operation(features, found),
        real.grouping_operation(features, found),
    )
    dist, near = pointnet2_utils.three_nn(points, centers)
    torch.testing.assert_close(dist, real.three_nn(points, centers)[0], rtol=1e-5, atol=1e-6)
    weight = torch.rand_like(dist)
    columns = pointnet2_utils.gather_operation(features, idx)
    torch.testing.assert_close(
        pointnet2_utils.three_interpolate(columns, near, weight),
        real.three_interpolate(columns, near, weight),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
