from __future__ import annotations

import pytest
import torch

from recon_ray.points import ops, transforms
from recon_ray.points.random import SampleGenerator

IDS = torch.arange(300)


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(300, 40, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "transform",
    [
        transforms.rotate_y,
        transforms.scale,
        transforms.translate,
        transforms.scale_and_translate,
        lambda points, source: transforms.random_subset(points, 7, source),
    ],
)
def test_result_does_not_depend_on_the_batch(transform: object, points: torch.Tensor) -> None:
    whole = transform(points, SampleGenerator(1, IDS, 3))
    part = transform(points[50:60], SampleGenerator(1, IDS[50:60], 3))
    assert torch.equal(whole[50:60], part)
    assert not torch.equal(whole, transform(points, SampleGenerator(2, IDS, 3)))


def test_rotation_keeps_height_and_norms_and_covers_the_circle(points: torch.Tensor) -> None:
    turned = transforms.rotate_y(points, SampleGenerator(0, IDS))
    assert torch.equal(turned[..., 1], points[..., 1])
    torch.testing.assert_close(turned.norm(dim=-1), points.norm(dim=-1))
    angle = torch.atan2(turned[:, 0, 2], turned[:, 0, 0]) - torch.atan2(
        points[:, 0, 2], points[:, 0, 0]
    )
    quadrant = torch.remainder(angle, 2 * torch.pi).div(torch.pi / 2).long()
    assert torch.bincount(quadrant, minlength=4).min() > 45  # 75 expected


def test_rotation_is_that_of_the_reference() -> None:
    points = torch.tensor([[[1.0, 2.0, 3.0]]])
    source = SampleGenerator(0, torch.tensor([0]))
    angle = 2 * torch.pi * SampleGenerator(0, torch.tensor([0])).uniform()
    c, s = float(angle.cos()), float(angle.sin())
    matrix = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # row vectors: p @ matrix
    torch.testing.assert_close(transforms.rotate_y(points, source), points @ matrix)


def test_scale_and_shift_ranges(points: torch.Tensor) -> None:
    factor = transforms.scale(points, SampleGenerator(0, IDS))[:, 0] / points[:, 0]
    assert float(factor.min()) >= 2 / 3 - 1e-5
    assert float(factor.max()) <= 3 / 2 + 1e-5
    assert float(factor.max() - factor.min()) > 0.8
    shift = transforms.translate(points, SampleGenerator(0, IDS)) - points
    assert float(shift.abs().max()) <= 0.2 + 1e-5
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-5, rtol=0)
    assert not torch.allclose(shift[:, 0, 0], shift[:, 0, 1])


def test_normalized_clouds_fill_the_unit_sphere(points: torch.Tensor) -> None:
    normalized = transforms.normalize(5 * points + 3)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(300, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.norm(dim=-1).amax(1), torch.ones(300))
    assert torch.equal(transforms.normalize(torch.full((1, 4, 3), 2.0)), torch.zeros(1, 4, 3))


def test_subset_has_no_point_twice() -> None:
    cloud = torch.arange(50.0)[None, :, None].expand(3, 50, 3)
    subset = transforms.random_subset(cloud, 30, SampleGenerator(0, torch.arange(3)))
    assert all(len(set(row.tolist())) == 30 for row in subset[..., 0])
    with pytest.raises(ValueError, match=r"n must be in 1\.\.50"):
        transforms.random_subset(cloud, 51)


def test_resampling_shares_the_positions_in_the_batch() -> None:
    cloud = torch.arange(1100.0)[None, :, None].expand(2, 1100, 3)
    picked = transforms.resample(cloud, 1024, torch.Generator().manual_seed(0))
    assert torch.equal(picked[0], picked[1])
    assert len(set(picked[0, :, 0].tolist())) == 1024
    own = transforms.resample(cloud, 1024, SampleGenerator(0, torch.arange(2)))
    assert not torch.equal(own[0], own[1])


def test_resampling_thins_to_the_candidates_of_known_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def sample(points: torch.Tensor, count: int, **options: float) -> tuple:
        asked.append((count, options["min_sq_norm"]))
        return None, points[:, :count]

    monkeypatch.setattr(transforms.ops, "furthest_point_sample", sample)
    assert transforms.resample(torch.rand(2, 2048, 3), 1024, min_sq_norm=1e-3).shape[1] == 1024
    assert asked == [(1200, 1e-3)]
    transforms.resample(torch.rand(2, 2048, 3), 2048)  # 2400 capped: only a permutation
    transforms.resample(torch.rand(1, 8192, 3), 8192)
    assert len(asked) == 1
    with pytest.raises(ValueError, match="n must be one of 1024, 2048, 4096, 8192, found 1000"):
        transforms.resample(torch.rand(1, 2048, 3), 1000)
    with pytest.raises(ValueError, match="cannot pick 2048 of 1500"):
        transforms.resample(torch.rand(1, 1500, 3), 2048)


@pytest.mark.parametrize("skipped", [(), (5, 20), (0, 5), (0, 1, 2), range(40)])
@pytest.mark.parametrize("start", [None, 0, 7, 5])
def test_all_points_are_thinned_as_sampling_all_does(
    points: torch.Tensor, skipped: tuple[int, ...], start: int | None
) -> None:
    """The set that the published sampling gives, which starts at the first point of its order."""
    clouds = points[:3].clone()
    clouds[:, list(skipped)] *= 0.03 / clouds[:, list(skipped)].norm(dim=-1, keepdim=True)
    starts = None if start is None else torch.full((3,), start)
    thinned = transforms.thin(clouds, 40, start=starts, min_sq_norm=1e-3)
    others = [index for index in range(40) if index != (start or 0)]
    in_order = clouds[:, [start or 0, *others]]
    sampled = ops.furthest_point_sample(in_order, 40, min_sq_norm=1e-3)[1]
    for mine, theirs in zip(thinned.tolist(), sampled.tolist(), strict=True):
        assert sorted(mine) == sorted(theirs)
    if not skipped:
        assert torch.equal(thinned, clouds)  # in their order


def test_a_rule_that_skips_nothing_leaves_all_points_alone(points: torch.Tensor) -> None:
    points[:, 3] = 0
    assert transforms.thin(points, 40) is points
    assert transforms.thin(points, 50) is points


def test_resampling_permutes_all_points_but_those_that_are_skipped() -> None:
    cloud = 1 + torch.arange(1024.0)[None, :, None].expand(2, 1024, 3)
    cloud = cloud.clone()
    cloud[:, 7] = 0
    picked = transforms.resample(cloud, 1024, SampleGenerator(0, torch.arange(2)), min_sq_norm=1e-3)
    assert not torch.equal(picked[0], picked[1])
    expected = sorted([1.0, *(1.0 + i for i in range(1024) if i != 7)])
    assert sorted(picked[0, :, 0].tolist()) == expected
