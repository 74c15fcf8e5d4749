"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

HEAD_LR_FACTOR = 10.0
"""The head of a fine-tuned model learns this much faster (reference)."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    head: Callable[[str], bool] | None = None,
) -> list[dict[str, Any]]:
    """Split the trainable parameters as the reference does.

    There are always three groups, some perhaps empty, so that optimizer states fit: ``head`` (10
    times the rate, with weight decay throughout), ``no_decay`` (one-dimensional parameters, biases
    and tokens) and ``decay`` (the rest, position parameters included).

    Args:
        model: Model; frozen parameters are left out. A ``module.`` of wrappers is ignored.
        lr: Learning rate.
        weight_decay: Weight decay.
        head: Whether a parameter of this name is one of the head; none is by default.

    Returns:
        Groups for a torch optimizer, each with ``name``, ``lr``, ``base_lr`` (what a schedule
        multiplies or starts from) and ``weight_decay``.
    """
    members: dict[str, list[nn.Parameter]] = {"head": [], "no_decay": [], "decay": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_group_of(name.replace("module.", ""), parameter, head)].append(parameter)
    rates = {"head": HEAD_LR_FACTOR * lr, "no_decay": lr, "decay": lr}
    decays = {"head": weight_decay, "no_decay": 0.0, "decay": weight_decay}
    return [
        {
            "name": group,
            "params": parameters,
            "lr": rates[group],
            "base_lr": rates[group],
            "weight_decay": decays[group],
        }
        for group, parameters in members.items()
    ]


def _group_of(name: str, parameter: nn.Parameter, head: Callable[[str], bool] | None) -> str:
    if head is not None and head(name):
        return "head"
    if parameter.ndim == 1 or name.endswith(".bias") or "token" in name:
        return "no_decay"
    return "decay"


def stored_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state as plain data that fits any device: rates are numbers."""
    state = optimizer.state_dict()
    groups = [
        {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items()}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments of :func:`stored_optimizer`; the options of the groups stay ours.

    A checkpoint of a run on a CPU so continues on a GPU with a captured step, and back.
    """
    ours = optimizer.state_dict()["param_groups"]
    groups = [
        {**mine, "params": theirs["params"]}
        for mine, theirs in zip(ours, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


@dataclass(frozen=True)
class CosineSchedule:
    """Learning rate by epoch: linear warm-up, then half a cosine.

    The rate rises from ``min_lr`` to the base rate during the warm-up and falls to ``min_lr`` at
    the end, continuously. ``lags`` repeats the published code: the rate changes once an epoch and
    lags by one (epochs 0 and 1 both run at ``min_lr``), and the cosine counts from epoch 0 and so
    starts below the base rate.

    Attributes:
        epochs: Length of the schedule.
        warmup_epochs: Length of the warm-up.
        min_lr: Rate at both ends.
        lags: Repeat the published schedule.
    """

    epochs: int
    warmup_epochs: float
    min_lr: float = 1e-6
    lags: bool = False

    def lr(self, base_lr: float, epoch: float) -> float:
        """Return the learning rate in force.

        Args:
            base_lr: Peak rate of the parameter group.
            epoch: Finished part of training in epochs; a lagging rate uses its whole part only.

        Returns:
            The rate of the step that starts at ``epoch``.
        """
        if self.lags:
            return self._lagging(base_lr, max(math.floor(epoch) - 1, 0))
        if epoch < self.warmup_epochs:
            return self.min_lr + (base_lr - self.min_lr) * epoch / self.warmup_epochs
        length = max(self.epochs - self.warmup_epochs, 1e-9)
        progress = min((epoch - self.warmup_epochs) / length, 1.0)
        return self._cosine(base_lr, progress)

    def _lagging(self, base_lr: float, epoch: int) -> float:
        if epoch < self.warmup_epochs:
            return self.min_lr + epoch * (base_lr - self.min_lr) / self.warmup_epochs
        return self._cosine(base_lr, epoch / self.epochs) if epoch < self.epochs else self.min_lr

    def _cosine(self, base_lr: float, progress: float) -> float:
        return self.min_lr + 0.5 * (base_lr - self.min_lr) * (1.0 + math.cos(math.pi * progress))
