"""The loop of a training run in a Ray Train worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from recon_ray.cluster.datasets import (
    HELD_FRACTION,
    RayStream,
    SplitBlocks,
    StreamBlocks,
    put_stream,
)
from recon_ray.cluster.placement import WorkerPlan
from recon_ray.cluster.prometheus import RunMetrics
from recon_ray.cluster.stop_watch import StopWatcher, end_together
from recon_ray.cluster.training_job import TrainingJob
from recon_ray.config.sections.common import RuntimeSection
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.data.loading.shard_reader import ShardReader
from recon_ray.errors import ConfigError
from recon_ray.machine import working_directory
from recon_ray.points import ops
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal
from recon_ray.runs.recorder import recording_to
from recon_ray.storage import split
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.feed.resident import indexed_feed
from recon_ray.train.feed.streamed import RowSource, StreamFeed
from recon_ray.train.inference import Inference
from recon_ray.train.loop import fit
from recon_ray.train.records import logger as record_logger
from recon_ray.train.stop_request import StopRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSetup:
    """Settings that every worker takes over from the driver.

    Attributes:
        stop_actor: Handle from :func:`~recon_ray.cluster.stop_watch.running_stop_actor`.
        threads: Threads of torch.
        ops_backend: Implementation of the point operations, as configured.
        driver_ops: The one that the driver has resolved it to.
        directory: The driver's working directory, to which relative paths belong.
    """

    stop_actor: Any
    threads: int
    ops_backend: ops.BackendName
    driver_ops: str
    directory: str

    @classmethod
    def of_driver(
        cls,
        stop_actor: Any,  # noqa: ANN401 - an actor's handle
        runtime: RuntimeSection,
        plan: WorkerPlan,
    ) -> WorkerSetup:
        """Return those of this process."""
        threads = runtime.threads or plan.threads_per_worker
        return cls(stop_actor, threads, runtime.ops_backend, ops.backend(), working_directory())

    def run(
        self, work: Callable[[], dict[str, Any]], *, show_records: bool = False
    ) -> dict[str, Any]:
        """Do a worker's part with these settings; see :func:`end_together`."""
        set_up_worker_log(ray.train.get_context().get_world_rank(), show_records=show_records)
        torch.set_num_threads(self.threads)
        work_in(self.directory)

        def part() -> dict[str, Any]:
            use_ops(self.ops_backend, self.driver_ops)
            return work()

        return end_together(self.stop_actor, part)


@dataclass(frozen=True)
class WorkerPayload:
    """Everything a training worker is given; picklable.

    Attributes:
        job: What is trained on what; the precision is resolved.
        setup: Settings of the process.
        stream: How the training rows reach the workers; None in mode ``shared``.
        blocks: Split name to blocks in the object store (mode ``shared``, and all evaluation).
        attempt: Name of this submission of the job.
        show_records: Log a line a record; false where the driver shows a progress bar.
    """

    job: TrainingJob
    setup: WorkerSetup
    stream: StreamSource | None
    blocks: Mapping[str, SplitBlocks]
    attempt: str
    show_records: bool


@dataclass(frozen=True)
class StreamSource:
    """How the rows of a stream reach the workers.

    Attributes:
        reader: Reads the shards, and reports errors.
        row_bytes: Bytes of a row in memory.
        blocks: All rows in the object store (mode ``cached``); None to read the files.
    """

    reader: ShardReader
    row_bytes: int
    blocks: StreamBlocks | None

    @classmethod
    def of(cls, job: TrainingJob, *, keeps: bool) -> StreamSource:
        """Return that of a job, whose rows are read now or in every epoch."""
        files, reader, row_bytes, blocks = job.files, job.reader, job.row_bytes, None
        if keeps:
            seed = job.config.run.seed
            whole = replace(reader, cache=None)
            blocks = put_stream(files, job.shard_rows, whole, row_bytes=row_bytes, seed=seed)
        first = tuple(kind[0] for kind in files.kinds)
        return cls(reader.reporting(first), row_bytes, blocks)

    def feed(self, job: TrainingJob, device: torch.device) -> StreamFeed:
        """Return the training samples of this worker."""
        source: RowSource = self.blocks or self._tasks(job)
        return job.stream_feed(source, row_bytes=self.row_bytes, device=device)

    def _tasks(self, job: TrainingJob) -> RayStream:
        """Return the tasks of this worker, which share the CPUs that no worker has reserved."""
        context = ray.train.get_context()
        workers, each = context.get_world_size(), job.config.cluster.cpus_per_worker
        resources = ray.cluster_resources()
        free = resources.get("CPU", 1.0) - workers * each
        store = resources.get("object_store_memory", 0.0)
        # Where the shards of this worker's lanes are kept.
        node = None if self.reader.cache is None else ray.get_runtime_context().get_node_id()
        return RayStream(
            job.files,
            self.reader,
            self.row_bytes,
            name=f"{job.prepared.path.name}/{job.train_split.name}",
            workers=workers,
            cpus=max(1, int(free / workers)),
            node=node,
            copies=self._held_bytes(job) > HELD_FRACTION * store,
        )

    def _held_bytes(self, job: TrainingJob) -> float:
        """Return about what all workers hold of a stream at once, in bytes."""
        lanes, rows = job.stream_layout(self.row_bytes)
        return max(rows, (lanes + 1) * float(job.shard_rows.mean())) * self.row_bytes


class RayRuntime:
    """Runtime interface of the training loop in a Ray Train worker.

    Args:
        payload: What the driver gave.
    """

    def __init__(self, payload: WorkerPayload) -> None:
        job, context = payload.job, ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.folder = job.folder
        settings = job.settings
        self.inference = Inference.while_training(job.config.runtime, settings.precision)
        train = job.config.train
        self.store = CheckpointStore(
            job.folder.checkpoints, keep=train.keep_checkpoints, keep_every=train.keep_every_steps
        )
        self.attempt = payload.attempt
        self._watch = StopWatcher(payload.setup.stop_actor, rank=self.rank)
        self._payload = payload
        self._tables: dict[str, IndexedTable] = {}

    def feed(self) -> TrainFeed:
        """Return the training samples."""
        job = self._payload.job
        if self._payload.stream is not None:
            return self._payload.stream.feed(job, self.device)
        return indexed_feed(
            self.table(job.train_split.name),
            job.options,
            seed=job.config.run.seed,
            residency=job.residency,
            device=self.device,
        )

    def table(self, split: str) -> IndexedTable:
        """Return all rows of a split, of the training split those that are used."""
        if split not in self._tables:
            job = self._payload.job
            limit = job.config.data.limit if split == job.train_split.name else None
            self._tables[split] = self._payload.blocks[split].fetch(limit=limit)
        return self._tables[split]

    def stop_request(self) -> StopRequest:
        """Return the request of the driver, or that of a node which will leave."""
        return self._watch.take()

    def reason(self) -> str:
        """Return the reason of the last request."""
        return self._watch.reason

    def committed(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Register with Ray Train a checkpoint that rank 0 has stored."""
        checkpoint = ray.train.Checkpoint(self.store.path(name), filesystem=self.store.filesystem)
        numbers = {key: float(value) for key, value in metrics.items()}
        ray.train.report(
            {**numbers, "step": int(step)},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Train in a worker: its entry point.

    Args:
        config: ``{"payload": WorkerPayload}``.

    Returns:
        ``{"metrics": ...}`` or an error, see :func:`recon_ray.cluster.stop_watch.end_together`.
    """
    payload: WorkerPayload = config["payload"]
    job = payload.job

    def work() -> dict[str, Any]:
        check_storage(job.folder, payload.attempt)
        runtime = RayRuntime(payload)
        with exported_metrics(runtime):
            return {"metrics": fit(job.make_task(), runtime, job.settings)}

    return payload.setup.run(work, show_records=payload.show_records)


def check_storage(folder: RunFolder, attempt: str) -> None:
    """Refuse a folder that is not the driver's: checkpoints in it would be lost.

    Args:
        folder: The run's folder, seen from here.
        attempt: Submission that the driver has noted there.

    Raises:
        ConfigError: If the note is not there.
    """
    submitted = Journal(folder).recent("submitted")
    if not any(event.get("attempt") == attempt for event in submitted):
        node = ray.get_runtime_context().get_node_id()[:8]
        raise ConfigError(
            f"run.storage: {folder.place} on node {node} is not the folder that the driver writes "
            "to; give a folder that all nodes share, or an object store (s3://, gs://)"
        )


@contextmanager
def exported_metrics(runtime: RayRuntime) -> Iterator[None]:
    """Export the records of rank 0 as Ray's metrics meanwhile."""
    if runtime.rank != 0:
        yield
        return
    restarts = len(Journal(runtime.folder).events("trains"))
    _, name = split(runtime.folder.uri)
    with recording_to(RunMetrics(name, workers=runtime.world_size, restarts=restarts)):
        yield


def work_in(directory: str) -> None:
    """Read relative paths as the driver does (Ray Train starts workers in a folder of its own).

    Args:
        directory: The driver's; a node that has no such folder keeps its own.
    """
    with suppress(OSError):
        os.chdir(directory)


def use_ops(configured: ops.BackendName, driver_has: str) -> None:
    """Use the configured backend, and warn if it differs from that of the driver's log."""
    logging.getLogger("recon_ray.points.ops").setLevel(logging.ERROR)
    ops.set_backend(configured)
    if ops.backend() != driver_has:
        logger.warning("point operations: %s here, %s in the driver", ops.backend(), driver_has)


def set_up_worker_log(rank: int, *, show_records: bool) -> None:
    """Log at INFO on rank 0 and at WARNING elsewhere; Ray carries the lines to the driver."""
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("recon_ray").setLevel(level)
    record_logger.setLevel(level if show_records else logging.WARNING)
    logging.getLogger("recon_ray.teachers").setLevel(logging.WARNING)  # the driver has logged it
