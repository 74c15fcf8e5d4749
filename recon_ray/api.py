"""The Python API: make, load and use a model. Needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.errors import CheckpointError
from recon_ray.models.presets import PRESETS, create
from recon_ray.models.recon import Recon
from recon_ray.points.transforms import normalize
from recon_ray.train.checkpoint import MANIFEST, CheckpointStore, load_model_state

#: Tasks that a model can be made for.
TASKS = ("pretrain",)


def presets() -> dict[str, list[str]]:
    """Names that :func:`create_model` takes: presets and tasks."""
    return {"presets": list(PRESETS), "tasks": list(TASKS)}


def create_model(preset: str = "base", *, task: str = "pretrain", **overrides: Any) -> nn.Module:  # noqa: ANN401
    """Make a model with freshly drawn weights.

    Args:
        preset: Named architecture.
        task: What the model is for.
        overrides: Constructor arguments that differ from the preset (``embed_dim=...``).

    Raises:
        ValueError: If the preset, the task or a size is not a legal one.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose one of {', '.join(TASKS)}")
    return create(preset, **overrides)


def load_model(path: str | Path, *, task: str = "pretrain") -> nn.Module:
    """Load a trained model, in evaluation mode, on the CPU.

    Args:
        path: A run folder, its ``checkpoints`` folder, or one ``checkpoints/step-<number>``.
        task: What the model is for.

    Raises:
        CheckpointError: If there is no valid checkpoint.
        ValueError: If the task is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose one of {', '.join(TASKS)}")
    folder = Path(path)
    if (folder / MANIFEST).exists():
        found = CheckpointStore(str(folder.parent)).load(folder.name)
    else:
        inner = folder / "checkpoints"
        latest = CheckpointStore(str(inner if inner.is_dir() else folder)).load_latest()
        if latest is None:
            raise CheckpointError(
                f"{path}: no checkpoint there; give a run folder or <run>/checkpoints/step-<number>"
            )
        found = latest
    model = Recon(**found.architecture)
    load_model_state(model, found.model, source=str(path))
    return model.eval()


@torch.no_grad()
def embed(model: nn.Module, points: Tensor, *, batch_size: int = 64) -> Tensor:
    """Give one feature vector a cloud: the one of the linear probes.

    Args:
        model: From :func:`load_model` or :func:`create_model`.
        points: (B, N, 3) clouds, y up; centered and scaled to the unit sphere here.
        batch_size: Clouds encoded at once.

    Returns:
        (B, 2 D) float32 on the model's device.
    """
    assert isinstance(model, Recon)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [
        model.svm_features(normalize(part.to(device, torch.float32)))
        for part in points.split(batch_size)
    ]
    model.train(was_training)
    return torch.cat(parts)
