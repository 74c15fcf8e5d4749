from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from recon_ray.errors import OpsError
from recon_ray.points import ops, pointnet2, reference

POINTS = torch.zeros(2, 5, 3)


@pytest.fixture(autouse=True)
def _fresh_backend(ops_backend: ops.BackendName) -> Iterator[None]:
    caches = (ops._has_pointnet2, ops._announce)
    ops._found.clear()
    for cached in caches:
        cached.cache_clear()
    ops.set_backend("auto")
    yield
    for cached in caches:
        cached.cache_clear()
    ops.set_backend(ops_backend)


@pytest.fixture
def no_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_compiled", lambda: None)
    monkeypatch.setattr(ops, "_has_pointnet2", lambda: False)
    ops._has_pointnet2.cache_clear = lambda: None  # the fixture above calls it


@pytest.mark.usefixtures("no_compiled")
def test_reference_is_the_fallback_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    assert ops.backend() == "reference"
    with caplog.at_level(logging.INFO, logger="recon_ray.points.ops"):
        ops.furthest_point_sample(POINTS, 2)
        ops.knn(POINTS, POINTS, 2)
    assert len(caplog.records) == 1
    assert "pip install --no-build-isolation ./ops" in caplog.text


@pytest.mark.usefixtures("no_compiled")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compiled", "build them: pip install --no-build-isolation ./ops"),
        ("pointnet2_ops", "pointnet2_ops is not installed"),
        ("cuda", "unknown ops backend 'cuda'; use one of auto, compiled"),
    ],
)
def test_forcing_what_is_absent_is_refused(name: str, message: str) -> None:
    with pytest.raises(OpsError, match=message):
        ops.set_backend(name)
    assert ops.backend() == "reference"


def test_compiled_distribution_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("recon_ops")
    fake.knn = lambda xyz, query, k, *, sorted: ("compiled", k)
    monkeypatch.setitem(sys.modules, "recon_ops", fake)
    assert ops.backend() == "compiled"
    assert ops.knn(POINTS, POINTS, 2) == ("compiled", 2)
    ops.set_backend("reference")
    assert ops.knn(POINTS, POINTS, 2)[1].shape == (2, 5, 2)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Functions of a package that claims to compute on the CPU too."""
    fake, functions = ModuleType("pointnet2_ops"), ModuleType("pointnet2_ops.pointnet2_utils")
    monkeypatch.setitem(sys.modules, "pointnet2_ops", fake)
    monkeypatch.setitem(sys.modules, "pointnet2_ops.pointnet2_utils", functions)
    monkeypatch.setattr(ops, "_has_pointnet2", lambda: True)
    ops._has_pointnet2.cache_clear = lambda: None
    monkeypatch.setattr(pointnet2, "_is_supported", lambda *tensors: True)
    ops.set_backend("pointnet2_ops")
    return functions


def test_foreign_package_starts_where_it_is_told_and_serves_what_it_computes_exactly(
    foreign: ModuleType,
) -> None:
    """It has no argument for that: the start changes places with the first point."""

    def sample(xyz: torch.Tensor, n: int) -> torch.Tensor:
        return reference.furthest_point_sample(xyz, n, min_sq_norm=1e-3)[0].int()

    foreign.furthest_point_sample = sample
    points = torch.randn(4, 60, 3, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([0, 7, 59, 31])
    found, taken = ops.furthest_point_sample(points, 20, start=start, min_sq_norm=1e-3)
    expected = reference.furthest_point_sample(points, 20, start=start, min_sq_norm=1e-3)
    assert torch.equal(found, expected[0])
    assert torch.equal(taken, expected[1])
    foreign.furthest_point_sample = lambda xyz, n: torch.full((len(xyz), n), 4, dtype=torch.int32)
    assert ops.furthest_point_sample(POINTS, 2, min_sq_norm=1e-3)[0].tolist() == [[4, 4]] * 2
    assert ops.furthest_point_sample(POINTS, 2)[0].tolist() == [[0, 0]] * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.furthest_point_sample(POINTS, 6), ValueError, r"num_samples .* 1\.\.5 .* 6"),
        (lambda: ops.furthest_point_sample(POINTS.long(), 2), TypeError, "xyz .* torch.int64"),
        (lambda: ops.furthest_point_sample(POINTS[0], 2), ValueError, r"xyz .* \(5, 3\)"),
        (lambda: ops.furthest_point_sample(POINTS[..., :2], 2), ValueError, r"xyz .* \(2, 5, 2\)"),
        (lambda: ops.furthest_point_sample(POINTS[:, :0], 1), ValueError, "at least one point"),
        (lambda: ops.knn(POINTS, POINTS, 0), ValueError, r"k .* 1\.\.5 .* 0"),
        (lambda: ops.knn(POINTS, POINTS[:1], 1), ValueError, "batch of 2 but query has one of 1"),
        (lambda: ops.knn(POINTS, POINTS.to("meta"), 1), ValueError, "query is on meta"),
        (lambda: ops.ball_query(POINTS, POINTS, 1.0, 0), ValueError, "max_neighbors"),
        (
            lambda: ops.group_knn(POINTS, POINTS, 2, features=torch.zeros(2, 4, 1)),
            ValueError,
            "features has 4 rows but xyz has 5",
        ),
        (
            lambda: ops.gather_points(POINTS, torch.tensor([[0], [5]])),
            IndexError,
            r"idx must lie in 0\.\.4, found 0\.\.5",
        ),
        (lambda: ops.gather_points(POINTS, torch.zeros(2, 1)), TypeError, "idx must be int32"),
        (
            lambda: ops.three_interpolate(
                POINTS, torch.zeros(2, 4, 3, dtype=torch.int64), torch.zeros(2, 4, 2)
            ),
            ValueError,
            "idx and weight",
        ),
        (lambda: ops.chamfer_loss(POINTS, POINTS, norm="l3"), ValueError, "norm .* 'l3'"),
    ],
)
def test_bad_arguments_are_named(call: object, error: type[Exception], message: str) -> None:
    ops.set_backend("reference")
    with pytest.raises(error, match=message):
        call()
