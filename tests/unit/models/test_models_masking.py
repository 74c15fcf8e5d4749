from __future__ import annotations

import pytest
import torch

from recon_ray.models.masking import block_mask, check_mask, random_mask, split_by_mask
from recon_ray.points.random import SampleGenerator

CENTERS = torch.randn(50, 64, 3, generator=torch.Generator().manual_seed(0))
SOURCE_IDS = torch.arange(50)


@pytest.mark.parametrize("make", [random_mask, block_mask])
def test_every_sample_hides_as_many_and_its_own(make: object) -> None:
    mask = make(CENTERS, 38, SampleGenerator(0, SOURCE_IDS))
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == 38).all()
    assert len(mask.unique(dim=0)) == 50
    part = make(CENTERS[10:20], 38, SampleGenerator(0, SOURCE_IDS[10:20]))
    assert torch.equal(mask[10:20], part)


def test_random_masks_hide_every_patch_equally_often() -> None:
    mask = random_mask(torch.zeros(5000, 10, 3), 6, SampleGenerator(0, torch.arange(5000)))
    assert float((mask.float().mean(0) - 0.6).abs().max()) < 5 * (0.24 / 5000) ** 0.5


def test_block_mask_is_the_ball_around_a_center() -> None:
    mask = block_mask(CENTERS, 20, SampleGenerator(1, SOURCE_IDS))
    for sample in range(50):
        distance = torch.cdist(CENTERS[sample], CENTERS[sample])
        balls = distance.argsort(dim=1)[:, :20].sort(dim=1).values
        assert (balls == mask[sample].nonzero()[:, 0]).all(1).any()


def test_split_keeps_index_order() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    visible, hidden = split_by_mask(mask, 2)
    assert visible.tolist() == [[0, 2, 4], [2, 3, 4]]
    assert hidden.tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 3), r"bool of shape \(2, 4\), found torch.float32 of shape \(2, 3\)"),
        (torch.zeros(2, 4, dtype=torch.bool), r"1\.\.3, in every sample, found 0\.\.0"),
        (torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]) > 0, r"found 1\.\.2"),
        (torch.ones(2, 4, dtype=torch.bool), r"found 4\.\.4"),
    ],
)
def test_unusable_masks_are_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mask(mask, 2, 4)
