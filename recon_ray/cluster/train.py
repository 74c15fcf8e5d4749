"""A task and a prepared set to data-parallel training: Ray Train workers, or this process."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from tqdm import tqdm

from recon_ray.cluster.datasets import put_tables, read_tables, training_datasets
from recon_ray.cluster.failures import FailureNotes, translate_failures
from recon_ray.cluster.placement import WorkerPlan
from recon_ray.cluster.stop_watch import outcome_of, running_stop_actor
from recon_ray.cluster.training_job import Mode, TrainingJob, placement, with_precision
from recon_ray.cluster.workarounds.ctrl_c import InterruptibleTrainer
from recon_ray.cluster.workarounds.reservations import free_earlier, note_submission
from recon_ray.cluster.worker import WorkerPayload, train_loop
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.data.loading.stream import put_blocks
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count, working_directory
from recon_ray.points import ops
from recon_ray.runs.folder import RunFolder, new_attempt
from recon_ray.runs.jsonl import read_lines
from recon_ray.train.feed.resident import indexed_feed
from recon_ray.train.inference import Inference
from recon_ray.train.loop import fit
from recon_ray.train.out_of_memory import training_advice
from recon_ray.train.records import logger as record_logger
from recon_ray.train.runtime import LocalRuntime

logger = logging.getLogger(__name__)

#: Training rows that evaluation reads when the split is streamed because it does not fit memory.
STREAM_EVALUATION_ROWS = 4096


def train_here(job: TrainingJob) -> dict[str, float]:
    """Train in this process, without Ray; same order of samples and same files as ``shared``."""
    job.check(range(1, 2))
    config = job.config
    on_gpu = config.runtime.device == "cuda" or (
        config.runtime.device == "auto" and torch.cuda.is_available()
    )
    torch.set_num_threads(config.runtime.threads or cpu_count())
    columns = list(job.options.columns)
    split, options = job.train_split, job.options
    train = job.prepared.read(split, columns=columns, views=job.uses_views)
    train = train.slice(0, job.train_rows)
    views = [train.select(["sample_id", "views"])] if job.uses_views else None
    features = [[one.read().slice(0, job.train_rows)] for one in job.features]
    tables = {split.name: IndexedTable([train.select(columns)], views, features)}
    device = torch.device("cuda" if on_gpu else "cpu")
    train_feed = indexed_feed(
        tables[split.name],
        options,
        seed=config.run.seed,
        residency=placement(config.data)[1],
        device=device,
    )
    tables |= read_tables(job.evaluation_tables, columns)
    settings = with_precision(job.settings, on_gpu=on_gpu)
    runtime = LocalRuntime(
        job.folder,
        tables=tables,
        train_feed=train_feed,
        device=device,
        keep_checkpoints=config.train.keep_checkpoints,
        keep_every=config.train.keep_every_steps,
        inference=Inference(settings.precision),
    )
    with progress_bar(job.folder, job.total_steps):
        return fit(job.make_task(), runtime, settings)


def train_on_ray(
    job: TrainingJob, cluster: ClusterSection, plan: WorkerPlan, mode: Mode
) -> dict[str, float]:
    """Train on the workers of a Ray cluster that this process has joined.

    Raises:
        ReconError: What a worker met that the user can act on.
    """
    with progress_bar(job.folder, job.total_steps):
        return run_workers(train_loop, job, cluster, plan, mode)


def run_workers(
    loop: Callable[[dict[str, Any]], dict[str, Any]],
    job: TrainingJob,
    cluster: ClusterSection,
    plan: WorkerPlan,
    mode: Mode,
) -> dict[str, Any]:
    """Run a loop on the workers, with the job's data, and give rank 0's metrics.

    Args:
        loop: What a worker runs, see :func:`recon_ray.cluster.worker.train_loop`.
        job: What is trained on what.
        cluster: Where.
        plan: Resources of the workers.
        mode: Ingest mode.
        residency: Where the training rows lie, if they are not streamed.

    Raises:
        ReconError: What a worker met that the user can act on.
    """
    job.check(cluster.allowed_workers)
    _forget_snapshot(job.folder)
    with running_stop_actor() as actor:
        payload = _payload(job, plan, mode, actor)
        trainer = _trainer(loop, job, cluster, plan, mode, payload)
        free_earlier(job.folder)
        note_submission(job.folder, payload.attempt, trainer.train_run_context.run_id)
        with translate_failures(training_advice(job.config.train, world_size=plan.max_workers)):
            return dict(outcome_of(trainer.fit())["metrics"])


def _trainer(
    loop: Callable[[dict[str, Any]], dict[str, Any]],
    job: TrainingJob,
    cluster: ClusterSection,
    plan: WorkerPlan,
    mode: Mode,
    payload: WorkerPayload,
) -> TorchTrainer:
    trainer = InterruptibleTrainer(
        loop,
        train_loop_config={"payload": payload},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=scaling(cluster, plan),
        run_config=RunConfig(
            name="checkpoints",  # Ray's folder is <run>/checkpoints, where our store writes
            storage_path=job.folder.place,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[FailureNotes(job.folder.place)],
        ),
        datasets=training_datasets(job, mode),
        dataset_config=ray.train.DataConfig(datasets_to_split=["train", "resume"]),
    )
    logger.info(
        "training on %s workers (%g CPUs, %g GPUs each), data.mode=%s",
        plan.max_workers if not plan.is_elastic else f"{plan.min_workers} to {plan.max_workers}",
        plan.cpus_per_worker, plan.gpus_per_worker, mode,
    )  # fmt: skip
    return trainer


def _payload(
    job: TrainingJob,
    plan: WorkerPlan,
    mode: Mode,
    actor: Any,  # noqa: ANN401 - an actor's handle
) -> WorkerPayload:
    columns = job.options.columns
    streamed = mode in ("stream", "cached")
    if streamed and job.config.data.limit is not None:
        raise ConfigError("data.limit needs data.mode=shared; leave one of the two out")
    splits = [job.prepared.splits[name] for name in job.evaluation_splits]
    train = job.train_split
    if not streamed:
        splits.append(train)
    elif splits:
        splits.append(train.head(STREAM_EVALUATION_ROWS))
    with_views = {train.name} if job.uses_views and not streamed else set()
    settings = with_precision(job.settings, on_gpu=plan.gpus_per_worker > 0)
    return WorkerPayload(
        make_task=job.make_task,
        settings=settings,
        options=job.options,
        folder=job.folder.place,
        blocks=put_blocks(
            splits,
            columns,
            with_views=with_views,
            features={} if streamed else {train.name: job.features},
        )
        | put_tables(job.other_tables, columns),
        train_split=train.name,
        train_rows=train.rows if streamed else 0,
        attempt=new_attempt(),
        stop_actor=actor,
        directory=working_directory(),
        driver_ops=ops.backend(),
        threads=job.config.runtime.threads or plan.threads_per_worker,
        show_records=not shows_bar(job.folder),
    )


def scaling(cluster: ClusterSection, plan: WorkerPlan) -> ScalingConfig:
    """What Ray Train is asked to reserve."""
    resources = {"CPU": plan.cpus_per_worker}
    if plan.gpus_per_worker:
        resources["GPU"] = plan.gpus_per_worker
    workers: Any = (plan.min_workers, plan.max_workers) if plan.is_elastic else plan.max_workers
    return ScalingConfig(
        num_workers=workers,
        use_gpu=plan.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=cluster.resize_interval_seconds,
    )


def _forget_snapshot(folder: RunFolder) -> None:
    """Remove Ray Train's own list of checkpoints: a damaged one would stop the start.

    The store finds and verifies checkpoints by itself.
    """
    folder.remove("checkpoints/checkpoint_manager_snapshot.json")


POLL_SECONDS = 0.5


def shows_bar(folder: RunFolder) -> bool:
    """Return whether somebody sees a bar, and the driver sees the metrics as they are written."""
    return sys.stderr.isatty() and folder.is_local


@contextmanager
def progress_bar(folder: RunFolder, total_steps: int) -> Iterator[None]:
    """Show the steps, the loss and the speed while the run goes on; nothing without a terminal.

    Args:
        folder: The run's folder.
        total_steps: Optimizer steps of the whole run.
    """
    if not shows_bar(folder):
        yield
        return
    level = record_logger.level
    record_logger.setLevel(logging.WARNING)  # the bar shows them
    stopped = threading.Event()
    follower = threading.Thread(
        target=_follow, args=(folder.local / "metrics.jsonl", total_steps, stopped), daemon=True
    )
    follower.start()
    try:
        yield
    finally:
        stopped.set()
        follower.join()
        record_logger.setLevel(level)


def _follow(path: Path, total_steps: int, stopped: threading.Event) -> None:
    with tqdm(total=total_steps, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        while not stopped.wait(POLL_SECONDS):
            _show(bar, last_record(path))
        _show(bar, last_record(path))


def _show(bar: tqdm, record: dict[str, Any]) -> None:
    if record:
        bar.n = int(record["step"])
        rate = record["perf/samples_per_second"]
        bar.set_postfix_str(f"loss {record['train/loss']:.4f}, {rate:.0f} samples/s")


def last_record(path: Path) -> dict[str, Any]:
    """The newest whole training record of ``metrics.jsonl``; empty if there is none yet.

    Args:
        path: The file, which another process may be writing.
    """
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return {}
    for line in reversed(lines):
        for record in read_lines(line, key="train/loss"):
            return record
    return {}
