"""One trial of a sweep in its process, and all of them for a job that consists of trials."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray.tune.search import Searcher
from torch.utils.tensorboard import SummaryWriter

from recon_ray.config.fields import scalar_text
from recon_ray.config.loader import override
from recon_ray.config.sections.common import ClusterSection, JobConfig
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count
from recon_ray.runs.folder import START_FRESH_HINT, RunFolder
from recon_ray.runs.recorder import read_records, recording_to
from recon_ray.storage import join
from recon_ray.sweeps.early_stopping import EpochMeans
from recon_ray.sweeps.ray_tune import run_on_ray
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import (
    Report,
    Trial,
    TrialJob,
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
    """Function of a trial: one run of a job; picklable.

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

    def config_of(self, trial: Trial, threads: int = 0) -> JobConfig:
        """Return the whole configuration of a trial, which can be run by hand.

        It has the threads, unless they are configured or 0, as they belong to the numbers.

        Raises:
            ConfigError: If the values are refused together.
        """
        values = {**trial.values, "run.name": trial.name, "run.storage": self.storage}
        if not self.is_nested:
            values["cluster.workers"] = 0
        if threads and self.config.runtime.threads is None:
            values.setdefault("runtime.threads", threads)
        if isinstance(self.config, TrainingConfig) and self.config.train.keep_optimizer is None:
            values.setdefault("train.keep_optimizer", False)
        return override(self.config, values, origin=f"trial {trial.name}")

    def __call__(
        self,
        trial: Trial,
        shared: Any,  # noqa: ANN401 - clouds, or nothing
        threads: int,
        report: Report,
    ) -> dict[str, float]:
        """Run the job with the values of a trial; return the metrics of its ``result.json``."""
        config = self.config_of(trial, threads)
        folder = RunFolder(join(self.storage, trial.name))
        seconds = 0.0 if self.reports_all else REPORT_SECONDS
        reporter = _ProgressReporter(self.watch, report, seconds)
        follow = _following(folder, reporter) if self.is_nested else recording_to(reporter)
        with follow, shared_clouds(shared):
            failure = JOBS[self.job].load_main()(Job(self.job, config)).failure
        if failure is not None:
            logger.warning("%s", failure)
        found: dict[str, Any] = json.loads(folder.read("result.json") or "{}")
        metrics = {name: float(value) for name, value in found["metrics"].items()}
        _write_hparams(folder, trial.values, metrics)
        return metrics


class _ProgressReporter:
    """Reporter of what is watched, epoch by epoch, at most once in ``seconds``."""

    def __init__(self, watch: str, report: Report, seconds: float) -> None:
        self._watch, self._report, self._seconds = watch, report, seconds
        self._means = EpochMeans(watch)
        self._last = -seconds

    def __call__(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Take a record; report the number of epochs done, and the value of the last one."""
        value = values.get(self._watch)
        found = None if value is None else self._means.add(epoch, float(value))
        if found is not None and time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._report({"epoch": found[0], self._watch: found[1]})


@contextmanager
def _following(folder: RunFolder, reporter: _ProgressReporter) -> Iterator[None]:
    """Report the records that workers in other processes write meanwhile."""
    stopped = threading.Event()

    def follow() -> None:
        seen = 0
        while not stopped.wait(POLL_SECONDS if folder.is_local else STORE_POLL_SECONDS):
            records = read_records(folder)
            for record in records[seen:]:
                reporter(int(record["step"]), int(record["epoch"]), record)
            seen = len(records)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        stopped.set()
        follower.join()


def _write_hparams(
    folder: RunFolder, values: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Add the trial to TensorBoard's table of hyper-parameters, beside its curves."""
    plain = {
        key: value if isinstance(value, bool | int | float | str) else scalar_text(value)
        for key, value in values.items()
    }
    numbers = {f"result/{name}": value for name, value in metrics.items()}
    with SummaryWriter(str(folder.local / "tensorboard")) as writer:
        writer.add_hparams(plain, numbers, run_name=".", global_step=0)
    folder.publish()


# --- All trials -----------------------------------------------------------------------------------


def refuse_stale(
    run: Run,
    folders: TrialFolders,
    trials: Sequence[Trial],
    config_of: Callable[[Trial], JobConfig],
    *,
    called: Mapping[str, str],
) -> None:
    """Refuse to count trials of other sets, weights or threads than there are now.

    Messages name options as ``called`` has them.

    Raises:
        ConfigError: Naming what has changed.
    """
    if run.resume == "never":
        return
    for trial in trials:
        before = folders.threads(trial.name)
        config = None if before is None else config_of(trial)
        now = None if config is None else config.runtime.threads
        if now is not None and before not in (0, now):
            name = called.get("runtime.threads", "runtime.threads")
            raise ConfigError(
                f"{name}={now}: {folders.folder(trial.name).uri} was begun with {before}, which "
                f"computes slightly other numbers; set {name}={before}, or {START_FRESH_HINT}"
            )
        if config is not None and folders.has_ended(trial.name):
            inputs = inputs_of(config)
            refuse_other_inputs(folders.folder(trial.name), config, inputs, called=called)


def run_trials(
    job: TrialJob,
    cluster: ClusterSection,
    trials: Sequence[Trial],
    *,
    run: Run,
    source: Searcher | None = None,
    samples: int | None = None,
) -> None:
    """Run the trials that are not done, in parallel, or here with ``cluster.workers=0``.

    Args:
        job: Function and reservation of the trials.
        cluster: The cluster.
        trials: All of them in order, or those that were begun where more are proposed.
        run: The run of the whole, which begins once nothing is refused any more.
        source: Source of the trials that are proposed, those that were begun first.
        samples: Number of all trials with those that are proposed.
    """
    left = list(trials)
    if run.resume != "never":  # else all of them are about to be set aside
        left = [trial for trial in trials if not job.folders.has_ended(trial.name)]
    total = len(trials) if samples is None else samples
    count = total - (len(trials) - len(left))
    logger.info("%d trials, %d of them are done", total, total - count)
    if count <= 0:
        run.begin()
        return
    show = partial(TrialProgress, total, job.metric, job.mode, total - count)
    names = [trial.name for trial in trials]
    if cluster.workers == 0:
        run.begin()
        threads = job.folders.agreed_threads(names, cpu_count())
        run_here(job, left, show(is_alone=False), threads)  # their own log is shown too
        return
    with trial_session(job, cluster, count):
        plan = plan_trials(job, cluster, count)
        run.begin()
        plan = replace(plan, threads=job.folders.agreed_threads(names, plan.threads))
        logger.info(
            "%d trials at once (%g CPUs, %g GPUs and %d threads each)",
            plan.at_once, plan.cpus, plan.gpus, plan.threads,
        )  # fmt: skip
        run_on_ray(job, plan, show(), trials=left, source=source)
