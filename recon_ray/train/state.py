"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recon_ray.train.metrics import is_distributed


@dataclass
class Progress:
    """Where a run stands; stored beside the model."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    samples: int = 0
    train_seconds: float = 0.0
    commit_seconds: float = 0.0
    loss_first: float = math.nan
    loss_last: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    seen: Tensor | None = None

    def advance(self, samples: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.step_in_epoch += 1
        self.samples += samples

    def finish_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.step_in_epoch = 0
        self.seen = None

    def mark(self, sample_ids: Tensor) -> None:
        """Note the samples that this worker has used in the epoch."""
        highest = int(sample_ids.max()) + 1
        if self.seen is None:
            self.seen = torch.zeros(highest, dtype=torch.uint8)
        elif len(self.seen) < highest:
            self.seen = torch.cat([self.seen, self.seen.new_zeros(highest - len(self.seen))])
        self.seen[sample_ids] = 1

    def summary(self) -> dict[str, float]:
        """Metrics of the whole run by name."""
        result = dict(self.metrics)
        result |= {f"{name}_last": value for name, value in self.validated.items()}
        if self.best is not None:
            result[f"{self.best['metric']}_best"] = float(self.best["value"])
            result["best_epoch"] = float(self.best["epoch"])
        if not math.isnan(self.loss_first):
            result |= {"loss_first": self.loss_first, "loss_last": self.loss_last}
        if self.train_seconds > 0:
            result["samples_per_second"] = self.samples / self.train_seconds
            result["commit_fraction"] = self.commit_seconds / self.train_seconds
        return result | {"steps": float(self.step), "epochs": float(self.epoch)}

    def share_marks(self, device: torch.device) -> None:
        """Mark what any worker has used; every rank takes part."""
        if is_distributed() and self.seen is not None:
            self.seen = _union(self.seen, device)


def _union(seen: Tensor, device: torch.device) -> Tensor:
    """Samples that any worker has used."""
    length = torch.tensor([len(seen)], device=device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = torch.zeros(int(length), dtype=torch.uint8, device=device)
    padded[: len(seen)] = seen.to(device)
    dist.all_reduce(padded, op=dist.ReduceOp.MAX)
    return padded.cpu()
