"""The Python API: make, load and use a model. Needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.models.cloud import EncoderModel
from recon_ray.models.presets import MODELS, PRESETS, preset_sizes
from recon_ray.points.transforms import normalize
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import construct, initialize
from recon_ray.weights.weight_files import save_model

__all__ = ["create_model", "embed", "load_model", "presets", "save_model"]

#: Tasks, and the kind of model of each.
TASKS = {
    "pretrain": "recon",
    "classify": "classifier",
    "zeroshot": "embedder",
    "embed": "embedder",
    "svm": "embedder",
    "partseg": "partseg",
    "twotower": "twotower",
    "twotower_classify": "twotower_classifier",
}


def presets() -> dict[str, list[str]]:
    """Return the presets and tasks for :func:`create_model`."""
    return {"presets": list(PRESETS), "tasks": list(TASKS)}


def create_model(preset: str = "base", *, task: str = "pretrain", **overrides: Any) -> nn.Module:  # noqa: ANN401
    """Make a model with freshly drawn weights.

    Args:
        preset: Named architecture.
        task: Task of the model.
        overrides: Constructor arguments that differ from the preset (``embed_dim=...``), or that
            the task requires (``num_classes=...``).

    Raises:
        ValueError: If the preset, the task or a size is not valid.
        TypeError: If an argument is missing or unknown.
    """
    kind = _kind(task)
    return MODELS[kind](**{**preset_sizes(preset, kind), **overrides})


def load_model(
    path_or_name: str | Path,
    *,
    task: str | None = None,
    published: str | None = None,
    **sizes: Any,  # noqa: ANN401
) -> nn.Module:
    """Load a trained model, in evaluation mode, on the CPU.

    Args:
        path_or_name: A run folder, its ``checkpoints`` folder or one ``step-<number>`` in it, a
            ``.safetensors`` file, a ``.pth`` file of the reference or with a plain state dict, or
            the name of published weights (:mod:`recon_ray.weights.catalog`).
        task: Task of the model; by default that of the weights.
        published: Name of published weights whose sizes the file has, unless it records its own.
        sizes: Such sizes, one by one (``num_groups``, ...).

    Raises:
        CheckpointError: If there are no such weights, or they do not fit such a model: no weight
            stays random.
        ValueError: If the task is unknown.
    """
    wanted = None if task is None else _kind(task)
    weights = find_weights(path_or_name, published=published)
    kind = wanted or ("embedder" if weights.kind == "pointmae" else weights.kind)
    model = construct(kind, weights, **sizes)
    initialize(model, weights, strict=True)
    return model.eval()


def _kind(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[task]


@torch.no_grad()
def embed(model: nn.Module, points: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return the feature vector of the linear probes for each cloud.

    Args:
        model: From :func:`load_model` or :func:`create_model`, of any task but ``twotower``.
        points: (B, N, 3) clouds, y up; centered and scaled to the unit sphere here.
        batch_size: Clouds encoded at once.

    Returns:
        (B, 2 D) float32 on the model's device.

    Raises:
        TypeError: If the model has no such feature.
        ValueError: If the shape is not (B, N, 3), or a coordinate is not finite.
    """
    if not isinstance(model, EncoderModel):
        raise TypeError(f"{type(model).__name__} has no features of the linear probes")
    if points.ndim != 3 or points.shape[-1] != 3 or len(points) == 0:
        raise ValueError(f"points have shape {tuple(points.shape)}; give (B, N, 3) with B >= 1")
    wrong = ~points.isfinite().flatten(1).all(dim=1)
    if wrong.any():
        raise ValueError(f"cloud {int(wrong.nonzero()[0])} has points that are not finite")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [
        model.svm_features(normalize(part.to(device, torch.float32)))
        for part in points.split(batch_size)
    ]
    model.train(was_training)
    return torch.cat(parts)
