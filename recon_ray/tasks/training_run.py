"""What the drivers of all jobs that train have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.train import train_here, train_on_ray
from recon_ray.cluster.training_job import Mode, TrainingJob, resolve_mode
from recon_ray.config.sections.data import SetSection
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.tasks.config_checks import check_here
from recon_ray.tasks.run import Run
from recon_ray.train.feed.resident import Residency
from recon_ray.train.settings import FitSettings
from recon_ray.train.stop_request import sigterm_as_stop_request

T = TypeVar("T")

logger = logging.getLogger(__name__)


def placement(data: SetSection) -> tuple[Mode, Residency]:
    """How rows reach the workers, and where these keep them."""
    if data.residency == "stream":
        return ("stream" if data.mode == "auto" else data.mode), "host"
    if data.residency == "auto":
        return data.mode, "auto"
    return "shared", "device" if data.residency == "device" else "host"


def fit_settings(config: TrainingConfig, **more: Any) -> FitSettings:  # noqa: ANN401
    """Translate the configuration for the training loop.

    Args:
        config: Configuration of the job.
        more: Settings that are particular to it.
    """
    train, optim = config.train, config.optim
    return FitSettings(
        epochs=train.epochs,
        global_batch_size=train.global_batch_size,
        max_steps=train.steps,
        micro_batch_size=train.micro_batch_size,
        activation_checkpointing=train.activation_checkpointing,
        seed=config.run.seed,
        warmup_epochs=optim.warmup_epochs,
        min_lr=optim.min_lr,
        protocol=config.protocol,
        clip_norm=train.clip_norm,
        compile=config.runtime.compile,
        cuda_graph=config.runtime.cuda_graph == "auto",
        gradient_exchange=train.gradient_exchange,
        gradient_precision=train.gradient_precision,
        bucket_megabytes=train.bucket_megabytes,
        sync_batch_norm=train.sync_batch_norm,
        log_every_steps=train.log_every_steps,
        commit_every_seconds=train.commit_every_seconds,
        **more,
    )


def training_rows(config: TrainingConfig, prepared: PreparedSet) -> int:
    """Shapes that an epoch is made of: those of the training splits, or data.limit of them."""
    rows = prepared.join(config.data.train_splits).rows
    return min(rows, config.data.limit or rows)


def job_of(
    run: Run,
    config: TrainingConfig,
    prepared: PreparedSet,
    **more: Any,  # noqa: ANN401
) -> TrainingJob:
    """Translate the configuration for the trainer.

    Args:
        run: The run.
        config: Configuration of the job.
        prepared: The set that is trained on.
        more: What is particular to the job: at least its task, settings, what a batch holds, and
            the splits that are evaluated on.
    """
    data, train = config.data, config.train
    mode, residency = placement(data)
    return TrainingJob(
        prepared=prepared,
        folder=run.folder,
        train_splits=data.train_splits,
        mode=mode,
        residency=residency,
        limit=data.limit,
        shuffle_buffer=data.shuffle_buffer,
        keep_checkpoints=train.keep_checkpoints,
        keep_every=train.keep_every_steps,
        keeps_ledger=train.ledger,
        runtime=config.runtime,
        **more,
    )


def train(
    job: TrainingJob,
    config: TrainingConfig,
    *,
    begin: Callable[[], None],
    then: Callable[[dict[str, float]], T],
) -> T:
    """Train in this process or on Ray, as the configuration says.

    Args:
        job: What is trained on what.
        config: Configuration of the job.
        begin: Makes the run's folder; called when nothing is left to be refused.
        then: Is given the metrics and makes the result, while Ray still runs.

    Raises:
        ConfigError: If the job does not fit the data, the machine or the cluster.
        StoppedError: If the process was told to end, after a commit where the run got to one.
        ReconError: What a worker met that the user can act on.
    """
    job.check(config.cluster.allowed_workers)
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
            config.cluster, reads_during_training=mode != "shared", device=config.runtime.device
        )
        begin()
        with sigterm_as_stop_request():
            metrics = train_on_ray(job, config.cluster, plan, mode)
        return then(metrics)
