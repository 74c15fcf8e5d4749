"""Data-parallel training of a job: on the workers of Ray Train, or in this process."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from tqdm import tqdm

from recon_ray.cluster.datasets import put_blocks, put_tables, read_tables
from recon_ray.cluster.failures import FailureNotes, translate_failures
from recon_ray.cluster.placement import WorkerPlan
from recon_ray.cluster.stop_watch import outcome_of, running_stop_actor
from recon_ray.cluster.training_job import Mode, TrainingJob, resolved
from recon_ray.cluster.workarounds.interrupts import InterruptibleTrainer
from recon_ray.cluster.workarounds.reservations import release_reservation
from recon_ray.cluster.workarounds.undocumented import remove_snapshot
from recon_ray.cluster.worker import StreamSource, WorkerPayload, WorkerSetup, train_loop
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count
from recon_ray.runs.folder import RunFolder, new_attempt
from recon_ray.runs.journal import Journal
from recon_ray.runs.jsonl import read_end, read_lines
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.feed.resident import indexed_feed
from recon_ray.train.feed.streamed import ReadHere
from recon_ray.train.inference import Inference
from recon_ray.train.loop import fit
from recon_ray.train.out_of_memory import training_advice
from recon_ray.train.records import logger as record_logger
from recon_ray.train.runtime import LocalRuntime

logger = logging.getLogger(__name__)

#: Training rows that evaluation reads when the split is streamed because it does not fit memory.
STREAM_EVALUATION_ROWS = 4096


def train_here(job: TrainingJob) -> dict[str, float]:
    """Train in this process, without Ray: the same order of samples and the same files."""
    job.check(range(1, 2))
    device_option = job.config.runtime.device
    on_gpu = device_option == "cuda" or (device_option == "auto" and torch.cuda.is_available())
    job = resolved(job, on_gpu=on_gpu)
    torch.set_num_threads(job.config.runtime.threads or cpu_count())
    split, options, device = job.train_split, job.options, torch.device("cuda" if on_gpu else "cpu")
    columns = list(options.columns)
    feed: TrainFeed
    if job.mode in ("stream", "cached") and job.config.data.limit is None:
        head = split.head(STREAM_EVALUATION_ROWS)
        table = IndexedTable([job.prepared.read(head, columns=columns)])
        source = ReadHere(job.files, job.reader)
        feed = job.stream_feed(source, row_bytes=job.row_bytes, device=device)
    else:
        train = job.prepared.read(split, columns=columns, views=job.uses_views)
        train = train.slice(0, job.train_rows)
        views = [train.select(["sample_id", "views"])] if job.uses_views else None
        features = [[one.read().slice(0, job.train_rows)] for one in job.features]
        table = IndexedTable([train.select(columns)], views, features)
        feed = indexed_feed(
            table, options, seed=job.config.run.seed, residency=job.residency, device=device
        )
    runtime = LocalRuntime(
        job.folder,
        tables={split.name: table} | read_tables(job.evaluation_tables, columns),
        train_feed=feed,
        device=device,
        keep_checkpoints=job.config.train.keep_checkpoints,
        keep_every=job.config.train.keep_every_steps,
        inference=Inference.while_training(job.config.runtime, job.settings.precision),
    )
    with progress_bar(job.folder, job.total_steps):
        return fit(job.make_task(), runtime, job.settings)


def train_on_ray(
    job: TrainingJob, cluster: ClusterSection, plan: WorkerPlan, mode: Mode
) -> dict[str, float]:
    """Train on the workers of a Ray cluster that this process has joined.

    Raises:
        ReconError: An error of a worker that the user can act on.
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
    """Run a loop on the workers, with the job's data, and return rank 0's metrics.

    Args:
        loop: Entry point of a worker, see :func:`recon_ray.cluster.worker.train_loop`.
        job: What is trained on what.
        cluster: Its section of the configuration.
        plan: Resources of the workers.
        mode: Ingest mode, resolved.

    Raises:
        ReconError: An error of a worker that the user can act on.
    """
    job.check(cluster.allowed_workers)
    remove_snapshot(job.folder)
    journal = Journal(job.folder)
    with running_stop_actor() as actor:
        payload = _payload(job, plan, mode, actor)
        trainer = make_trainer(
            loop, payload, cluster, plan,
            name="checkpoints",  # Ray's folder is <run>/checkpoints, where our store writes
            storage=job.folder.place,
            notes=FailureNotes(job.folder.place),
            datasets={},  # every worker reads its own, see RayStream
        )  # fmt: skip
        place = job.folder.place
        for earlier in journal.events("submitted")[-1:]:
            if earlier.get("place", place) == place:  # else that of a run this one is a copy of
                release_reservation(earlier.get("run_id", ""))
        run_id = trainer.train_run_context.run_id
        journal.add("submitted", attempt=payload.attempt, run_id=run_id, place=place)
        logger.info(
            "training on %s workers (%g CPUs, %g GPUs each), data.mode=%s",
            f"{plan.min_workers} to {plan.max_workers}" if plan.is_elastic else plan.max_workers,
            plan.cpus_per_worker, plan.gpus_per_worker, mode,
        )  # fmt: skip
        with translate_failures(training_advice(job.config.train, world_size=plan.max_workers)):
            return dict(outcome_of(trainer.fit())["metrics"])


def make_trainer(
    loop: Callable[[dict[str, Any]], dict[str, Any]],
    payload: object,
    cluster: ClusterSection,
    plan: WorkerPlan,
    *,
    name: str,
    storage: str,
    notes: FailureNotes,
    datasets: dict[str, Any],
) -> InterruptibleTrainer:
    """Return Ray Train's trainer for a loop, which is called with ``{"payload": payload}``.

    Args:
        loop: Entry point of a worker.
        payload: What the workers are given.
        cluster: Its section of the configuration.
        plan: Resources of the workers.
        name: Ray Train's own folder below ``storage``.
        storage: Folder or URI of the run.
        notes: Notes failures of workers.
        datasets: Datasets that are split among the workers.
    """
    resources = {"CPU": plan.cpus_per_worker}
    if plan.gpus_per_worker:
        resources["GPU"] = plan.gpus_per_worker
    workers: Any = (plan.min_workers, plan.max_workers) if plan.is_elastic else plan.max_workers
    return InterruptibleTrainer(
        loop,
        train_loop_config={"payload": payload},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=plan.gpus_per_worker > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=cluster.resize_interval_seconds,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[notes],
        ),
        datasets=datasets,
    )


def _payload(
    job: TrainingJob,
    plan: WorkerPlan,
    mode: Mode,
    actor: Any,  # noqa: ANN401 - an actor's handle
) -> WorkerPayload:
    is_streamed = mode != "shared"
    if is_streamed and job.config.data.limit is not None:
        raise ConfigError("data.limit needs data.mode=shared; leave one of the two out")
    train, columns = job.train_split, job.options.columns
    splits = [job.prepared.splits[name] for name in job.evaluation_splits]
    if not is_streamed:
        splits.append(train)
    elif splits:
        splits.append(train.head(STREAM_EVALUATION_ROWS))
    blocks = put_blocks(
        splits,
        columns,
        with_views={train.name} if job.uses_views and not is_streamed else set(),
        features={} if is_streamed else {train.name: job.features},
    )
    stream = None
    if is_streamed:
        stream = StreamSource.of(job, keeps=mode == "cached")
    return WorkerPayload(
        job=resolved(job, on_gpu=plan.gpus_per_worker > 0),
        setup=WorkerSetup.of_driver(actor, job.config.runtime, plan),
        stream=stream,
        blocks=blocks | put_tables(job.other_tables, columns),
        attempt=new_attempt(),
        show_records=not shows_bar(job.folder),
    )


POLL_SECONDS = 0.5


def shows_bar(folder: RunFolder) -> bool:
    """Return whether there is a terminal, and this process sees the metrics as they are written."""
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
    level, stopped = record_logger.level, threading.Event()
    record_logger.setLevel(logging.WARNING)  # the bar shows them
    arguments = (folder.local / "metrics.jsonl", total_steps, stopped)
    follower = threading.Thread(target=_follow, args=arguments, daemon=True)
    follower.start()
    try:
        yield
    finally:
        stopped.set()
        follower.join()
        record_logger.setLevel(level)


def _follow(path: Path, total_steps: int, stopped: threading.Event) -> None:
    with tqdm(total=total_steps, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        ended = False
        while not ended:
            ended = stopped.wait(POLL_SECONDS)
            if record := last_record(path):
                bar.n = int(record["step"])
                loss, rate = record["train/loss"], record["perf/samples_per_second"]
                bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} samples/s")


def last_record(path: Path) -> dict[str, Any]:
    """Return the newest whole training record of ``metrics.jsonl``; empty before the first one.

    Args:
        path: The file, to which another process may be writing.
    """
    try:
        lines = read_end(path).split("\n")
    except OSError:
        return {}
    return next((r for line in reversed(lines) for r in read_lines(line, key="train/loss")), {})
