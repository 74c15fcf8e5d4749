"""Tiny models of every kind, and files of them as the reference writes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recon_ray.models.presets import MODELS, whole_arguments
from recon_ray.weights.adapters import to_reference
from recon_ray.weights.weight_files import LoadedWeights

SIZES = {"embed_dim": 12, "depth": 2, "num_heads": 2, "patch_widths": (4, 4, 8)}
TINY: dict[str, dict[str, Any]] = {
    "recon": {"decoder_depth": 1, "image_dim": 3, "text_dim": 3},
    "embedder": {"image_dim": 3, "text_dim": 3},
    "classifier": {"num_classes": 5},
    "partseg": {
        "num_parts": 7, "num_categories": 3, "category_dim": 4, "propagation_widths": (10, 9),
        "head_widths": (8, 6), "feature_blocks": (0, 1),
    },
    "twotower": {"decoder_depth": 1, "image_dim": 3, "text_dim": 3},
    "twotower_classifier": {"num_classes": 5},
}  # fmt: skip
"""Arguments of a tiny model of each kind, beyond :data:`SIZES`."""


def arguments(kind: str, **overrides: Any) -> dict[str, Any]:
    return {**SIZES, **TINY[kind], **overrides}


def make_model(kind: str, seed: int = 0, **overrides: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[kind](**arguments(kind, **overrides))
    for parameter in model.parameters():  # none at its initial value, whatever the class draws
        parameter.data.normal_()
    return model


def make_weights(kind: str, seed: int = 0, **overrides: Any) -> LoadedWeights:
    state = make_model(kind, seed, **overrides).state_dict()
    sizes = whole_arguments(kind, arguments(kind, **overrides))
    return LoadedWeights(kind, sizes, state, f"{kind}-run")


def published(kind: str, prefix: str = "module.", **overrides: Any) -> dict[str, Any]:
    """Make the content of a file of the reference, full: teachers included."""
    state = to_reference(make_weights(kind, **overrides).state, kind)
    state["img_encoder.model.weight"] = torch.zeros(2)
    key = "model_state_dict" if kind == "partseg" else "base_model"
    return {key: {f"{prefix}{name}": value for name, value in state.items()}, "epoch": 300}


def pointmae() -> dict[str, Any]:
    """Make the content of a pre-training file of Point-MAE: a trunk without contrast branch."""
    state = published("recon", prefix="")["base_model"]
    skipped = ("contrast", "img_", "text_", "_token", "cls_pos")
    kept = {k: v for k, v in state.items() if not any(part in k for part in skipped)}
    return {"base_model": {**kept, "mask_token": state["mask_token"]}}


def equal(a: nn.Module, b: nn.Module, prefix: str = "") -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    names = [name for name in ours if name.startswith(prefix)]
    return bool(names) and all(torch.equal(ours[name], theirs[name]) for name in names)
