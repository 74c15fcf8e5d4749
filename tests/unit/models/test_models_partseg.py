from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recon_ray.models.partseg import PartSegmenter, is_part_head_parameter
from recon_ray.points.random import SampleGenerator

SIZES = {
    "embed_dim": 12, "depth": 4, "num_heads": 2, "num_groups": 6, "group_size": 5, "num_parts": 7,
    "num_categories": 3, "category_dim": 4, "propagation_widths": (10, 9), "head_widths": (8, 6),
    "patch_widths": (4, 6, 8), "feature_blocks": (0, 2, 3),
}  # fmt: skip


def make_model(**overrides: object) -> PartSegmenter:
    torch.manual_seed(0)
    return PartSegmenter(**{**SIZES, **overrides})


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def category() -> torch.Tensor:
    return torch.tensor([2, 0])


def straightforward(
    model: PartSegmenter, points: torch.Tensor, category: torch.Tensor
) -> torch.Tensor:
    """Compute the same as the published description: everything repeated to the points."""
    features, count = model.encode_parts(points), points.shape[1]
    x = features.patches
    distances = torch.cdist(points.double(), features.centers.double()).square()
    distances, idx = distances.topk(3, largest=False)
    weights = 1 / (distances + 1e-8)
    weights = (weights / weights.sum(-1, keepdim=True)).float()
    near = torch.stack([x[b][idx[b]] for b in range(len(x))])  # (B, N, 3, F D)
    interpolated = (near * weights[..., None]).sum(2)
    layers = model.propagation
    y = torch.cat([points, interpolated], dim=-1)
    y = F.relu(layers.norm1(layers.fc1(y)))
    y = F.relu(layers.norm2(layers.fc2(y)))
    one_hot = F.one_hot(category, model.num_categories).float()
    label = F.leaky_relu(model.category.norm(model.category.fc(one_hot)), 0.2)
    shape = torch.cat([x.max(1).values, x.mean(1), features.token, label], dim=-1)
    y = torch.cat([y, shape[:, None].expand(-1, count, -1)], dim=-1)
    head = model.part_head
    y = F.relu(head.norm1(head.fc1(y)))
    return head.fc3(F.relu(head.norm2(head.fc2(y)))).log_softmax(-1)


def test_published_size() -> None:
    with torch.device("meta"):
        model = PartSegmenter()
    assert sum(p.numel() for p in model.parameters()) == 48_542_386
    assert model.feature_blocks == (3, 7, 11)
    assert model.num_groups == 128


@pytest.mark.parametrize("training", [False, True])
def test_the_fast_evaluation_equals_the_straightforward_one(
    points: torch.Tensor, category: torch.Tensor, training: bool
) -> None:
    model = make_model(dropout=0.0, drop_path=0.0).train(training)
    expected = straightforward(model, points, category)
    torch.testing.assert_close(model(points, category), expected, rtol=1e-4, atol=1e-4)


def test_every_point_gets_a_distribution(points: torch.Tensor, category: torch.Tensor) -> None:
    log_probs = make_model().eval()(points, category)
    assert log_probs.shape == (2, 40, 7)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 40))


def test_category_matters_and_labels_follow_the_points(
    points: torch.Tensor, category: torch.Tensor
) -> None:
    model = make_model().eval()
    assert not torch.allclose(model(points, category), model(points, category.flip(0)))
    # The first point stays: the furthest-point sampling starts there.
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    moved = model(points[:, order], category)
    torch.testing.assert_close(moved, model(points, category)[:, order], rtol=1e-4, atol=1e-5)


def test_patches_of_chosen_blocks_are_normalized_the_token_is_not(points: torch.Tensor) -> None:
    model = make_model().eval()
    patches, centers = model._cut(points)
    queries, last, kept = model.encoder.forward_blocks(patches, centers, keep=(0, 2, 3))
    features = model.encode_parts(points)
    torch.testing.assert_close(features.patches[..., 12:24], model.encoder.norm(kept[1]))
    torch.testing.assert_close(features.patches[..., 24:], model.encoder.norm(last))
    torch.testing.assert_close(features.token, queries.max(1).values)


def test_randomness_belongs_to_the_sample(points: torch.Tensor, category: torch.Tensor) -> None:
    model = make_model(drop_path=0.5)
    for module in model.modules():  # batch statistics are the one thing that sees the batch
        module.training = "BatchNorm" not in type(module).__name__
    ids = torch.arange(2)
    whole = model(points, category, SampleGenerator(0, ids))
    for i in range(2):
        part = slice(i, i + 1)
        alone = model(points[part], category[part], SampleGenerator(0, ids[part]))
        torch.testing.assert_close(alone, whole[part], rtol=1e-4, atol=1e-5)
    other = model(points, category, SampleGenerator(1, ids))
    assert not torch.allclose(other, whole)


def test_every_parameter_learns(points: torch.Tensor, category: torch.Tensor) -> None:
    model = make_model(dropout=0.0).train()
    log_probs = model(points, category)
    F.nll_loss(log_probs.flatten(0, 1), torch.arange(80) % 7).backward()
    assert all(p.grad is not None for p in model.parameters())
    # A constant in front of a batch norm has no effect; all weights have one.
    assert all(p.grad.any() for p in model.parameters() if p.ndim == 2)


def test_head_group_is_the_published_one() -> None:
    names = [name for name, _ in make_model().named_parameters() if is_part_head_parameter(name)]
    layers = {name.rpartition(".")[0] for name in names}
    assert layers == {
        "category.fc", "category.norm", "propagation.fc1", "propagation.fc2",
        "part_head.fc1", "part_head.fc2", "part_head.fc3",
    }  # fmt: skip
    assert is_part_head_parameter("model.part_head.fc1.bias")
    assert not is_part_head_parameter("model.encoder.embed.fc1.bias")


def test_reference_init_draws_positions_of_deviation_one() -> None:
    encoder = make_model(init="reference", embed_dim=96).encoder
    assert not any(t.any() for t in (encoder.class_token, encoder.image_token, encoder.text_token))
    assert encoder.text_pos.std().item() == pytest.approx(1.0, rel=0.3)
    assert make_model().encoder.class_token.any()


@pytest.mark.parametrize("blocks", [(), (3, 1), (0, 4), (1, 1)])
def test_blocks_that_are_not_there_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"feature_blocks must be rising numbers in 0\.\.3"):
        make_model(feature_blocks=blocks)


@pytest.mark.parametrize(("depth", "expected"), [(12, (3, 7, 11)), (4, (0, 1, 3)), (1, (0,))])
def test_default_blocks_end_the_thirds_of_the_depth(depth: int, expected: tuple[int, ...]) -> None:
    assert make_model(depth=depth, feature_blocks=None).feature_blocks == expected
