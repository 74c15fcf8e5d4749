"""Kind of model and sizes of a state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from recon_ray.errors import CheckpointError
from recon_ray.models.presets import arguments_of
from recon_ray.protocols import REFERENCE_SKIP

NOT_IN_SHAPES = ("num_heads", "num_groups", "group_size", "stream", "feature_blocks")
"""Constructor arguments that change what a model computes, but no shape of its weights."""

PUBLISHED_DEPTH = 12
"""Depth of the published part segmentation, whose ``feature_blocks`` are our default."""


def identify_reference(keys: Iterable[str]) -> str:
    """Return the kind of model of a reference state dict, by its names.

    Args:
        keys: Bare names, without prefixes of parallel wrappers.

    Returns:
        A kind of :data:`recon_ray.models.presets.MODELS`, or ``pointmae``.

    Raises:
        CheckpointError: If it is another family of models.
    """
    names = set(keys)
    parts = {name.split(".")[0] for name in names}
    has_contrast = any(".norm1_contrast." in name for name in names)
    if "Dis_encoder" in parts:
        return "twotower" if "MAE_encoder" in parts else "twotower_classifier"
    if "MAE_encoder" in parts:
        return "recon" if has_contrast else "pointmae"
    if any(".global_blocks." in name or name.endswith("global_query") for name in names):
        raise CheckpointError(
            "the weights are of ReCon++, another family of models (they have global_blocks); give "
            "weights of ReCon or Point-MAE"
        )
    if not any(name.startswith("blocks.blocks.") for name in names):
        some = ", ".join(sorted(names)[:3])
        raise CheckpointError(
            f"the weights are of another family of models (keys such as {some}); give weights of "
            "ReCon or Point-MAE"
        )
    if not has_contrast:
        return "pointmae"
    if "propagation_0" in parts:
        return "partseg"
    return "classifier" if "cls_head_finetune" in parts else "embedder"


def identify(keys: Iterable[str]) -> str:
    """Return the kind of model of one of our own state dicts, by its names.

    Raises:
        CheckpointError: If it is of no model of this package.
    """
    names = set(keys)
    parts = {name.split(".")[0] for name in names}
    if "encoder" not in parts:
        raise CheckpointError(
            f"the weights do not belong to a model of this package (keys such as "
            f"{', '.join(sorted(names)[:3]) or 'none'})"
        )
    if "contrast_encoder" in parts:
        return "twotower" if "decoder" in parts else "twotower_classifier"
    if not any(".contrast_norm1." in name for name in names):
        return "pointmae"
    if "part_head" in parts:
        return "partseg"
    if "decoder" in parts:
        return "recon"
    return "classifier" if "head" in parts else "embedder"


def missing_arguments(kind: str, arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a kind of model that neither shapes nor records determine.

    Args:
        kind: Kind of model.
        arguments: Constructor arguments that are known.
    """
    needed = [name for name in NOT_IN_SHAPES if name in arguments_of(kind)]
    if arguments.get("depth") == PUBLISHED_DEPTH:
        needed = [name for name in needed if name != "feature_blocks"]
    return [name for name in needed if name not in arguments]


def infer(kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the constructor arguments of a model off the shapes of its weights, in our names.

    Arguments without a shape (:data:`NOT_IN_SHAPES`) are left out, except for the group size, which
    a decoder determines.

    Raises:
        CheckpointError: If a weight that every such model has is missing.
    """
    embed_dim, third = _shape(state, "encoder.embed.fc4.weight")
    widths = (_shape(state, f"encoder.embed.fc{layer}.weight")[0] for layer in (1, 2))
    sizes: dict[str, Any] = {"embed_dim": embed_dim, "depth": _layers(state, "encoder")}
    sizes["patch_widths"] = (*widths, third)
    if "decoder.head.weight" in state:
        sizes["decoder_depth"] = _layers(state, "decoder")
        sizes["group_size"] = _shape(state, "decoder.head.weight")[0] // 3
    for name, key in (("image_dim", "image_proj.weight"), ("text_dim", "text_proj.weight")):
        sizes[name] = state[key].shape[0] if key in state else None
    sizes["self_contrast"] = "contrast_head.fc1.weight" in state
    if kind in ("classifier", "twotower_classifier"):
        sizes |= _head(state)
        if _shape(state, "head.fc1.weight")[1] == 4 * embed_dim:  # else one of the other two
            sizes["stream"] = "ALL"
    if kind == "partseg":
        sizes |= _parts(state)
    known = arguments_of(kind)
    return {name: value for name, value in sizes.items() if name in known}


def published_habits(kind: str) -> dict[str, Any]:
    """Return the arguments that are fixed in the published code."""
    habits = {"fps_min_sq_norm": REFERENCE_SKIP}
    return habits | ({"drop_first_patches": True} if kind == "twotower_classifier" else {})


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"the weights have no {key}, which every such model has")
    return tuple(state[key].shape)


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {int(m[1]) for key in state if (m := re.match(rf"{prefix}\.blocks\.(\d+)\.", key))}
    return max(numbers, default=-1) + 1


def _head(state: Mapping[str, Tensor]) -> dict[str, Any]:
    is_linear = "head.fc3.weight" not in state
    last = _shape(state, "head.fc1.weight" if is_linear else "head.fc3.weight")
    return {"num_classes": last[0], "head": "linear" if is_linear else "mlp"}


def _parts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    category_dim, num_categories = _shape(state, "category.fc.weight")
    return {
        "num_parts": _shape(state, "part_head.fc3.weight")[0],
        "num_categories": num_categories,
        "category_dim": category_dim,
        "propagation_widths": tuple(
            _shape(state, f"propagation.fc{layer}.weight")[0] for layer in (1, 2)
        ),
        "head_widths": tuple(_shape(state, f"part_head.fc{layer}.weight")[0] for layer in (1, 2)),
    }
