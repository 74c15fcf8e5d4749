"""Template of the jobs: how one that trains, and one that measures, goes from start to result."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from recon_ray.cluster.evaluate import Evaluation, evaluate
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.train import train_here, train_on_ray
from recon_ray.cluster.training_job import TrainingJob, resolve_mode
from recon_ray.config.sections.common import JobConfig
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.data.format.prepared import PreparedSet, Verify
from recon_ray.data.loading.batches import BatchOptions
from recon_ray.tasks.config_checks import check_here, use_ops
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run, with_recorded_version
from recon_ray.train.state import started_from
from recon_ray.train.stop_request import sigterm_as_stop_request

T = TypeVar("T")
TrainT = TypeVar("TrainT", bound=TrainingConfig)
ConfigT = TypeVar("ConfigT", bound=JobConfig)

logger = logging.getLogger(__name__)

# --- Jobs that train ------------------------------------------------------------------------------


def _begin(run: Run, job: TrainingJob) -> None:
    run.begin()


@dataclass(frozen=True)
class Training(Generic[TrainT]):
    """Parts of a job that trains, in the order in which :func:`run_training` calls them.

    Attributes:
        open_set: Opens the prepared set and refuses what cannot be learned.
        plan: Makes the task and its data from run, configuration and set, and refuses what is
            left to refuse; nothing has been written yet.
        label: End of a generated run name.
        finish: Measures while Ray still runs where it has to, and returns what ends the job: a
            function that writes ``result.json`` once the workers have ended.
        begin: Begins the run's folder.
        dry_run: Options that a dry run changes, by section.
    """

    open_set: Callable[[TrainT], PreparedSet]
    plan: Callable[[Run, TrainT, PreparedSet], TrainingJob]
    label: Callable[[TrainT], str]
    finish: Callable[[Run, TrainingJob, dict[str, float]], Callable[[], JobResult]]
    begin: Callable[[Run, TrainingJob], None] = _begin
    dry_run: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def run_training(job: Job[TrainT], parts: Training[TrainT]) -> JobResult:
    """Check everything, train, measure and write ``result.json``; or take one step and report."""
    if job.dry_run:
        return _dry_run(job, parts)
    run, training = _plan(job.name, job.config, parts, resume=job.config.resume)
    end = train(
        training,
        begin=lambda: parts.begin(run, training),
        then=lambda fitted: parts.finish(run, training, fitted),
    )
    return end()


def _plan(
    name: str, config: TrainT, parts: Training[TrainT], *, resume: str = "never"
) -> tuple[Run, TrainingJob]:
    use_ops(config)
    if resume == "auto":
        config = with_recorded_version(config)
    prepared = parts.open_set(config)
    version = {"data": config.data.model_copy(update={"version": prepared.version})}
    config = config.model_copy(update=version)
    run = open_run(name, config, label=parts.label(config), resume=resume)
    training = parts.plan(run, config, prepared)
    training.check(config.cluster.allowed_workers)
    if run.start is not None:
        order, settings, source = training.sample_order, training.settings, f"resume={resume}"
        run.start = started_from(run.start, order, settings, source=source)
    return run, training


def train(
    job: TrainingJob, *, begin: Callable[[], None], then: Callable[[dict[str, float]], T]
) -> T:
    """Train in this process (``cluster.workers=0``) or on Ray.

    Args:
        job: Task, data and settings.
        begin: Makes the run's folder; called when nothing is left to be refused.
        then: Takes the metrics and makes the result, while Ray still runs.

    Raises:
        ConfigError: If the job does not fit the data, the machine or the cluster.
        StoppedError: If the process received SIGTERM, after a commit where there was time for one.
        ReconError: A fault in a worker that the user can act on.
    """
    config = job.config
    check_here(config)
    warm_up, epochs = config.optim.warmup_epochs, config.train.epochs
    if warm_up >= epochs:
        logger.warning(
            "optim.warmup_epochs=%g is not less than train.epochs=%d: the learning rate never "
            "reaches optim.lr=%g; lower the warm-up", warm_up, epochs, config.optim.lr,
        )  # fmt: skip
    if config.cluster.workers == 0:
        begin()
        with sigterm_as_stop_request():
            metrics = train_here(job)
        return then(metrics)
    with ray_session(config.cluster):
        mode = resolve_mode(job)
        plan = plan_workers(
            config.cluster, reads_during_training=mode == "stream", device=config.runtime.device
        )
        begin()
        with sigterm_as_stop_request():
            metrics = train_on_ray(job, config.cluster, plan, mode)
        return then(metrics)


def training_counts(job: TrainingJob, fitted: dict[str, float]) -> dict[str, Any]:
    """Move the counts of a training out of its metrics, and add those of its data."""
    return {
        "samples": {name: split.rows for name, split in job.prepared.splits.items()},
        "training_samples": job.train_rows,
        "classes": len(job.prepared.classes),
        **job.split_counts,
        "steps": int(fitted.pop("steps")),
        "epochs": int(fitted.pop("epochs")),
        "workers": job.config.cluster.max_workers,
    }


def _dry_run(job: Job[TrainT], parts: Training[TrainT]) -> JobResult:
    """Build everything, take one step in a throw-away run, report size and time."""
    with _throw_away(job.config, parts.dry_run) as config:
        run, training = _plan(job.name, config, parts)
        started = time.monotonic()
        metrics = train(training, begin=lambda: parts.begin(run, training), then=dict)
        seconds = time.monotonic() - started
        task = training.make_task()
        parameters = list(task.stored_model(task.build()).parameters())
    size = config.train.global_batch_size
    lines = [
        "dry run: one step was taken, nothing is kept",
        f"{'parameters':28}{sum(p.numel() for p in parameters):>20,}",
        f"{'trained ones':28}{sum(p.numel() for p in parameters if p.requires_grad):>20,}",
        f"{'training samples':28}{training.train_rows:>20,}",
        f"{'steps an epoch':28}{training.train_rows // size:>20,}",
        f"{'loss of the step':28}{metrics['loss_first']:>20.4f}",
        f"{'seconds of the step':28}{size / metrics['samples_per_second']:>20.2f}",
        f"{'peak memory of a worker, GB':28}{metrics['peak_memory_bytes'] / 1e9:>20.2f}",
        f"{'seconds with start-up':28}{seconds:>20.1f}",
    ]
    return JobResult("\n".join(lines))


@contextmanager
def _throw_away(config: TrainT, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[TrainT]:
    """Yield the configuration of one step in a folder that goes again."""
    with tempfile.TemporaryDirectory(prefix="recon-dry-run-") as storage:
        every = {"run": {"storage": storage, "name": "dry-run"}, "train": {"steps": 1}, **changes}
        update = {
            section: getattr(config, section).model_copy(update=values)
            for section, values in every.items()
        }
        yield config.model_copy(update=update)


# --- Jobs that measure ----------------------------------------------------------------------------


def run_evaluation(
    job: Job[ConfigT],
    make: Callable[[], Evaluation],
    prepared: PreparedSet,
    splits: Sequence[str],
    *,
    label: str | None = None,
    fits: str,
    finish: Callable[[Run, dict[str, Any]], JobResult],
    verify: Verify,
    options: BatchOptions = BatchOptions(),  # noqa: B008 - frozen
    resume: str = "never",
) -> JobResult:
    """Compute an evaluation on whole splits and write ``result.json``; or say that it fits.

    Args:
        job: The job.
        make: Makes the evaluation; picklable.
        prepared: The prepared set.
        splits: Splits that are read.
        label: End of a generated run name; by default that of the set's folder.
        fits: Report of a dry run.
        finish: Writes the result from what the evaluation has computed.
        verify: When the hashes of the set are compared.
        options: Content of a batch.
        resume: As :class:`~recon_ray.tasks.run.Run` has it.
    """
    config = job.config
    prepared = prepared.checked(verify)
    use_ops(config)
    check_here(config)
    if job.dry_run:
        return JobResult(f"dry run: {fits}")
    run = open_run(job.name, config, label=label or prepared.path.name, resume=resume)
    run.begin()
    return finish(run, measure(run, make, prepared, splits, options))


def measure(
    run: Run,
    make: Callable[[], Evaluation],
    prepared: PreparedSet,
    splits: Sequence[str],
    options: BatchOptions,
) -> dict[str, Any]:
    """Compute an evaluation where the run's configuration places it; see :func:`evaluate`."""
    config = run.config
    return evaluate(
        make,
        prepared,
        splits,
        options=options,
        folder=run.folder,
        cluster=config.cluster,
        runtime=config.runtime.model_copy(update={"precision": config.precision}),
    )
