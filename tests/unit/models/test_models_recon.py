from __future__ import annotations

import pytest
import torch

from recon_ray.api import create_model
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.presets import PRESETS
from recon_ray.models.recon import Recon
from recon_ray.models.transformer import Block, ReconBlock, drop_path_rates, drop_path_scales
from recon_ray.points.random import SampleGenerator

SIZES = {
    "embed_dim": 24, "depth": 2, "num_heads": 3, "num_groups": 8, "group_size": 6,
    "decoder_depth": 2, "patch_widths": (8, 12, 16), "image_dim": 10, "text_dim": 12,
}  # fmt: skip
PATCH_PATH = ("encoder.embed.", "encoder.pos_embed.", ".norm1.", ".norm2.", ".attn.", ".mlp.")


def make_model(**overrides: object) -> Recon:
    torch.manual_seed(0)
    return Recon(**{**SIZES, **overrides})


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(1))


def is_patch_path(name: str) -> bool:
    return name.startswith("encoder.") and any(part in name for part in PATCH_PATH)


@pytest.mark.parametrize(
    ("preset", "total", "encoder", "contrast", "decoder", "self_contrast"),
    [
        ("base", 50_781_280, 43_107_072, 21_279_744, 7_094_016, 66_304),
        ("small", 22_944_096, 19_400_192, 9_467_904, 3_156_480, 49_920),
        ("tiny", 13_154_272, 11_085_696, 5_331_456, 1_777_536, 41_728),
    ],
)
def test_published_sizes(
    preset: str, total: int, encoder: int, contrast: int, decoder: int, self_contrast: int
) -> None:
    with torch.device("meta"):
        model = create_model(preset)
        with_contrast = create_model(preset, self_contrast=True)

    def count(module: torch.nn.Module, part: str = "") -> int:
        return sum(p.numel() for name, p in module.named_parameters() if part in name)

    assert count(model) == total
    assert count(model.encoder) == encoder
    assert count(model.encoder, ".contrast_") == contrast
    assert count(model.decoder.blocks) + count(model.decoder.norm) == decoder
    assert count(with_contrast) - total == self_contrast


def test_base_hides_38_of_64_patches() -> None:
    with torch.device("meta"):
        assert create_model("base").num_masked == 38


def test_every_preset_can_be_built_and_overridden() -> None:
    for preset in PRESETS:
        with torch.device("meta"):
            assert create_model(preset, image_dim=None, text_dim=7).text_proj.out_features == 7
    with pytest.raises(ValueError, match="unknown preset 'huge'; use one of base, small"):
        create_model("huge")


def test_output_shapes(points: torch.Tensor) -> None:
    output = make_model(self_contrast=True)(points)
    assert output.prediction.shape == output.target.shape == (4, 4, 6, 3)
    assert output.image.shape == (4, 10)
    assert output.text.shape == (4, 12)
    assert output.mask.shape == (4, 8)
    assert output.centers.shape == (4, 8, 3)
    torch.testing.assert_close(output.contrast.norm(dim=-1), torch.ones(4))


def test_outputs_without_teachers_are_none(points: torch.Tensor) -> None:
    output = make_model(image_dim=None, text_dim=None)(points)
    assert output.image is output.text is output.contrast is None
    with pytest.raises(ValueError, match="no text projection"):
        make_model(text_dim=None).encode_text(points)


def test_mask_and_drop_path_follow_the_sample_not_the_batch(points: torch.Tensor) -> None:
    model = make_model(drop_path=0.5).eval()
    for module in model.modules():  # batch statistics are the one thing that sees the batch
        if isinstance(module, ReconBlock | Block) or module is model:
            module.training = True
    ids = torch.arange(4)
    whole = model(points, source=SampleGenerator(0, ids))
    parts = [model(points[i : i + 1], source=SampleGenerator(0, ids[i : i + 1])) for i in range(4)]
    assert torch.equal(whole.mask, torch.cat([part.mask for part in parts]))
    torch.testing.assert_close(whole.text, torch.cat([part.text for part in parts]))
    torch.testing.assert_close(whole.prediction, torch.cat([part.prediction for part in parts]))
    other = model(points, mask=whole.mask, source=SampleGenerator(1, ids))
    assert not torch.allclose(whole.prediction, other.prediction)


def test_tokens_do_not_meet_and_patches_do_not_see_them(points: torch.Tensor) -> None:
    model = make_model().eval()
    before = model.forward_features(points)
    with torch.no_grad():
        model.encoder.text_token.add_(1.0)
    after = model.forward_features(points)
    assert torch.equal(before[:, :2], after[:, :2])
    assert torch.equal(before[:, 3:], after[:, 3:])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_teacher_losses_do_not_reach_the_patches_in_pretraining(points: torch.Tensor) -> None:
    model = make_model(self_contrast=True)
    output = model(points)
    (output.image.sum() + output.text.square().sum() + output.contrast[:, 0].sum()).backward()
    for name, parameter in model.encoder.named_parameters(prefix="encoder"):
        if is_patch_path(name):
            assert parameter.grad is None or not parameter.grad.any(), name
    assert model.encoder.norm.weight.grad.any()


def test_reconstruction_does_not_reach_the_contrast_branch(points: torch.Tensor) -> None:
    model = make_model()
    model(points).prediction.square().sum().backward()
    for name, parameter in model.encoder.named_parameters(prefix="encoder"):
        if is_patch_path(name):
            assert parameter.grad is not None, name
        elif "norm" not in name.split(".")[1]:
            assert parameter.grad is None or not parameter.grad.any(), name


def test_features_let_token_gradients_reach_the_embedding(points: torch.Tensor) -> None:
    model = make_model()
    model.forward_features(points)[:, :3].square().sum().backward()
    assert model.encoder.embed.fc1.weight.grad.any()


def test_class_token_has_a_zero_gradient_without_self_contrast(points: torch.Tensor) -> None:
    model = make_model()
    losses = pretrain_losses(
        model(points), image_features=torch.zeros(4, 10), text_features=torch.zeros(4, 12)
    )
    losses["loss"].backward()
    # Zero, not absent: the optimizer still decays the class position, as in the reference.
    assert not model.encoder.class_token.grad.any()
    assert not model.encoder.class_pos.grad.any()
    assert all(p.grad is not None for p in model.parameters())


def test_residual_carries_the_normalized_value() -> None:
    block = ReconBlock(6, 2).eval()
    for part in (block.attn, block.mlp, block.contrast_attn, block.contrast_mlp):
        last = part.fc2 if hasattr(part, "fc2") else part.proj
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    queries, x = block(10 * torch.randn(1, 3, 6), 10 * torch.randn(1, 4, 6), stop_gradient=False)
    torch.testing.assert_close(x.mean(-1), torch.zeros(1, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(queries.var(-1, unbiased=False), torch.ones(1, 3))


def test_every_block_gets_positions(points: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().eval()
    seen = []
    for block in model.encoder.blocks:
        monkeypatch.setattr(
            block, "forward", lambda queries, x, **_: (seen.append(x), (queries * 0, x * 0))[1]
        )
    model.forward_features(points)
    torch.testing.assert_close(seen[1], model.encoder.pos_embed(model._cut(points)[1]))


def test_the_mask_decides_what_is_reconstructed_and_hidden_patches_do_not_leak(
    points: torch.Tensor,
) -> None:
    model = make_model().eval()
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, [1, 6]] = True
    output = model(points, mask=mask)
    patches, centers = model._cut(points)
    assert torch.equal(output.target, patches[:, [1, 6]])
    assert torch.equal(output.mask, mask)
    changed = patches.clone()
    changed[:, 4:] += 1.0
    for hidden in (patches[:, 4:], changed[:, 4:]):
        _, x = model.encoder(patches[:, :4], centers[:, :4], context=hidden)
        torch.testing.assert_close(x, model.encoder(patches[:, :4], centers[:, :4])[1])


def test_svm_features_and_projected_tokens_follow_their_formula(points: torch.Tensor) -> None:
    model = make_model().eval()
    features = model.forward_features(points)
    tokens, patches = features[:, :3], features[:, 3:]
    expected = [tokens.max(1).values, patches.max(1).values + patches.mean(1)]
    assert torch.equal(model.svm_features(points), torch.cat(expected, dim=-1))
    torch.testing.assert_close(model.encode_image(points), model.image_proj(features[:, 1]))
    torch.testing.assert_close(model.encode_text(points), model.text_proj(features[:, 2]))


def test_initial_weights_are_those_of_the_reference() -> None:
    model = make_model(embed_dim=192, patch_widths=(64, 64, 128), self_contrast=True)
    encoder, decoder = model.encoder, model.decoder
    for weight in (encoder.blocks[0].attn.qkv.weight, encoder.embed.fc4.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(weight.mean().item()) < 0.001
    assert encoder.class_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert encoder.text_pos.std().item() == pytest.approx(0.02, rel=0.2)
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert decoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(
        (2 / (192 + 768)) ** 0.5, rel=0.05
    )
    assert not decoder.blocks[0].mlp.fc1.bias.any()
    assert decoder.head.bias.any()  # torch's default
    for head in (model.image_proj, model.text_proj, model.contrast_head.fc1):
        assert head.weight.mean().item() == pytest.approx(0.02, rel=0.05)
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_drop_rates_grow_with_depth_and_kept_branches_are_scaled() -> None:
    expected = [0.0, 0.0, 0.05, 0.05, 0.1, 0.1]
    assert drop_path_rates(0.1, 3, 2).tolist() == pytest.approx(expected)
    scales = drop_path_scales(torch.tensor([0.0, 0.2]), torch.tensor([[0.0, 0.1], [0.9, 0.3]]))
    assert [scale.flatten().tolist() for scale in scales] == [[1, 1], [0, 1.25]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 does not divide embed_dim=24"),
        ({"decoder_num_heads": 7}, "decoder_num_heads=7"),
        ({"mask_ratio": 0.0}, r"mask_ratio must hide 1\.\.7 of num_groups=8 patches, found 0"),
        ({"mask_type": "ring"}, "mask_type must be one of random, block, found 'ring'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)
