"""One trial of a sweep in its process, and all of them for a job that consists of trials."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.tensorboard.summary import hparams, scalar

from recon_ray.config.fields import scalar_text
from recon_ray.config.loader import override
from recon_ray.config.sections.common import ClusterSection, JobConfig
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records, recording_to
from recon_ray.runs.storage import join
from recon_ray.runs.tensorboard import EventFile
from recon_ray.sweeps.ray_tune import run_on_ray
from recon_ray.sweeps.trial_folders import Ledger
from recon_ray.sweeps.trial_placement import (
    Report,
    Trial,
    TrialJob,
    TrialPlan,
    plan_trials,
    run_here,
    trial_session,
)
from recon_ray.sweeps.trial_progress import TrialProgress
from recon_ray.tasks.classify.episodes import shared_clouds
from recon_ray.tasks.input_hashes import inputs_of, refuse_other_inputs
from recon_ray.tasks.registry import JOBS, Job
from recon_ray.tasks.run import Run

logger = logging.getLogger(__name__)

#: Seconds between two reports of a trial that nothing would stop.
REPORT_SECONDS = 2.0
#: Seconds between two looks at the records of an inner run: in a folder, and on an object store,
#: where every look is a request and new ones come with the commits.
POLL_SECONDS, STORE_POLL_SECONDS = 0.5, 10.0


@dataclass(frozen=True)
class TrialWork:
    """What every trial does; picklable.

    Attributes:
        job: Name of the job.
        config: Its configuration; the values of a trial go on top.
        storage: Where the folders of the trials are made.
        watch: Record that is reported while a trial runs.
        reports_all: Report every one of them, as the scheduler needs.
        is_nested: Whether the job starts workers of its own.
    """

    job: str
    config: JobConfig
    storage: str
    watch: str
    reports_all: bool = False
    is_nested: bool = False

    def config_of(self, trial: Trial, threads: int | None = None) -> JobConfig:
        """The whole configuration of a trial, which can be run by hand.

        Raises:
            ConfigError: If the values are refused together.
        """
        values = {**trial.values, "run.name": trial.name, "run.storage": self.storage}
        if not self.is_nested:
            values["cluster.workers"] = 0
        if threads is not None and self.config.runtime.threads is None:
            values.setdefault("runtime.threads", threads)
        return override(self.config, values, origin=f"trial {trial.name}")

    def __call__(
        self,
        trial: Trial,
        shared: Any,  # noqa: ANN401 - clouds, or nothing
        threads: int,
        report: Report,
    ) -> dict[str, float]:
        """Run the job with the values of a trial and give the metrics of its ``result.json``."""
        config = self.config_of(trial, None if self.is_nested else threads)
        folder = RunFolder(join(self.storage, trial.name))
        told = _ProgressReporter(self.watch, report, 0.0 if self.reports_all else REPORT_SECONDS)
        follow = _following(folder, told) if self.is_nested else recording_to(told)
        with follow, shared_clouds(shared):
            failure = JOBS[self.job].load_main()(Job(self.job, config)).failure
        if failure is not None:
            logger.warning("%s", failure)
        found: dict[str, Any] = json.loads(folder.read("result.json") or "{}")
        metrics = {name: float(value) for name, value in found["metrics"].items()}
        _write_hparams(folder, trial.values, metrics)
        return metrics


class _ProgressReporter:
    """Reports the records of a run that hold what is watched.

    Args:
        watch: Name of the record.
        report: Where it is reported.
        seconds: Least time between two reports.
    """

    def __init__(self, watch: str, report: Report, seconds: float) -> None:
        self._watch = watch
        self._report = report
        self._seconds = seconds
        self._last = -seconds

    def __call__(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Report a record, with the number of epochs done."""
        value = values.get(self._watch)
        if value is None or time.monotonic() - self._last < self._seconds:
            return
        self._last = time.monotonic()
        self._report({"epoch": epoch + 1, self._watch: float(value)})


@contextmanager
def _following(folder: RunFolder, told: _ProgressReporter) -> Iterator[None]:
    """Tell of the records that workers in other processes write."""
    stopped = threading.Event()
    follower = threading.Thread(target=_follow, args=(folder, told, stopped), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stopped.set()
        follower.join()


def _follow(folder: RunFolder, told: _ProgressReporter, stopped: threading.Event) -> None:
    seen = 0
    seconds = POLL_SECONDS if folder.is_local else STORE_POLL_SECONDS
    while not stopped.wait(seconds):
        records = read_records(folder)
        for record in records[seen:]:
            told(int(record["step"]), int(record["epoch"]), record)
        seen = len(records)


def _write_hparams(
    folder: RunFolder, values: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Let TensorBoard's table of hyper-parameters know the trial, beside its curves."""
    named = {key: _plain(value) for key, value in values.items()}
    numbers = {f"result/{name}": value for name, value in metrics.items()}
    board = EventFile(folder.local / "tensorboard")
    for summary in hparams(named, numbers):
        board.add(summary, 0)
    for name, value in numbers.items():
        board.add(scalar(name, value), 0)
    board.close()
    folder.publish()


def _plain(value: object) -> bool | float | str:
    return value if isinstance(value, bool | int | float | str) else scalar_text(value)


# --- All trials -----------------------------------------------------------------------------------


def unfinished(run: Run, ledger: Ledger, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are still to be run: neither done nor stopped early.

    Those of a run that is about to be set aside count for nothing.
    """
    if run.resume == "never":
        return list(trials)
    return [trial for trial in trials if ledger.status(trial.name) not in ("done", "stopped")]


def refuse_stale(
    run: Run,
    ledger: Ledger,
    trials: Sequence[Trial],
    config_of: Callable[[Trial], JobConfig],
    *,
    called: Mapping[str, str],
) -> None:
    """Refuse to count trials that were done with other sets or weights than there are now.

    Args:
        run: The run of the whole.
        ledger: The folders of the trials.
        trials: All of them.
        config_of: Gives the configuration of one.
        called: What their options are called in that of the run.

    Raises:
        ConfigError: Naming what has changed.
    """
    if run.resume == "never":
        return
    for trial in trials:
        if ledger.status(trial.name) in ("done", "stopped"):
            config = config_of(trial)
            inputs = inputs_of(config)
            refuse_other_inputs(ledger.folder(trial.name), config, inputs, called=called)


def run_trials(
    job: TrialJob,
    cluster: ClusterSection,
    trials: Sequence[Trial],
    *,
    run: Run,
) -> None:
    """Run the trials that are not done, in parallel, or here with ``cluster.workers=0``.

    Args:
        job: What they run.
        cluster: Where.
        trials: All of them, in order.
        run: The run of the whole, which begins once nothing is refused any more.
    """
    left = unfinished(run, job.ledger, trials)
    logger.info("%d trials, %d of them are done", len(trials), len(trials) - len(left))
    if not left:
        run.begin()
        return
    board = TrialProgress(
        len(trials), job.metric, job.mode == "max", finished=len(trials) - len(left)
    )
    if cluster.workers == 0:
        run.begin()
        run_here(job, left, board)
        return
    with trial_session(job, cluster, len(left)):
        plan = plan_trials(job, cluster, len(left))
        run.begin()
        announce(plan)
        run_on_ray(job, plan, board, trials=left)


def announce(plan: TrialPlan) -> None:
    """Say what a trial reserves, and how many run at once."""
    logger.info(
        "%d trials at once (%g CPUs, %g GPUs and %d threads each)",
        plan.at_once, plan.cpus, plan.gpus, plan.threads,
    )  # fmt: skip
