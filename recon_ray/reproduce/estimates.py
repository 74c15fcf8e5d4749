"""How long the rows of the published table take: by finished runs, else by a few timed shapes.

A run's length is the number of clouds that it trains on and encodes, times what one of them takes.
That is measured with the row's own model on clouds of its own set, in this process; start-up,
reading and the figures are not in it.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recon_ray.config.loader import override
from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ReconError
from recon_ray.models.presets import arguments_of, preset_sizes
from recon_ray.models.recon import Embedder
from recon_ray.reproduce.plan import PRETRAIN, RowPlan, TablePlan
from recon_ray.reproduce.throughput import (
    SHAPES,
    Pace,
    device_name,
    device_of,
    time_encoder,
    time_task,
)
from recon_ray.sweeps.tables import text_table
from recon_ray.sweeps.trial_folders import Ledger
from recon_ray.sweeps.trial_progress import duration
from recon_ray.tasks.classify import finetune_job as finetune
from recon_ray.tasks.classify.classifier_checks import load_start
from recon_ray.tasks.classify.config import EvaluateConfig, FinetuneConfig
from recon_ray.tasks.feature_extraction import load_embedder
from recon_ray.tasks.linear_probe.config import LinearProbeConfig
from recon_ray.tasks.partseg import job as partseg
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain import job as pretrain
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.zeroshot.config import ZeroshotConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Clouds that one run handles.

    Attributes:
        trained: Clouds trained on, over all epochs.
        encoded: Clouds only encoded.
    """

    trained: int
    encoded: int


@dataclass(frozen=True)
class Estimate:
    """How long the runs of a row take.

    Attributes:
        seconds: Of one run; None if nothing tells.
        basis: What tells.
    """

    seconds: float | None
    basis: str


class Estimator:
    """Estimates every row; what costs the same is timed once.

    Args:
        table: The plan.
        ledger: What is finished; None if nothing counts.
        has_weights: Whether the pre-training is done, if there is one.
    """

    def __init__(self, table: TablePlan, ledger: Ledger | None, *, has_weights: bool) -> None:
        self._table = table
        self._ledger = ledger
        self._has_weights = has_weights
        self._device = device_of(table.config)
        self._paces: dict[str, Pace] = {}

    def of_row(self, plan: RowPlan) -> Estimate:
        """How long one run of a row takes."""
        measured = self._finished([trial.name for trial in plan.trials])
        if measured is not None or not plan.is_run:
            return measured or Estimate(None, "")
        return self._timed(lambda: _seconds(work_of(plan), self._pace(plan)), plan.row.name)

    def of_pretraining(self, config: PretrainConfig) -> Estimate:
        """How long the pre-training takes on one worker."""
        measured = self._finished([PRETRAIN])
        if measured is not None:
            return measured

        def seconds() -> float:
            prepared = pretrain.open_set(override(config, {"data.verify": False}))
            split = prepared.join(config.data.train_splits)
            rows = min(split.rows, config.data.limit or split.rows)
            epochs = config.train.epochs + int(config.protocol == "reference")
            task = pretrain.make_task(config, prepared)
            pace = time_task(task, task.batch_options(), prepared, split, self._device)
            return _seconds(Work(rows * epochs, 0), pace)

        return self._timed(seconds, PRETRAIN)

    def _finished(self, names: Sequence[str]) -> Estimate | None:
        if self._ledger is None:
            return None
        results = [self._ledger.result(name) for name in names]
        seconds = [float(one["seconds"]) for one in results if one is not None]
        if not seconds:
            return None
        return Estimate(statistics.fmean(seconds), f"mean of {len(seconds)} finished")

    def _timed(self, seconds: Callable[[], float], name: str) -> Estimate:
        if not self._table.config.reproduce.measure:
            return Estimate(None, "not measured")
        try:
            return Estimate(seconds(), f"{SHAPES} shapes timed on {device_name(self._device)}")
        except (ReconError, RuntimeError, ValueError) as error:
            logger.warning("%s: not timed (%s)", name, str(error).splitlines()[0])
            return Estimate(None, "not measured")

    def _pace(self, plan: RowPlan) -> Pace:
        """Time the row's model; runs by voting encode with that of the row which they follow."""
        name = plan.row.follows or plan.row.name
        if name not in self._paces:
            by_name = {one.row.name: one for one in self._table.rows}
            self._paces[name] = self._measure(by_name[name])
        return self._paces[name]

    def _measure(self, plan: RowPlan) -> Pace:
        logger.info("timing %d shapes in the model of %s", SHAPES, plan.row.name)
        config, prepared = self._startable(plan.config), PreparedSet.open(str(plan.path))
        if isinstance(config, ZeroshotConfig | LinearProbeConfig):
            return time_encoder(
                self._embedder(config), config.data.num_points, prepared, self._device
            )
        assert isinstance(config, FinetuneConfig | PartsegConfig)
        split = prepared.join(config.data.train_splits)
        if isinstance(config, FinetuneConfig):
            task = finetune.make_task(config, prepared)[0]()
            return time_task(task, task.batch_options(), prepared, split, self._device)
        parts = partseg.make_task(config, partseg.open_set(config))
        return time_task(parts, parts.scoring.options, prepared, split, self._device)

    def _startable(self, config: JobConfig) -> JobConfig:
        """The same with a fresh model of the pre-training's sizes where that is still to be done.

        An episode is timed with the head of all classes, which makes no difference.
        """
        pretraining = self._table.pretrain
        if pretraining is None or self._has_weights:
            return config
        if isinstance(config, FinetuneConfig | PartsegConfig):
            sizes = {"preset": pretraining.model.preset, **pretraining.model.overrides()}
            own = config.model.model_dump()
            kept = {key: value for key, value in sizes.items() if own.get(key, "") is None}
            values = {f"model.{key}": value for key, value in kept.items()}
            return override(config, {"init_from": None, **values})
        return config

    def _embedder(self, config: ZeroshotConfig | LinearProbeConfig) -> Embedder:
        pretraining = self._table.pretrain
        if pretraining is None or self._has_weights:
            place, _ = load_start(config.init_from, **config.model.model_dump())
            assert place is not None
            return load_embedder(place, trained=False, **config.model.model_dump())
        given: dict[str, Any] = pretraining.model.overrides()
        known = {name: given[name] for name in arguments_of("embedder") & given.keys()}
        return Embedder(**{**preset_sizes(pretraining.model.preset, "embedder"), **known})


def work_of(plan: RowPlan) -> Work:
    """Count the clouds that one run of a row handles."""
    config, prepared = plan.config, PreparedSet.open(str(plan.path))
    rows = {name: split.rows for name, split in prepared.splits.items()}
    if isinstance(config, EvaluateConfig):
        tested = rows.get(config.data.split, 0)
        return Work(0, tested * (1 + config.eval.votes * config.eval.repeats))
    if isinstance(config, ZeroshotConfig):
        return Work(0, sum(_limited(rows.get(s, 0), config) for s in config.zeroshot.splits))
    if isinstance(config, LinearProbeConfig):
        splits = (config.probe.train_split, config.probe.test_split)
        models = 1 + int(config.probe.untrained)
        return Work(0, models * sum(_limited(rows.get(split, 0), config) for split in splits))
    assert isinstance(config, FinetuneConfig | PartsegConfig)
    trained, tested = _samples(plan, config, rows)
    is_reference = config.protocol == "reference"
    extra = int(is_reference and isinstance(config, FinetuneConfig))
    epochs = config.train.epochs + extra
    validated = is_reference or config.data.validation_split is not None
    looks = epochs // config.eval.every_epochs if validated else 0
    return Work(trained * epochs, tested * (looks + 1))


def _samples(
    plan: RowPlan, config: FinetuneConfig | PartsegConfig, rows: Mapping[str, int]
) -> tuple[int, int]:
    """Training shapes of an epoch, and test shapes, on average over the runs of a row."""
    if plan.episodes:
        sizes = [way * shot for way, shot, _ in plan.episodes]
        return round(statistics.fmean(sizes)), _EPISODE_TESTS * round(
            statistics.fmean(way for way, _, _ in plan.episodes)
        )
    trained = sum(rows.get(name, 0) for name in config.data.train_splits)
    return _limited(trained, config), rows.get(config.data.test_split, 0)


#: Test shapes a class of an episode.
_EPISODE_TESTS = 20


def _limited(count: int, config: Any) -> int:  # noqa: ANN401 - any job with a limit
    return min(count, config.data.limit or count)


def _seconds(work: Work, pace: Pace) -> float:
    return work.trained * pace.trained + work.encoded * pace.encoded


# --- The plan as text -----------------------------------------------------------------------------


def plan_text(
    table: TablePlan, ledger: Ledger, *, fresh: bool, has_weights: bool, fault: str = ""
) -> str:
    """The steps in the order in which they run, with what they need, take and lack.

    Args:
        table: The plan.
        ledger: What is finished.
        fresh: Whether what is finished is about to be set aside.
        has_weights: Whether the pre-training is done, if there is one.
        fault: Why the pre-training cannot be done.
    """
    estimator = Estimator(table, None if fresh else ledger, has_weights=has_weights)
    steps: list[_Step] = []
    if table.pretrain is not None:
        estimate = Estimate(None, "") if fault else estimator.of_pretraining(table.pretrain)
        short, why = ", ".join(table.scaled), f"cannot run: {fault}" if fault else ""
        steps.append(_Step(PRETRAIN, 1, int(has_weights), estimate, short, why))
    for plan in table.rows:
        names = [trial.name for trial in plan.trials]
        done = 0 if fresh else sum(ledger.status(name) == "done" for name in names)
        after = [f"after {plan.row.follows}"] if plan.row.follows else []
        notes, fault = ", ".join([*after, *plan.scaled]), ""
        if not plan.is_run:
            fault = f"skipped: {plan.missing}" if plan.missing else f"cannot run: {plan.broken}"
        estimate = estimator.of_row(plan)
        steps.append(_Step(plan.row.name, len(names), done, estimate, notes, fault))
    faults = [f"  {step.name} {step.fault}" for step in steps if step.fault]
    cells = [step.cells() for step in steps]
    return "\n".join([text_table(_HEAD, cells, left=(0, 4, 5)), *faults, _sum(steps)])


_HEAD = ("step", "done", "a run", "left", "by", "")


@dataclass(frozen=True)
class _Step:
    name: str
    runs: int
    done: int
    estimate: Estimate
    notes: str
    fault: str = ""

    @property
    def left(self) -> float | None:
        """Seconds that are left; None if nothing tells."""
        seconds = self.estimate.seconds
        return None if seconds is None else seconds * (self.runs - self.done)

    def cells(self) -> list[str]:
        if self.fault:
            return [self.name, "-", "-", "-", "", self.fault.partition(":")[0]]
        times = [
            "-" if value is None else duration(value)
            for value in (self.estimate.seconds, self.left)
        ]
        return [self.name, f"{self.done}/{self.runs}", *times, self.estimate.basis, self.notes]


def _sum(steps: Sequence[_Step]) -> str:
    runnable = [step for step in steps if not step.fault and step.done < step.runs]
    runs = sum(step.runs - step.done for step in runnable)
    known = [step.left for step in runnable if step.left is not None]
    unknown = [step.name for step in runnable if step.left is None]
    text = f"{runs} runs are left"
    if known:
        text += f", about {duration(sum(known))} one after another, start-up not counted"
    return text + (f"; not known for {', '.join(unknown)}" if unknown else "")
