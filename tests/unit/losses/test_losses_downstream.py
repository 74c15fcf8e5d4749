from __future__ import annotations

import math

import pytest
import torch

from recon_ray.losses.downstream import classification_losses, segmentation_losses


def test_classification_of_a_hand_made_case() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    losses = classification_losses(logits, torch.tensor([0, 1, 0]))
    rows = [math.log1p(math.exp(-2)), math.log(2), math.log1p(math.exp(3))]
    assert losses["loss"].item() == pytest.approx(sum(rows) / 3, rel=1e-6)
    assert losses["accuracy"].item() == pytest.approx(1 / 3)


def test_segmentation_averages_over_all_points() -> None:
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]])
    losses = segmentation_losses(probabilities.log(), torch.tensor([[0, 2]], dtype=torch.uint8))
    assert losses["loss"].item() == pytest.approx((math.log(2) + math.log(8)) / 2, rel=1e-6)
    assert losses["accuracy"].item() == 0.5


def test_losses_are_computed_in_float32() -> None:
    logits = torch.randn(4, 3, dtype=torch.bfloat16)
    assert classification_losses(logits, torch.zeros(4, dtype=torch.int64))["loss"].dtype == (
        torch.float32
    )
