from __future__ import annotations

import pytest
import torch
from weights_samples import TINY, make_model, make_weights

from recon_ray.errors import CheckpointError
from recon_ray.weights.adapters import TABLES, from_reference, to_reference


def test_names_and_shapes_are_those_of_the_reference() -> None:
    state = to_reference(make_model("recon", self_contrast=True).state_dict())
    assert state["MAE_encoder.encoder.first_conv.0.weight"].shape == (4, 3, 1)
    assert state["MAE_encoder.encoder.second_conv.1.running_mean"].shape == (8,)
    assert state["MAE_encoder.blocks.blocks.1.attn_contrast.kv.weight"].shape == (24, 12)
    assert state["increase_dim.0.weight"].shape == (96, 12, 1)
    assert state["cls_proj.4.num_batches_tracked"].shape == ()
    assert {"mask_token", "MAE_encoder.img_pos", "decoder_pos_embed.2.bias"} <= set(state)


@pytest.mark.parametrize(
    ("kind", "arguments", "keys"),
    [
        ("classifier", {}, {"cls_head_finetune.8.weight", "cls_head_finetune.5.running_var"}),
        ("classifier", {"head": "linear"}, {"cls_head_finetune.0.bias", "pos_embed.2.weight"}),
        ("embedder", {"image_dim": 3}, {"img_proj.weight", "cls_token", "norm.bias"}),
        ("partseg", {}, {"label_conv.1.bias", "propagation_0.mlp_bns.1.weight", "convs3.bias"}),
        ("twotower", {}, {"Dis_encoder.img_pos", "MAE_encoder.blocks.blocks.1.mlp.fc2.bias"}),
        ("twotower_classifier", {}, {"cls_pos", "Dis_encoder.norm.weight", "norm.bias"}),
    ],
)
def test_downstream_names_are_the_references(kind: str, arguments: dict, keys: set[str]) -> None:
    assert keys <= set(to_reference(make_model(kind, **arguments).state_dict(), kind))


@pytest.mark.parametrize("kind", TINY)
def test_round_trip_is_exact(kind: str) -> None:
    state = make_weights(kind).state
    again, renamed, unknown = from_reference(to_reference(state, kind), kind)
    assert not unknown
    assert renamed.keys() == again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_every_kind_of_model_has_a_table() -> None:
    assert set(TABLES) == {*TINY, "pointmae"}


def test_what_has_no_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="point-wise convolution"):
        from_reference({"increase_dim.0.weight": torch.zeros(4, 4, 3)})
    with pytest.raises(CheckpointError, match="has no name in the reference"):
        to_reference({"surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no weight table for 'bert'"):
        to_reference({"a": torch.zeros(1)}, "bert")
    assert from_reference({"queue": torch.zeros(1)})[2] == ("queue",)
