"""Named sizes, and all kinds of models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from recon_ray.models.classifier import Classifier
from recon_ray.models.partseg import PartSegmenter
from recon_ray.models.recon import Embedder, Recon
from recon_ray.models.twotower import TwoTower, TwoTowerClassifier

PRESETS: dict[str, dict[str, Any]] = {
    "base": {"embed_dim": 384, "num_heads": 6},
    "small": {"embed_dim": 256, "num_heads": 4},
    "tiny": {"embed_dim": 192, "num_heads": 3},
    # For CPUs: not a published size.
    "nano": {
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "num_groups": 32,
        "group_size": 16,
        "decoder_depth": 1,
        "patch_widths": (32, 64, 128),
    },
}
"""Arguments of each preset that differ from the defaults, which are the published base model."""

MODELS: dict[str, type[nn.Module]] = {
    "recon": Recon,
    "embedder": Embedder,
    "classifier": Classifier,
    "partseg": PartSegmenter,
    "twotower": TwoTower,
    "twotower_classifier": TwoTowerClassifier,
}
"""Model class of each kind; files of weights record their kind."""


def kind_of(model: nn.Module) -> str:
    """Return the kind of a model: its key in :data:`MODELS`.

    Raises:
        TypeError: If its class is not in :data:`MODELS`.
    """
    for kind, model_class in MODELS.items():
        if type(model) is model_class:
            return kind
    raise TypeError(f"{type(model).__name__} is not one of the models {', '.join(MODELS)}")


def arguments_of(kind: str) -> set[str]:
    """Return the names of the constructor arguments of a kind of model, ``pointmae`` included."""
    return set(_parameters(kind))


def whole_arguments(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all constructor arguments of a kind of model: those given, the defaults of others."""
    defaults = {
        name: parameter.default
        for name, parameter in _parameters(kind).items()
        if parameter.default is not parameter.empty
    }
    return {**defaults, **given}


def _parameters(kind: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(MODELS["recon" if kind == "pointmae" else kind]).parameters


def preset_sizes(preset: str, kind: str = "recon") -> dict[str, Any]:
    """Return the arguments of a preset that a kind of model has.

    Raises:
        ValueError: If the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; use one of {', '.join(PRESETS)}")
    known = arguments_of(kind)
    return {name: value for name, value in PRESETS[preset].items() if name in known}
