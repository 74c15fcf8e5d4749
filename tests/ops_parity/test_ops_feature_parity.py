"""Gathering, interpolation and Chamfer distance, forward and backward, against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from clouds import (
    CLOUDS,
    EXACT,
    Cloud,
    assert_close_distances,
    assert_same_bits,
    coinciding,
    grid,
    shell,
)
from torch import Tensor

recon_ops = pytest.importorskip("recon_ops", reason="recon_ops is not installed")
from recon_ray.points import reference  # noqa: E402

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Sums in float32 rounded once, against the exact sum.
TOLERANCE = {
    torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12,
}  # fmt: skip


def same(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Compare with a float64 result in the precision of ``found``."""
    limit = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=limit, atol=limit * scale)


def gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor | None = None
) -> list[Tensor]:
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    result = function(*leaves)
    result.backward(torch.ones_like(result) if grad is None else grad.to(result.dtype))
    return [leaf.grad for leaf in leaves]


def assert_same_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], *, rtol: float, atol: float
) -> None:
    """Compare those of ``function(ops, *inputs)`` with plain torch's in double precision."""
    found = gradients(lambda *leaves: function(recon_ops, *leaves), inputs)
    exact = gradients(lambda *leaves: function(reference, *leaves), [x.double() for x in inputs])
    torch.testing.assert_close([x.double() for x in found], exact, rtol=rtol, atol=atol)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 3, 4, 7, 64, 100, 256])
def test_gather_and_group(
    dtype: torch.dtype, channels: int, index_dtype: torch.dtype, device: torch.device
) -> None:
    features = torch.randn(3, 50, channels).to(device, dtype)
    idx = torch.randint(50, (3, 33), dtype=index_dtype, device=device)
    groups = torch.randint(50, (3, 9, 5), dtype=index_dtype, device=device)
    for ours, theirs, rows in [
        (recon_ops.gather_points, reference.gather_points, idx),
        (recon_ops.group_points, reference.group_points, groups),
    ]:
        expected = theirs(features, rows)
        assert torch.equal(ours(features, rows), expected)
        grad = torch.randn_like(expected)
        (found,) = gradients(lambda f, o=ours, r=rows: o(f, r), [features], grad)
        (exact,) = gradients(lambda f, t=theirs, r=rows: t(f, r), [features.double()], grad)
        assert found.dtype == dtype
        same(found, exact)


@pytest.mark.parametrize("channels", [3, 130])
@pytest.mark.parametrize("kind", ["one row", "ends", "never", "many"])
def test_gradients_of_uneven_picks(kind: str, channels: int, device: torch.device) -> None:
    count, size = (20000, 40) if kind == "many" else (700, 3000)
    idx = torch.zeros(2, count, dtype=torch.int64)
    if kind == "ends":
        idx[:, ::2] = size - 1
    if kind == "never":
        idx = torch.randint(5, 9, (2, count))
    if kind == "many":
        idx = torch.randint(size, (2, count))
    idx = idx.to(device)
    grad = torch.randn(2, count, channels, device=device)
    found = torch.ops.recon_ops.gather_points_backward(grad, idx, size)
    expected = torch.zeros(2, size, channels, dtype=torch.float64, device=device)
    expected.scatter_add_(1, idx[..., None].expand_as(grad), grad.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * count**0.5)


def test_gradients_are_summed_in_single_precision(device: torch.device) -> None:
    """4,096 ones and a half: in half precision the sum would stop at 2,048."""
    features = torch.zeros(1, 2, 8, device=device, dtype=torch.float16, requires_grad=True)
    idx = torch.zeros(1, 4096, dtype=torch.int64, device=device)
    recon_ops.gather_points(features, idx).sum().backward()
    assert features.grad.unique().tolist() == [0.0, 4096.0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 3, 8, 33, 384])
def test_interpolation(dtype: torch.dtype, channels: int, device: torch.device) -> None:
    features = torch.randn(2, 20, channels).to(device, dtype)
    weight = torch.rand(2, 41, 3).to(device, dtype)
    idx = torch.randint(20, (2, 41, 3), device=device)
    expected = reference.three_interpolate(features.double(), idx, weight.double())
    same(recon_ops.three_interpolate(features, idx, weight), expected)
    grad = torch.randn_like(expected).to(dtype)
    found = gradients(lambda f, w: recon_ops.three_interpolate(f, idx, w), [features, weight], grad)
    exact = gradients(
        lambda f, w: reference.three_interpolate(f, idx, w),
        [features.double(), weight.double()],
        grad,
    )
    for value, wanted in zip(found, exact, strict=True):
        same(value, wanted, channels**0.5)


PAIRS = [(1, 1), (1, 5), (2, 3), (31, 32), (32, 32), (33, 64), (64, 64), (65, 7), (100, 1000)]


def closest(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("n", "m"), [*PAIRS, (2048, 1025)])
def test_chamfer(cloud: Cloud, n: int, m: int, device: torch.device) -> None:
    batch = 200 if n * m <= 1024 else 2
    a, b = cloud(batch, n).to(device), cloud(batch, m).to(device)
    found, expected = recon_ops.chamfer_distance(a, b), reference.chamfer_distance(a, b)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert_close_distances(ours, theirs)
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        if cloud in EXACT:
            assert torch.equal(ours, theirs)
        else:  # rounding may exchange neighbors that are nearly equally far
            assert (ours != theirs).float().mean() <= 0.01 + 2 / ours.numel()
    for norm in ("l1", "l2"):
        ours = recon_ops.chamfer_loss(a, b, norm=norm)
        torch.testing.assert_close(
            ours.double(), reference.chamfer_loss(a.double(), b.double(), norm=norm),
            rtol=1e-5, atol=1e-9,
        )  # fmt: skip


@pytest.mark.parametrize(("n", "m"), [*PAIRS, (1500, 1100)])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_chamfer_gradients(n: int, m: int, norm: str, device: torch.device) -> None:
    batch = 300 if n * m <= 1024 else 3
    a, b = shell(batch, n).to(device), shell(batch, m).to(device)
    tolerance = {"rtol": 2e-4, "atol": 1e-6 / batch}
    assert_same_gradients(lambda ops, p, q: ops.chamfer_loss(p, q, norm=norm), [a, b], **tolerance)
    upstream = torch.randn(batch, n, device=device), torch.randn(batch, m, device=device)

    def weighted(ops: object, p: Tensor, q: Tensor) -> Tensor:
        d_ab, d_ba = ops.chamfer_distance(p, q)[:2]
        return (d_ab * upstream[0]).sum() + (d_ba * upstream[1]).sum()

    assert_same_gradients(weighted, [a, b], rtol=1e-4, atol=1e-5)


def test_chamfer_gradient_is_zero_where_points_coincide(device: torch.device) -> None:
    points = grid(4, 32).to(device)
    for norm in ("l1", "l2"):
        for value in gradients(
            lambda p, q, n=norm: recon_ops.chamfer_loss(p, q, norm=n), [points, points]
        ):
            assert torch.equal(value, torch.zeros_like(value))
    same_place = coinciding(2, 9).to(device)
    assert recon_ops.chamfer_loss(same_place, same_place, norm="l1").item() == 0


@pytest.mark.parametrize(("n", "m"), [(32, 32), (20, 50), (700, 90)])
def test_chamfer_loss_computes_the_needed_gradients(n: int, m: int, device: torch.device) -> None:
    """Those of one input are the same with and without the other's, also from odd addresses."""
    batch = 40
    a = shell(1, batch * n + 1).to(device).view(-1)[1:-2].view(batch, n, 3)
    b = shell(1, batch * m + 1).to(device).view(-1)[1:-2].view(batch, m, 3)
    for norm in ("l1", "l2"):
        both = gradients(lambda p, q, k=norm: recon_ops.chamfer_loss(p, q, norm=k), [a, b])
        (first,) = gradients(lambda p, k=norm: recon_ops.chamfer_loss(p, b, norm=k), [a])
        (second,) = gradients(lambda q, k=norm: recon_ops.chamfer_loss(a, q, norm=k), [b])
        assert torch.equal(first, both[0])
        assert torch.equal(second, both[1])
        forward = torch.ops.recon_ops.chamfer_loss_forward
        loss, grads = forward(a, b, norm == "l2", False, False)
        assert torch.equal(loss, recon_ops.chamfer_loss(a.clone().requires_grad_(), b, norm=norm))
        assert grads.numel() == 0
    with pytest.raises(RuntimeError, match="was not asked for a gradient"):
        forward(a, b.clone().requires_grad_(), True, True, False)


def test_chamfer_ties_go_to_the_lowest_index(device: torch.device) -> None:
    a = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [5, 0, 0]]], device=device)
    b = torch.tensor([[[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [9, 0, 0]]], device=device)
    _, _, i_ab, i_ba = recon_ops.chamfer_distance(a, b)
    assert i_ab.tolist() == [[0, 0, 0]]
    assert i_ba.tolist() == [[0, 0, 0, 2]]


def test_chamfer_of_nan_stays_in_its_pair(device: torch.device) -> None:
    for n, m in [(32, 32), (300, 200)]:
        a, b = shell(3, n).to(device), shell(3, m).to(device)
        clean = recon_ops.chamfer_distance(a, b)
        a[1, 3], b[1, 7, 1] = float("nan"), float("nan")
        found = recon_ops.chamfer_distance(a, b)
        for value, wanted in zip(found, clean, strict=True):
            assert torch.equal(value[[0, 2]], wanted[[0, 2]])
        for idx, limit in zip(found[2:], (m, n), strict=True):
            assert ((idx >= 0) & (idx < limit)).all()
        assert found[0][1, 3].isnan()
        assert found[1][1, 7].isnan()
        assert_same_bits(reference.chamfer_distance(a, b)[2:], found[2:])


def test_search_gradients(device: torch.device) -> None:
    points, query = shell(2, 60).to(device), shell(2, 9).to(device)
    weight = torch.randn(2, 9, 5, device=device)
    functions: list[Callable[[object, Tensor, Tensor], Tensor]] = [
        lambda ops, p, q: (ops.knn(p, q, 5)[0] * weight).sum(),
        lambda ops, p, q: (ops.group_knn(p, q, 5)[0] * weight[..., None]).sum(),
        lambda ops, p, q: (ops.group_knn(p, q, 5, features=p * 2)[0] * weight[..., None]).sum(),
        lambda ops, p, q: (ops.three_nn(q, p)[0] * weight[..., :3]).sum(),
        lambda ops, p, q: ops.furthest_point_sample(p, 20)[1].square().sum() + q.sum(),
    ]
    for function in functions:
        assert_same_gradients(function, [points, query], rtol=1e-4, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one(device: torch.device) -> None:
    points, query = shell(1, 20).to(device), shell(1, 5).to(device)
    for first in (True, False):
        p = points.clone().requires_grad_(first)
        q = query.clone().requires_grad_(not first)
        total = recon_ops.chamfer_loss(p, q) + recon_ops.knn(p, q, 3)[0].sum()
        total = total + recon_ops.group_knn(p, q, 3)[0].sum()
        total = total + recon_ops.chamfer_distance(p, q)[0].sum()
        total.backward()
        assert ((p.grad is not None), (q.grad is not None)) == (first, not first)
    indices = recon_ops.knn(points.clone().requires_grad_(), query, 3)[1]
    assert not indices.requires_grad


@pytest.mark.parametrize(
    "function",
    [
        lambda p, q: recon_ops.knn(p, q, 3)[0],
        lambda p, q: recon_ops.group_knn(p, q, 3)[0],
        lambda p, q: recon_ops.furthest_point_sample(p, 4)[1] + q.sum(),
        lambda p, q: recon_ops.three_nn(q, p)[0],
        lambda p, q: recon_ops.gather_points(p, torch.tensor([[0, 3, 3, 1]])) + q.sum(),
        lambda p, q: recon_ops.group_points(p, torch.tensor([[[0, 3], [3, 1]]])) + q.sum(),
        lambda p, q: recon_ops.three_interpolate(p, torch.tensor([[[0, 1, 2]] * 6]), q),
        lambda p, q: recon_ops.chamfer_distance(p, q)[:2],
        lambda p, q: recon_ops.chamfer_loss(p, q),
        lambda p, q: recon_ops.chamfer_loss(p, q, norm="l1"),
    ],
)
def test_gradcheck(function: Callable[..., Tensor]) -> None:
    points = torch.randn(1, 9, 3, dtype=torch.float64, requires_grad=True)
    query = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (points, query))


def test_differentiating_twice_is_refused(device: torch.device) -> None:
    points = shell(1, 9).to(device).requires_grad_()
    (grad,) = torch.autograd.grad(
        recon_ops.chamfer_loss(points, points.detach() * 2), points, create_graph=True
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_two_runs_are_equal_bit_for_bit(device: torch.device) -> None:
    points, query = shell(4, 700).to(device), shell(4, 90).to(device)
    features = torch.randn(4, 700, 40, device=device)
    idx = torch.randint(700, (4, 300, 8), device=device)
    weight = torch.rand(4, 90, 3, device=device)

    def run() -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in (points, query, features, weight)]
        p, q, f, w = leaves
        total = recon_ops.chamfer_loss(p, q) + recon_ops.knn(p, q, 20)[0].square().sum()
        total = total + recon_ops.group_knn(p, q, 33)[0].square().sum()
        total = total + recon_ops.group_points(f, idx).square().sum()
        total = total + recon_ops.chamfer_distance(p, q)[1].square().sum()
        dist, near = recon_ops.three_nn(q, p)
        total = total + (recon_ops.three_interpolate(f, near, w) ** 2).sum() + dist.sum()
        total.backward()
        return [total, *(leaf.grad for leaf in leaves)]

    with deterministic():
        first, second = run(), run()
    assert_same_bits(first, second)


def test_threads_do_not_change_results() -> None:
    points, query = shell(5, 300), shell(5, 60)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            [
                recon_ops.furthest_point_sample(points, 50)[0],
                recon_ops.group_knn(points, query, 20)[0],
                recon_ops.chamfer_loss(points, query),
                *gradients(recon_ops.chamfer_loss, [points, query]),
            ]
        )
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
