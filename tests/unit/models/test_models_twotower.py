from __future__ import annotations

import pytest
import torch

from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.twotower import TwoTower, TwoTowerClassifier
from recon_ray.points.random import SampleGenerator

SIZES = {
    "embed_dim": 24, "depth": 2, "num_heads": 3, "num_groups": 8, "group_size": 6,
    "patch_widths": (8, 12, 16),
}  # fmt: skip


def make_pretraining(**overrides: object) -> TwoTower:
    torch.manual_seed(0)
    sizes = {**SIZES, "decoder_depth": 1, "image_dim": 10, "text_dim": 12, **overrides}
    return TwoTower(**sizes)


def make_classifier(stream: str, **overrides: object) -> TwoTowerClassifier:
    torch.manual_seed(0)
    return TwoTowerClassifier(num_classes=5, stream=stream, **{**SIZES, **overrides})


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(1))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = TwoTower()
        streams = {s: count(TwoTowerClassifier(num_classes=15, stream=s)) for s in STREAM_SIZES}
    assert count(model) == 51_227_232
    assert count(model.encoder) == 21_825_024
    assert count(model.contrast_encoder) == 21_826_560
    assert streams == STREAM_SIZES


STREAM_SIZES = {"ALL": 44_116_495, "MDM": 43_919_887, "CMC": 43_919_887}


def test_the_reference_draws_the_token_and_the_distilling_tower_only() -> None:
    """Other weights of the reconstructing tower keep torch's defaults until a file is loaded."""
    model = make_classifier("ALL", init="reference")
    mine, distilling = model.encoder, model.contrast_encoder
    assert mine.embed.fc1.bias.any()  # torch's; the drawn ones are 0
    assert not distilling.embed.fc1.bias.any()
    tokens = torch.stack([mine.class_token, mine.class_pos])
    assert 0 < tokens.abs().max() < 0.1
    assert not make_classifier("ALL").encoder.embed.fc1.bias.any()
    with pytest.raises(ValueError, match="init must be one of scratch, reference, found 'zero'"):
        make_classifier("ALL", init="zero")
    with pytest.raises(ValueError, match="stream must be one of ALL, MDM, CMC, found 'BOTH'"):
        make_classifier("BOTH")


def test_pretraining_goes_into_the_same_losses(points: torch.Tensor) -> None:
    model = make_pretraining()
    output = model(points, source=SampleGenerator(0, torch.arange(4)))
    assert output.prediction.shape == output.target.shape == (4, 4, 6, 3)
    assert output.contrast is None
    features = {"image_features": torch.zeros(4, 10), "text_features": torch.zeros(4, 12)}
    losses = pretrain_losses(output, **features)
    assert set(losses) == {"reconstruction", "image_distill", "text_distill", "loss"}
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    output = model(points)
    output.prediction.square().sum().backward(retain_graph=True)
    assert model.encoder.embed.fc1.weight.grad.any()
    assert all(p.grad is None for p in model.contrast_encoder.parameters())
    model.zero_grad()
    (output.image.square().sum() + output.text.square().sum()).backward()
    assert model.contrast_encoder.embed.fc1.weight.grad.any()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_the_distilling_tower_sees_every_patch(points: torch.Tensor) -> None:
    model = make_pretraining().eval()
    one, other = (torch.zeros(4, 8, dtype=torch.bool) for _ in range(2))
    one[:, :3] = True
    other[:, 5:] = True
    first, second = model(points, mask=one), model(points, mask=other)
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.prediction, second.prediction)


def test_drop_path_follows_the_sample(points: torch.Tensor) -> None:
    model = make_pretraining(drop_path=0.5)
    ids = torch.arange(4)
    outputs = [model(points, source=SampleGenerator(seed, ids)) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0].image, outputs[1].image)
    assert not torch.equal(outputs[0].image, outputs[2].image)


def test_initial_tokens_are_zero_and_positions_are_not() -> None:
    tower = make_pretraining().contrast_encoder
    assert not tower.image_token.any()
    assert tower.image_pos.std().item() == pytest.approx(1.0, rel=0.5)
    classifier = make_classifier("ALL").encoder
    assert classifier.class_token.std().item() == pytest.approx(0.02, rel=0.5)
    assert classifier.class_pos.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize(("stream", "width"), [("ALL", 96), ("MDM", 48), ("CMC", 48)])
def test_streams_use_their_towers_only(points: torch.Tensor, stream: str, width: int) -> None:
    model = make_classifier(stream).train()
    assert model.forward_features(points).shape == (4, width)
    torch.nn.functional.cross_entropy(model(points), torch.arange(4)).backward()
    for tower, used in ((model.encoder, "MDM"), (model.contrast_encoder, "CMC")):
        is_used = stream in ("ALL", used)
        assert all(p.requires_grad == is_used for p in tower.parameters())
        assert all((p.grad is not None) == is_used for p in tower.parameters())


def test_first_patches_are_left_out_under_the_quirk(points: torch.Tensor) -> None:
    quirk, sound = make_classifier("MDM", drop_first_patches=True), make_classifier("MDM")
    token, x = sound.eval().encoder(*sound._cut(points))
    expected = torch.cat([token[:, 0], x.max(1).values], dim=-1)
    torch.testing.assert_close(sound.forward_features(points), expected)
    expected = torch.cat([token[:, 0], x[:, 2:].max(1).values], dim=-1)
    torch.testing.assert_close(quirk.eval().forward_features(points), expected)


def test_protocols_train_class_token_and_head() -> None:
    model = make_classifier("ALL")
    model.set_protocol("linear")
    names = {name for name, _ in model.trainable_parameters()}
    assert {"encoder.class_token", "encoder.class_pos", "head.fc1.weight"} <= names
    assert all(name.startswith(("head.", "encoder.class_")) for name in names)
    model.set_protocol("probe")
    model.train()
    assert not model.encoder.training
    assert not model.contrast_encoder.training
    assert all(name.startswith("head.") for name, _ in model.trainable_parameters())
