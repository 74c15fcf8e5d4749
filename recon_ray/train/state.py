"""State of a run: counters and losses, and the checkpoint that it continues from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import Checkpoint, CheckpointStore
from recon_ray.train.commits import raise_on_all_ranks
from recon_ray.train.metrics import is_distributed, reduce_padded


@dataclass
class Progress:
    """Counters, losses and metrics of a run; stored beside the model."""

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

    def choose(self, name: str, metric: str, values: Mapping[str, float], epoch: int) -> bool:
        """Note the checkpoint of a validation if it is the best so far; return whether it is."""
        value = values.get(metric, math.nan)
        if not math.isfinite(value) or (self.best is not None and value <= self.best["value"]):
            return False
        self.best = {"name": name, "metric": metric, "value": value, "epoch": epoch}
        return True

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
        if self.seen is not None:
            self.seen = reduce_padded(self.seen, device, dist.ReduceOp.MAX)


def newest_checkpoint(store: CheckpointStore, *, rank: int) -> Checkpoint | None:
    """Load the checkpoint that rank 0 finds valid; every rank takes part.

    Raises:
        CheckpointError: On every rank, if all are damaged or the storage cannot be reached.
    """
    if not is_distributed():
        return store.load_latest()
    found, failure = None, ""
    if rank == 0:
        try:
            found = store.load_latest()
        except CheckpointError as error:
            failure = str(error)
    raise_on_all_ranks(failure)
    box = [None if found is None else found.name]
    dist.broadcast_object_list(box, src=0)
    if box[0] is None or rank == 0:
        return found
    return store.load(box[0])


def check_feed(found: Checkpoint, progress: Progress, *, tracks_samples: bool) -> None:
    """Refuse to end an epoch in another order than it was begun in: samples would repeat.

    Raises:
        ConfigError: If it would.
    """
    streamed = found.train.get("tracks_samples", tracks_samples)
    if progress.step_in_epoch and streamed != tracks_samples:
        was, now = ("a stream", "by index") if streamed else ("by index", "a stream")
        way = "data.mode=" + ("stream and cluster.workers=1 or more" if streamed else "shared")
        raise ConfigError(
            f"data.mode: epoch {progress.epoch + 1} was begun with samples read {was} and "
            f"would go on {now}, with samples used twice; set {way} until it has ended"
        )
