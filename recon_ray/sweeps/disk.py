"""Disk that the checkpoints of many trials take, estimated before the first one starts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from recon_ray.config.sections.common import JobConfig
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.errors import ReconError
from recon_ray.machine import cpu_count
from recon_ray.models.presets import MODELS, preset_sizes
from recon_ray.storage import is_uri
from recon_ray.sweeps.sweep_plan import validates
from recon_ray.tasks.classify import finetune_job as finetune
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.partseg import job as partseg
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.start_weights import resolve

logger = logging.getLogger(__name__)

#: Width of the teachers' features in the estimate of a pre-training, whose teachers are not made.
TEACHER_DIM = 512
#: AdamW's state of a trained parameter: two moments in float32.
MOMENTS_BYTES = 8


class DiskEstimate:
    """Sum of what trials keep at most: their newest checkpoints, and the best one.

    Args:
        storage: Folder or URI of the trials.
        configs: Configurations of the trials that are still to run.
    """

    def __init__(self, storage: str, configs: Iterable[JobConfig]) -> None:
        self._storage = storage
        sizes: dict[str, tuple[int, int] | None] = {}
        self.count = self.total = self._unknown = 0
        dropped = []  # when a training ends
        for config in (one for one in configs if isinstance(one, TrainingConfig)):
            key = _model_of(config)
            if key not in sizes:
                sizes[key] = _sizes(config)
            weights, moments = sizes[key] or (0, 0)
            number = config.train.keep_checkpoints + int(validates(config))
            keeps = bool(config.train.keep_optimizer)
            dropped.append(0 if keeps else number * moments)
            self.total += number * (weights + (moments if keeps else 0))
            self.count, self._unknown = self.count + 1, self._unknown + (sizes[key] is None)
        self.total += sum(sorted(dropped)[-cpu_count() :])  # of those that run at once

    def __str__(self) -> str:
        """One line: trials, bytes, and what is free."""
        if not self.count:
            return "disk: no checkpoints are kept"
        free = self._free()
        there = "" if free is None else f", {free / 1e9:.1f} GB are free"
        unknown = f" ({self._unknown} of them not known)" if self._unknown else ""
        return (
            f"disk: {self.count} trainings keep up to {self.total / 1e9:.1f} GB of checkpoints in "
            f"{self._storage}{unknown}{there}"
        )

    def warn(self) -> None:
        """Log a warning if that is more than there is room for."""
        free = self._free()
        if free is not None and self.total > free:
            logger.warning("%s; free space, or lower train.keep_checkpoints", self)

    def _free(self) -> int | None:
        if is_uri(self._storage):
            return None
        place = Path(self._storage).absolute()
        return shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free


def _model_of(config: TrainingConfig) -> str:
    """Return the options on which the number of parameters depends."""
    own = [getattr(config, name, None) for name in ("model", "init_from", "teacher", "loss")]
    return repr((type(config), own, config.data.path, getattr(config.train, "tune", None)))


def _sizes(config: TrainingConfig) -> tuple[int, int] | None:
    """Return bytes of the weights and of the optimizer's state; None where they are not known."""
    data = config.data.model_copy(update={"verify": "open"})
    try:
        build = _builder(resolve(config.model_copy(update={"data": data})))
        with torch.device("meta"):
            model = None if build is None else build()
    except (ReconError, ValueError):
        return None
    if model is None:
        return None
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return weights, MOMENTS_BYTES * trained


def _builder(config: TrainingConfig) -> Callable[[], nn.Module] | None:
    """Return the function that makes the model, from scratch whatever it starts from; or None."""
    if isinstance(config, FinetuneConfig):
        task, _ = finetune.make_task(config, finetune.open_set(config))
        return replace(task, config=task.config.model_copy(update={"init_from": None})).build
    if isinstance(config, PartsegConfig):
        return replace(partseg.make_task(config, partseg.open_set(config)), weights=None).build
    if not isinstance(config, PretrainConfig):
        return None
    model = config.model
    sizes = {**preset_sizes(model.preset, model.kind), **model.overrides()}
    names = {"image_dim": config.teacher.image.name, "text_dim": config.teacher.text.name}
    sizes |= {name: None if teacher is None else TEACHER_DIM for name, teacher in names.items()}
    return partial(MODELS[model.kind], **sizes)
