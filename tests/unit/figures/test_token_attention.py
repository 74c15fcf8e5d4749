from __future__ import annotations

import pytest
import torch

from recon_ray.figures.token_attention import token_attention
from recon_ray.models.presets import MODELS
from recon_ray.models.transformer import Attention, CrossAttention

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_groups": 8, "group_size": 6}


@pytest.fixture
def points():
    return torch.rand(2, 60, 3, generator=torch.Generator().manual_seed(1)) - 0.5


def make(kind, **more):
    torch.manual_seed(0)
    return MODELS[kind](**SIZES, patch_widths=(8, 8, 8), **more)


def test_the_weights_of_both_attentions_give_their_outputs():
    torch.manual_seed(0)
    x, queries = torch.randn(2, 5, 24), torch.randn(2, 3, 24)
    plain, cross = Attention(24, 3), CrossAttention(24, 3)
    values = plain.qkv(x).view(2, 5, 3, 3, 8)[:, :, 2].transpose(1, 2)  # (B, H, L, D / H)
    mixed = (plain.weights(x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(plain.proj(mixed), plain(x))
    values = cross.kv(x).view(2, 5, 2, 3, 8)[:, :, 1].transpose(1, 2)
    mixed = (cross.weights(queries, x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(cross.proj(mixed), cross(queries, x))


@pytest.mark.parametrize(
    ("kind", "more", "tokens"),
    [
        ("recon", {"decoder_depth": 1}, ("class", "image", "text")),
        ("embedder", {}, ("class", "image", "text")),
        ("classifier", {"num_classes": 3}, ("class", "image", "text")),
        ("twotower", {"decoder_depth": 1}, ("image", "text")),
        ("twotower_classifier", {"num_classes": 3}, ("class", "image", "text")),
        ("twotower_classifier", {"num_classes": 3, "stream": "MDM"}, ("class",)),
        ("twotower_classifier", {"num_classes": 3, "stream": "CMC"}, ("image", "text")),
    ],
)
def test_every_model_tells_what_its_tokens_look_at(points, kind, more, tokens):
    model = make(kind, **more).train()
    found = token_attention(model, points)
    assert model.training
    assert found.tokens == tokens
    assert found.weights.shape == (2, 2, len(tokens), 3, 8)
    assert found.idx.shape == (2, 8, 6)
    total = found.weights.sum(dim=-1)
    if kind.startswith("twotower"):  # the rest is what tokens give to each other
        assert (total < 1).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    assert not any(block._forward_pre_hooks for block in model.encoder.blocks)


def test_the_weights_of_the_last_block_give_the_tokens_of_the_model(points):
    # With the last block's values and its network set to nothing, tokens are what went in.
    model = make("embedder").eval()
    found = token_attention(model, points)
    seen = []
    hook = model.encoder.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    with torch.no_grad():
        model.forward_features(points)
        block = model.encoder.blocks[1]
        expected = block.contrast_attn.weights(
            block.contrast_norm1(seen[0][0]), block.norm1(seen[0][1])
        )
    hook.remove()
    torch.testing.assert_close(found.weights[:, 1].transpose(1, 2), expected)
