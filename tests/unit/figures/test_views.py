from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_ray.figures.views import attend, reconstruct, spread_to_points
from recon_ray.models.grouping import index_patches
from recon_ray.models.presets import MODELS
from recon_ray.points.random import SampleGenerator

SIZES = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 6}


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 60, 3, generator=generator) - 0.5


def make(kind, **more):
    torch.manual_seed(0)
    return MODELS[kind](**SIZES, patch_widths=(8, 8, 8), **more).eval()


@pytest.mark.parametrize("kind", ["recon", "twotower"])
def test_what_is_visible_and_masked_are_the_points_of_the_patches(points, kind):
    model = make(kind, decoder_depth=1, mask_ratio=0.5)
    source = SampleGenerator(0, torch.arange(2))
    made = reconstruct(model, points, source)
    output = model(points, source=SampleGenerator(0, torch.arange(2)))
    _, _, idx = index_patches(points, 8, 6)
    for i in range(2):
        hidden = set(idx[i][output.mask[i]].flatten().tolist())
        shown = set(idx[i][~output.mask[i]].flatten().tolist())
        assert set(np.flatnonzero(made[i].masked)) == hidden
        assert set(np.flatnonzero(made[i].visible)) == shown
        assert made[i].prediction.shape == (4 * 6, 3)
        # In the cloud's frame: relative to the center of the patch in training.
        first = output.prediction[i, 0] + output.centers[i][output.mask[i]][0]
        np.testing.assert_allclose(made[i].prediction[:6], first.detach(), atol=1e-6)
        distances = torch.cdist(output.prediction[i], output.target[i]).square()
        loss = distances.amin(1).mean() + distances.amin(2).mean()
        assert made[i].loss == pytest.approx(loss.item(), rel=1e-4)


def test_the_mask_of_a_shape_does_not_depend_on_its_company(points):
    model = make("recon", decoder_depth=1)
    both = reconstruct(model, points, SampleGenerator(0, torch.tensor([4, 9])))
    alone = reconstruct(model, points[1:], SampleGenerator(0, torch.tensor([9])))
    np.testing.assert_array_equal(both[1].masked, alone[0].masked)


def test_points_get_the_mean_of_their_patches_and_nan_outside():
    weights = torch.tensor([[[1.0, 3.0]]])
    idx = torch.tensor([[[0, 1], [1, 2]]])
    spread = spread_to_points(weights, idx, 4)
    assert spread[0, 0, :3].tolist() == [1, 2, 3]
    assert spread[0, 0, 3].isnan()


def test_attention_is_averaged_over_the_chosen_blocks_with_one_for_an_even_share(points):
    model = make("embedder")
    each = [attend(model, points, [number]) for number in (1, 2, 3)]
    both = attend(model, points, [1, 3])
    for token in ("class", "image", "text"):
        mean = (each[0][1][token] + each[2][1][token]) / 2
        np.testing.assert_allclose(both[1][token], mean, rtol=1e-5)
        # The last third of three blocks is the last one.
        np.testing.assert_array_equal(attend(model, points)[0][token], each[2][0][token])
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.contrast_attn.q.weight.zero_()  # all keys alike
    even = attend(model, points)[0]["text"]
    np.testing.assert_allclose(even[~np.isnan(even)], 1, rtol=1e-5)
