"""Interface of a task (pre-training, classification, ...) for the training loop."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from recon_ray.data.loading.batches import Batch
from recon_ray.points.random import SampleGenerator
from recon_ray.train.runtime import Runtime


class Task(Protocol):
    """A model, its losses and its metrics.

    The module of :meth:`build` is called as ``module(batch, source)`` and returns named ()
    losses, of which ``loss`` is the one that is minimized. Everything random in it comes from
    ``source``, which is keyed by sample: workers and micro batches then have no effect.
    """

    name: str

    def build(self) -> nn.Module:
        """Make the trainable module on the CPU, with freshly drawn weights."""

    def stored_model(self, module: nn.Module) -> nn.Module:
        """Return the part of the module whose state dict is the checkpoint's ``model.pt``."""

    def architecture(self) -> dict[str, Any]:
        """Return the constructor arguments of the stored model."""

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return the optimizer groups; the ``lr`` of each is the peak of its schedule."""

    def on_device(self, device: torch.device) -> None:
        """Move what is not trained (teachers, feature banks) to the device."""

    def prepare_on_device(self, batch: Batch, source: SampleGenerator) -> Batch:
        """Sub-sample and augment on the device and add the teachers' features, without gradient."""

    def evaluate(self, module: nn.Module, runtime: Runtime, *, when: str) -> dict[str, float]:
        """Return metrics on held-out samples, ``before`` or ``after``; every rank calls it."""

    def validate(self, module: nn.Module, runtime: Runtime, *, epoch: int) -> dict[str, float]:
        """Return values that choose the best epoch; every rank calls it, those of rank 0 count.

        ``epoch`` is the one that has just ended, counted from 0.
        """

    def records(self) -> dict[str, Any]:
        """Return plain data that is stored with the model, such as the names of its classes."""
