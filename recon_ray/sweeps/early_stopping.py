"""Early stopping: which trials lag behind the others at the same epoch, and in what they do.

Tune's own rules know nothing of trials that ended before a sweep was continued, do not say why they
stop one, and may stop one that has nothing left to do but to be measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from recon_ray.errors import CheckpointError
from recon_ray.runs.recorder import read_records
from recon_ray.sweeps.config import SweepSection
from recon_ray.sweeps.trial_folders import TrialFolders

#: Other trials that the median rule wants to have reached an epoch.
LEAST_OTHERS = 3
EPOCHS = "train.epochs"

#: Values of what is watched by the number of epochs done.
Curve = dict[int, float]


class EarlyStopping(FIFOScheduler):
    """Scheduler of Tune that stops trials by what they report at the end of their epochs.

    Trials that were begun earlier count with what they recorded. A trial at its last epoch is not
    stopped any more: it is about to be measured.

    Args:
        options: Rule, what is watched, and whether more of it is better.
        grace: Epochs before which no trial is judged.
        epochs: Epochs of a trial that does not vary them.
        curves: Reports of earlier trials, by name.
    """

    def __init__(
        self,
        options: SweepSection,
        *,
        grace: int,
        epochs: int,
        curves: dict[str, Curve],
    ) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}
        self._options, self._grace, self._epochs = options, grace, epochs
        self._curves = curves
        self._sign = 1 if options.watch_mode == "max" else -1
        self._better = "below" if options.watch_mode == "max" else "above"

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ANN401
        """Take a report; return whether the trial goes on."""
        if self._options.watch not in result or "epoch" not in result:
            return str(TrialScheduler.CONTINUE)
        own = trial.config["trial"]
        epoch, value = int(result["epoch"]), float(result[self._options.watch])
        reason = self.judge(own["name"], epoch, value, own["values"].get(EPOCHS, self._epochs))
        return str(TrialScheduler.STOP if reason else TrialScheduler.CONTINUE)

    def judge(self, name: str, epoch: int, value: float, epochs: int) -> str:
        """Note a report; return why the trial is stopped, or nothing.

        Args:
            name: Name of the trial.
            epoch: Epochs done.
            value: What is watched.
            epochs: Epochs of the whole trial.
        """
        self._curves.setdefault(name, {})[epoch] = value
        if not self._grace <= epoch < epochs:
            return ""
        rule = self._by_median if self._options.scheduler == "median" else self._by_rungs
        reason = rule(name, epoch, epochs)
        if reason:
            self.reasons[name] = reason
        return reason

    def _by_median(self, name: str, epoch: int, _: int) -> str:
        """Compare the best value so far with the median of the others' means.

        These are over the epochs that the trial has reported, from the grace on.
        """
        own = [at for at in self._curves[name] if self._grace <= at <= epoch]
        means = [
            fmean(found)
            for curve in self._others(name)
            if epoch in curve and (found := [v for at, v in curve.items() if at in own])
        ]
        if len(means) < LEAST_OTHERS:
            return ""
        values = (self._sign * v for at, v in _finite(self._curves[name]) if at <= epoch)
        best = self._sign * max(values, default=-math.inf)
        middle = median(means)
        if self._sign * best >= self._sign * middle:
            return ""
        return (
            f"best {self._options.watch} {best:.4g} is {self._better} {middle:.4g}, the median of "
            f"{len(means)} others up to this epoch"
        )

    def _by_rungs(self, name: str, epoch: int, epochs: int) -> str:
        """Compare the first value after a rung with those of the trials that reached it before."""
        own, factor = self._curves[name], self._options.reduction_factor
        rung = max(at for at in self._rungs(epochs) if at <= epoch)
        if min(at for at in own if at >= rung) < epoch:
            return ""  # it was judged there
        values = [
            self._sign * curve[min(later)]
            for curve in self._others(name)
            if (later := [at for at in curve if at >= rung])
        ]
        if len(values) < factor - 1:
            return ""
        least = float(np.percentile(values, 100 * (1 - 1 / factor)))
        if self._sign * own[epoch] >= least:
            return ""
        return (
            f"{self._options.watch} {own[epoch]:.4g} is {self._better} {self._sign * least:.4g}, "
            f"where the best 1/{factor} of {len(values)} others begins"
        )

    def _rungs(self, epochs: int) -> Iterator[int]:
        """Return the epochs at which asha compares trials, without the last epoch."""
        rung = self._grace
        while rung < epochs:
            yield rung
            rung *= self._options.reduction_factor

    def _others(self, name: str) -> Iterator[Curve]:
        """Return the curves of the other trials, without values that are not finite."""
        for other, curve in self._curves.items():
            if other != name:
                yield dict(_finite(curve))


def _finite(curve: Curve) -> Iterator[tuple[int, float]]:
    return ((at, value) for at, value in curve.items() if math.isfinite(value))


def read_curves(folders: TrialFolders, watch: str) -> dict[str, Curve]:
    """Return what the trials on disk have recorded, as they would have reported it."""
    curves: dict[str, Curve] = {}
    for name in folders.names():
        by_epoch = EpochMeans(watch)
        try:
            records = read_records(folders.folder(name))
        except (CheckpointError, json.JSONDecodeError):
            continue
        for record in records:
            value = record.get(watch)
            reported = None if value is None else by_epoch.add(int(record["epoch"]), float(value))
            if reported is not None:
                curves.setdefault(name, {})[reported[0]] = reported[1]
    return curves


class EpochMeans:
    """One value an epoch of what is watched.

    A validation has one record, when the epoch is over. What is recorded within an epoch
    (``train/loss``) is averaged, and counts once a record of the next epoch has come.

    Args:
        watch: Name of the record.
    """

    def __init__(self, watch: str) -> None:
        self._is_final = watch.startswith("val/")
        self._epoch = 0
        self._values: list[float] = []

    def add(self, epoch: int, value: float) -> tuple[int, float] | None:
        """Take a record of an epoch, from 0; return epochs done and their value, or None."""
        if self._is_final:
            return epoch + 1, value
        found = None
        if epoch != self._epoch:
            found = (self._epoch + 1, fmean(self._values)) if self._values else None
            self._epoch, self._values = epoch, []
        self._values.append(value)
        return found
