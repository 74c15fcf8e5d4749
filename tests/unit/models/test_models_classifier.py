from __future__ import annotations

import pytest
import torch

from recon_ray.models.classifier import PROTOCOLS, Classifier, is_head_parameter
from recon_ray.models.heads import ClassHead, drop_units
from recon_ray.points.random import SampleGenerator
from recon_ray.train.optim import parameter_groups

SIZES = {
    "embed_dim": 24, "depth": 2, "num_heads": 3, "num_groups": 8, "group_size": 6,
    "patch_widths": (8, 12, 16), "num_classes": 5,
}  # fmt: skip


def make_model(**overrides: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**{**SIZES, **overrides})


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(1))


def step(model: Classifier, points: torch.Tensor) -> dict[str, torch.Tensor]:
    """Take one large optimizer step; give what was there before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    source = SampleGenerator(0, torch.arange(len(points)))
    torch.nn.functional.cross_entropy(model(points, source), torch.arange(4)).backward()
    optimizer.step()
    return before


@pytest.mark.parametrize(
    ("num_classes", "head", "protocol", "total", "trainable"),
    [
        (40, "mlp", "full", 43_577_640, 43_577_640),
        (40, "mlp", "mlp3", 43_577_640, 471_336),
        (40, "linear", "linear", 43_168_552, 62_248),
        (15, "mlp", "mlp3", 43_571_215, 464_911),
        (15, "linear", "linear", 43_130_127, 23_823),
        (15, "linear", "probe", 43_130_127, 23_823 - 2 * 384),
    ],
)
def test_published_sizes(
    num_classes: int, head: str, protocol: str, total: int, trainable: int
) -> None:
    with torch.device("meta"):
        model = Classifier(num_classes=num_classes, head=head)
    model.set_protocol(protocol)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for _, p in model.trainable_parameters()) == trainable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_step_changes_only_what_the_protocol_trains(points: torch.Tensor, protocol: str) -> None:
    model = make_model().train()
    model.set_protocol(protocol)
    before = step(model, points)
    trained = {name for name, _ in model.trainable_parameters()}
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # biases in front of a batch norm have a gradient of rounding noise only
    assert changed <= trained
    assert {"head.fc1.weight", "head.fc3.bias"} <= changed
    assert ("encoder.class_token" in changed) == (protocol != "probe")
    assert ("encoder.embed.fc1.weight" in changed) == (protocol == "full")


def test_frozen_statistics_move_in_the_published_probes_not_in_ours(points: torch.Tensor) -> None:
    for protocol, moves in (("mlp3", True), ("probe", False)):
        model = make_model().train()
        model.set_protocol(protocol)
        before = step(model, points)["encoder.embed.norm1.running_mean"]
        assert torch.equal(before, model.encoder.embed.norm1.running_mean) != moves
        assert model.head.norm1.running_mean.any()


def test_a_probe_stays_one_when_training_mode_is_set_again(points: torch.Tensor) -> None:
    model = make_model(drop_path=0.5)
    model.set_protocol("probe")
    model.eval().train()
    assert model.head.training
    assert not model.encoder.training
    first, second = model.forward_features(points), model.forward_features(points)
    assert torch.equal(first, second)
    assert not first.requires_grad
    model.set_protocol("full")
    model.train()
    assert model.encoder.training
    assert model.forward_features(points).requires_grad


def test_head_group_is_the_published_one() -> None:
    model = make_model()
    head = [name for name, _ in model.named_parameters() if is_head_parameter(name)]
    assert {"encoder.class_token", "encoder.class_pos", "head.norm1.bias"} <= set(head)
    assert all(name.startswith(("head.", "encoder.class_")) for name in head)
    assert is_head_parameter("model.head.fc1.weight")
    assert not is_head_parameter("model.contrast_head.fc1.weight")
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, head=is_head_parameter)
    assert len(groups[0]["params"]) == len(head)
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (10.0, 0.05)


def test_logits_are_those_of_the_pooled_features(points: torch.Tensor) -> None:
    model = make_model().eval()
    tokens = model.forward_features(points)
    parts = [tokens[:, 0], tokens[:, 1], tokens[:, 2], tokens[:, 3:].max(1).values]
    torch.testing.assert_close(model(points), model.head(torch.cat(parts, dim=-1)))
    torch.testing.assert_close(model(points), model.forward_head(tokens))
    assert model(points).shape == (4, 5)


def test_dropout_follows_the_sample_not_the_batch() -> None:
    x, ids = torch.ones(4, 1000), torch.arange(4)
    whole = drop_units(x, 0.25, SampleGenerator(0, ids), enabled=True)
    parts = [
        drop_units(x[i : i + 1], 0.25, SampleGenerator(0, ids[i : i + 1]), enabled=True)
        for i in range(4)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert (whole == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert whole.max().item() == pytest.approx(4 / 3)
    assert torch.equal(drop_units(x, 0.25, None, enabled=False), x)


def test_dropout_is_used_in_training_only(points: torch.Tensor) -> None:
    head = ClassHead(8, 3).eval()
    x = torch.randn(6, 8)
    assert torch.equal(head(x), head(x))
    head.train()
    assert not torch.equal(head(x), head(x))


def test_reference_init_leaves_the_class_token_at_zero() -> None:
    reference = make_model(init="reference", embed_dim=96, patch_widths=(32, 32, 64)).encoder
    assert not reference.class_token.any()
    for token in (reference.image_token, reference.class_pos, reference.text_pos):
        assert token.std().item() == pytest.approx(0.02, rel=0.3)
    assert reference.embed.fc3.bias.any()  # torch's default
    scratch = make_model(embed_dim=96, patch_widths=(32, 32, 64)).encoder
    assert scratch.class_token.any()
    assert not scratch.embed.fc3.bias.any()
    assert scratch.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "deep"}, "head must be one of linear, mlp, found 'deep'"),
        ({"init": "zero"}, "init must be one of scratch, reference, found 'zero'"),
        ({"num_heads": 5}, "num_heads=5 does not divide embed_dim=24"),
    ],
)
def test_unknown_names_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)
    with pytest.raises(ValueError, match="protocol must be one of full, linear, mlp3, probe"):
        make_model().set_protocol("half")
