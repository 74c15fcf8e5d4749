"""Records of a training: means of the steps between two of them, written on rank 0."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from recon_ray.errors import ReconError
from recon_ray.runs.checkpoint import not_finite
from recon_ray.runs.recorder import Recorder
from recon_ray.train.metrics import Mean, Reading, is_distributed, peak_memory_bytes
from recon_ray.train.state import Progress
from recon_ray.train.step.step_timer import Lap, StepClock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Interval:
    """The steps between two records, whose losses may still be on their way to the host."""

    step: int
    epoch: int
    lr: float
    reading: Reading
    lap: Lap
    counted: float


class TrainRecords:
    """Writes the records of one fit; every rank checks its losses and weights.

    The losses of an interval are read while the device goes on, and written at the next record.
    What a commit interrupts is part of the checkpoint: a continued run has the same records.

    Args:
        progress: State of the run, whose losses and seconds are kept up to date.
        recorder: Writer on rank 0, None on the others.
        interval: Steps since the last record, from a checkpoint.
        batch_size: Samples of a step.
        newest_checkpoint: Place of the newest one, which an error names; kept up to date.
    """

    def __init__(
        self,
        progress: Progress,
        recorder: Recorder | None,
        device: torch.device,
        *,
        batch_size: int,
        steps_per_epoch: int,
        epochs: int,
        max_steps: int,
        interval: Mapping[str, Any] | None = None,
        newest_checkpoint: str | None = None,
    ) -> None:
        self.recorder = recorder
        self.newest_checkpoint = newest_checkpoint
        self._progress = progress
        self._device = device
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._max_steps = max_steps
        self._restored = interval or {}
        #: Seconds of the steps since the last record that ``progress`` has counted already.
        self._counted = float(self._restored.get("counted", 0.0))
        self._unwritten: _Interval | None = None

    @property
    def failure(self) -> str:
        """Return the failure of rank 0 to write, empty for none."""
        return "" if self.recorder is None else self.recorder.failure

    def follow(self, meter: Mean, clock: StepClock, *, rank: int) -> None:
        """Take the losses and times of the steps from a meter and a clock from now on."""
        self._meter, self._clock = meter, clock
        if self._restored:
            meter.restore(self._restored["sums"], self._device, rank=rank)
            clock.restore(Lap(*self._restored["lap"]))

    def begin(self, *, lr: float, is_whole: bool) -> None:
        """Start to read the losses since the last record, and write those of the one before.

        Args:
            lr: Learning rate of the step.
            is_whole: Whether the next record begins here, and not where this one did: the last
                steps of a training are recorded before an interval is full.

        Raises:
            ReconError: If a loss is not finite.
        """
        self.write()
        progress, counted = self._progress, self._counted
        reading, lap = self._meter.read(begin_again=is_whole), self._clock.lap(begin_again=is_whole)
        self._counted = 0.0 if is_whole else lap.seconds
        self._unwritten = _Interval(progress.step, progress.epoch, lr, reading, lap, counted)
        # On the CPU there is nothing to wait for.
        if self._device.type == "cpu" or progress.step >= self._max_steps:
            self.write()

    def pending(self) -> dict[str, Any]:
        """Return the steps since the last record as plain data; every rank takes part.

        Raises:
            ReconError: If one of their losses is not finite.
        """
        self.write()
        lap, sums = self._clock.lap(begin_again=False), self._meter.stored()
        if not lap.steps or not sums:
            return {}
        self._check_losses(self._progress.step, sums)
        return {"sums": sums, "lap": list(lap), "counted": self._counted}

    def check_weights(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Refuse weights, statistics or moments that are not finite; every rank takes part.

        A value that is not finite stays so in all later steps: nothing is missed in between.

        Raises:
            ReconError: On every rank, if there is one on any.
        """
        state = dict(module.state_dict())
        for number, moments in enumerate(optimizer.state.values()):
            tensors = {k: v for k, v in moments.items() if v.device.type == self._device.type}
            state |= {f"{name} of the optimizer, {number}": v for name, v in tensors.items()}
        bad = not_finite(state)
        anywhere = torch.tensor(len(bad), device=self._device)
        if is_distributed():
            dist.all_reduce(anywhere)
        if int(anywhere):
            names = f"{bad[0]} and {len(bad) - 1} more" if bad else "on another worker"
            raise self._not_finite(self._progress.step, f"the weights are not finite ({names})")

    def _check_losses(self, step: int, values: Mapping[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise self._not_finite(step, f"the loss is not finite ({', '.join(bad)})")

    def _not_finite(self, step: int, fault: str) -> ReconError:
        start = "" if self.newest_checkpoint is None else f" resume={self.newest_checkpoint}"
        return ReconError(
            f"step {step}: {fault}; begin another run with a lower optim.lr, "
            f"runtime.precision=fp32 or train.clip_norm=10: run.name=<another>{start}"
        )

    def write(self) -> None:
        """Write the interval that is being read, if there is one.

        Raises:
            ReconError: If a loss is not finite.
        """
        interval, self._unwritten = self._unwritten, None
        if interval is None:
            return
        means, progress, lap = interval.reading.means(), self._progress, interval.lap
        self._check_losses(interval.step, means)
        if math.isnan(progress.loss_first):
            progress.loss_first = means["loss"]
        progress.loss_last = means["loss"]
        progress.train_seconds += lap.seconds - interval.counted
        if self.recorder is not None:
            self.recorder.write(interval.step, interval.epoch, self._values(interval, means))
            self._log(interval, means)

    def metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write metrics of an evaluation or a validation, on rank 0."""
        if self.recorder is not None and values:
            named = {f"val/{name}": value for name, value in values.items()}
            self.recorder.write(step, epoch, named)

    def _rate(self, lap: Lap) -> float:
        return lap.steps * self._batch_size / lap.seconds

    def _values(self, interval: _Interval, means: Mapping[str, float]) -> dict[str, float]:
        lap = interval.lap
        values = {_record_name(name): value for name, value in means.items()}
        values |= {"train/lr": interval.lr, "perf/samples_per_second": self._rate(lap)}
        values["perf/data_wait_fraction"] = lap.waited / lap.seconds
        if self._device.type == "cuda":
            values["perf/gpu_memory_bytes"] = float(peak_memory_bytes(self._device))
        return values

    def _log(self, interval: _Interval, means: Mapping[str, float]) -> None:
        lap, left = interval.lap, self._max_steps - interval.step
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
        logger.info(
            "epoch %.1f/%d step %d/%d loss %.4f (%s) lr %.1e %.0f samples/s data %.0f%% left %s",
            interval.step / self._steps_per_epoch, self._epochs, interval.step, self._max_steps,
            means["loss"], parts, interval.lr, self._rate(lap), 100 * lap.waited / lap.seconds,
            timedelta(seconds=round(left * lap.seconds / lap.steps)),
        )  # fmt: skip


def _record_name(name: str) -> str:
    """Name of a step's value in the records: the loss, its parts, or accuracy."""
    return f"train/{name}" if name in ("loss", "accuracy") else f"train/loss_{name}"
