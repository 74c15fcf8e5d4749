"""What runs inside a Ray Train worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from recon_ray.cluster.prometheus import RunMetrics
from recon_ray.cluster.stop_watch import StopWatcher, end_together
from recon_ray.cluster.training_job import placement
from recon_ray.cluster.workarounds.reservations import was_submitted
from recon_ray.data.loading.batches import (
    Batch,
    BatchOptions,
    IndexedTable,
    ShuffleBuffer,
    make_batch,
)
from recon_ray.data.loading.stream import SplitBlocks, tables_of
from recon_ray.errors import ConfigError
from recon_ray.points import ops
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal
from recon_ray.runs.recorder import recording_to
from recon_ray.runs.storage import split
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.feed.resident import indexed_feed
from recon_ray.train.inference import Inference
from recon_ray.train.loop import fit
from recon_ray.train.records import logger as record_logger
from recon_ray.train.settings import FitSettings
from recon_ray.train.stop_request import StopRequest
from recon_ray.train.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerPayload:
    """Everything a worker is given; small and picklable.

    Args:
        make_task: Makes the task in the worker.
        settings: Settings of the loop.
        options: What a batch holds.
        folder: URI of the run's folder.
        blocks: Split name to blocks in the object store (mode ``shared``, and all evaluation).
        train_split: Name of the training split.
        train_rows: Its rows, when it is streamed.
        attempt: Name of this submission of the job.
        stop_actor: Actor that says when the run is to end.
        directory: The driver's, to which relative paths belong.
        driver_ops: Implementation of the point operations that the driver has chosen.
        threads: Threads of torch.
        show_records: Log a line a record; false where the driver shows a progress bar.
    """

    make_task: Callable[[], Task]
    settings: FitSettings
    options: BatchOptions
    folder: str
    blocks: Mapping[str, SplitBlocks]
    train_split: str
    train_rows: int
    attempt: str
    stop_actor: Any
    directory: str
    driver_ops: str
    threads: int
    show_records: bool


class StreamFeed:
    """Training samples from Ray Data; each row once an epoch, in an order that Ray deals out.

    After a restart in mid-epoch the dataset ``resume`` holds what the epoch has not used yet.
    """

    tracks_samples = True

    def __init__(
        self, options: BatchOptions, *, rows: int, capacity: int, seed: int, pinned: bool
    ) -> None:
        self.options = options
        self.rows = rows
        self.capacity = capacity
        self.seed = seed
        self.pinned = pinned

    def epoch(self, epoch: int, start_step: int, plan: BatchPlan, rank: int) -> Iterator[Batch]:
        """Return fixed-size shares of the epoch's rows, mixed in a buffer."""
        shard = ray.train.get_dataset_shard("resume" if start_step else "train")
        buffer = ShuffleBuffer(
            plan.per_worker,
            capacity=self.capacity,
            seed=(self.seed, epoch, start_step, rank),
            pinned=self.pinned,
        )
        for rows in buffer.mix(tables_of(shard)):
            yield make_batch(rows, self.options, epoch=epoch)

    def gather_on_device(self, batch: Batch) -> Batch:
        """Nothing was left out."""
        return batch


class RayRuntime:
    """The outside of the training loop in a Ray Train worker.

    Args:
        payload: What the driver gave.
    """

    def __init__(self, payload: WorkerPayload) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.folder = RunFolder(payload.folder)
        self.inference = Inference(payload.settings.precision)
        train = payload.settings.config.train
        self.store = CheckpointStore(
            self.folder.checkpoints, keep=train.keep_checkpoints, keep_every=train.keep_every_steps
        )
        self.attempt = payload.attempt
        self._watch = StopWatcher(payload.stop_actor, rank=self.rank)
        self._payload = payload
        self._tables: dict[str, IndexedTable] = {}

    def feed(self) -> TrainFeed:
        """Return the training samples."""
        payload, config = self._payload, self._payload.settings.config
        if payload.train_rows:
            return StreamFeed(
                payload.options.for_device(self.device),
                rows=payload.train_rows,
                capacity=config.data.shuffle_buffer,
                seed=config.run.seed,
                pinned=self.device.type == "cuda",
            )
        return indexed_feed(
            self.table(payload.train_split),
            payload.options,
            seed=config.run.seed,
            residency=placement(config.data)[1],
            device=self.device,
        )

    def table(self, split: str) -> IndexedTable:
        """Return all rows of a split for evaluation."""
        if split not in self._tables:
            is_trained = split == self._payload.train_split
            limit = self._payload.settings.config.data.limit if is_trained else None
            self._tables[split] = self._payload.blocks[split].fetch(limit=limit)
        return self._tables[split]

    def stop_request(self) -> StopRequest:
        """What the driver, or a node that will leave, asks for."""
        return self._watch.take()

    def reason(self) -> str:
        """Why there was a notice."""
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
    """Entry point of a worker.

    Args:
        config: ``{"payload": WorkerPayload}``.

    Returns:
        ``{"metrics": ...}`` or an error, see :func:`recon_ray.cluster.stop_watch.end_together`.
    """
    payload: WorkerPayload = config["payload"]
    rank = ray.train.get_context().get_world_rank()
    set_up_worker_log(rank, show_records=payload.show_records)
    torch.set_num_threads(payload.threads)
    work_in(payload.directory)

    def run() -> dict[str, Any]:
        use_ops(payload.settings.config.runtime.ops_backend, payload.driver_ops)
        check_storage(RunFolder(payload.folder), payload.attempt)
        runtime = RayRuntime(payload)
        with exported_metrics(runtime):
            return {"metrics": fit(payload.make_task(), runtime, payload.settings)}

    return end_together(payload.stop_actor, run)


def check_storage(folder: RunFolder, attempt: str) -> None:
    """Refuse a folder that is not the driver's: what is committed there would be lost.

    Args:
        folder: The run's folder, seen from here.
        attempt: What the driver has noted there.

    Raises:
        ConfigError: If the note is not there.
    """
    if not was_submitted(folder, attempt):
        node = ray.get_runtime_context().get_node_id()[:8]
        raise ConfigError(
            f"run.storage: {folder.place} on node {node} is not the folder that the driver writes "
            "to; give a folder that all nodes share, or an object store (s3://, gs://)"
        )


@contextmanager
def exported_metrics(runtime: RayRuntime) -> Iterator[None]:
    """Return the records of rank 0 to Ray's metrics meanwhile."""
    if runtime.rank != 0:
        yield
        return
    starts = [e for e in Journal(runtime.folder).events() if e["event"] == "trains"]
    _, name = split(runtime.folder.uri)
    with recording_to(RunMetrics(name, workers=runtime.world_size, restarts=len(starts))):
        yield


def work_in(directory: str) -> None:
    """Read relative paths as the driver does (Ray Train starts workers in a folder of its own).

    Args:
        directory: The driver's; on a node that has no such folder nothing is done.
    """
    with suppress(OSError):
        os.chdir(directory)


def use_ops(configured: ops.BackendName, driver_has: str) -> None:
    """Take the configured backend; the driver has announced it, so say only what differs."""
    logging.getLogger("recon_ray.points.ops").setLevel(logging.ERROR)
    ops.set_backend(configured)
    if ops.backend() != driver_has:
        logger.warning("point operations: %s here, %s in the driver", ops.backend(), driver_has)


def set_up_worker_log(rank: int, *, show_records: bool) -> None:
    """Rank 0 logs at INFO, the others at WARNING; Ray carries the lines to the driver."""
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("recon_ray").setLevel(level)
    record_logger.setLevel(level if show_records else logging.WARNING)
    logging.getLogger("recon_ray.teachers").setLevel(logging.WARNING)  # the driver told
