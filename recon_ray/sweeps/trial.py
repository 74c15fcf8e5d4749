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

from ray.tune.search import Searcher
from torch.utils.tensorboard import SummaryWriter

from recon_ray.config.fields import scalar_text
from recon_ray.config.loader import override
from recon_ray.config.sections.common import ClusterSection, JobConfig
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records, recording_to
from recon_ray.runs.storage import join
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
def _following(folder: RunFolder, reporter: _ProgressReporter) -> Iterator[None]:
    """Tell of the records that workers in other processes write."""
    stopped = threading.Event()
    follower = threading.Thread(target=_follow, args=(folder, reporter, stopped), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stopped.set()
        follower.join()


def _follow(folder: RunFolder, reporter: _ProgressReporter, stopped: threading.Event) -> None:
    seen = 0
    seconds = POLL_SECONDS if folder.is_local else STORE_POLL_SECONDS
    while not stopped.wait(seconds):
        records = read_records(folder)
        for record in records[seen:]:
            reporter(int(record["step"]), int(record["epoch"]), record)
        seen = len(records)


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
    """Refuse to count trials that were done with other sets or weights than there are now.

    Args:
        run: The run of the whole.
        folders: The folders of the trials.
        trials: All of them.
        config_of: Gives the configuration of one.
        called: What their options are called in that of the run.

    Raises:
        ConfigError: Naming what has changed.
    """
    if run.resume == "never":
        return
    for trial in trials:
        if folders.status(trial.name) in ("done", "stopped"):
            config = config_of(trial)
            inputs = inputs_of(config)
            refuse_other_inputs(folders.folder(trial.name), config, inputs, called=called)


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
    left = list(trials)
    if run.resume != "never":  # else all of them are about to be set aside
        left = [t for t in trials if job.folders.status(t.name) not in ("done", "stopped")]
    run_left(job, cluster, run, len(trials), len(left), trials=left)


def run_left(
    job: TrialJob,
    cluster: ClusterSection,
    run: Run,
    total: int,
    count: int,
    *,
    trials: Sequence[Trial] = (),
    source: Searcher | None = None,
) -> None:
    """Run the trials that are left, if any.

    Args:
        job: What they run.
        cluster: Where.
        run: The run of the whole, which begins once nothing is refused any more.
        total: Number of all trials.
        count: Number of those that are left.
        trials: The trials that are left, in order.
        source: Source that proposes them instead.
    """
    logger.info("%d trials, %d of them are done", total, total - count)
    if count <= 0:
        run.begin()
        return

    def progress(*, is_alone: bool) -> TrialProgress:
        is_max = job.mode == "max"
        return TrialProgress(total, job.metric, is_max, total - count, is_alone=is_alone)

    if cluster.workers == 0:
        run.begin()
        run_here(job, trials, progress(is_alone=False))  # what they log is shown too
        return
    with trial_session(job, cluster, count):
        plan = plan_trials(job, cluster, count)
        run.begin()
        logger.info(
            "%d trials at once (%g CPUs, %g GPUs and %d threads each)",
            plan.at_once, plan.cpus, plan.gpus, plan.threads,
        )  # fmt: skip
        run_on_ray(job, plan, progress(is_alone=True), trials=trials, source=source)
