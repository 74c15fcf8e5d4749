"""A training job: what is trained on what, and how it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from recon_ray.cluster.datasets import decoded_bytes, fits_object_store
from recon_ray.config.sections.data import SetSection
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import BatchOptions
from recon_ray.data.loading.shard_cache import ShardCache
from recon_ray.data.loading.shard_reader import ShardReader, SplitFiles
from recon_ray.data.loading.stream_order import StreamLayout
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.train.feed.batching import BatchPlan, steps_per_epoch
from recon_ray.train.feed.resident import Residency
from recon_ray.train.feed.streamed import RowSource, StreamFeed
from recon_ray.train.settings import FitSettings
from recon_ray.train.state import Progress, SampleOrder, was_streamed
from recon_ray.train.task import Task

Mode = Literal["auto", "stream", "cached", "shared"]


@dataclass(frozen=True)
class TrainingJob:
    """A task, its data, and how the rows reach the workers; picklable.

    Args:
        make_task: Makes the task; picklable.
        settings: The configuration and what the job adds to it; see :func:`resolved`.
        options: What a batch holds.
        prepared: The prepared set.
        folder: The run's folder.
        evaluation_splits: Splits that the task evaluates on, besides the training split.
        features: Stored features that are read beside the training rows.
        other_tables: Splits of other sets, by the name under which the task reads them.
        split_counts: Counts of what the measured splits share with the trained ones.
        smallest_batch: Shapes of which the model's batch norms need statistics at least.
    """

    make_task: Callable[[], Task]
    settings: FitSettings
    options: BatchOptions
    prepared: PreparedSet
    folder: RunFolder
    evaluation_splits: tuple[str, ...] = ()
    features: tuple[StoredFeatures, ...] = ()
    other_tables: Mapping[str, tuple[PreparedSet, str]] = field(default_factory=dict)
    split_counts: Mapping[str, Any] = field(default_factory=dict)
    smallest_batch: int = 1

    @property
    def config(self) -> TrainingConfig:
        """The configuration."""
        return self.settings.config

    @property
    def mode(self) -> Mode:
        """Ingest mode, as configured."""
        return _placement(self.config.data)[0]

    @property
    def residency(self) -> Residency:
        """Place of the training rows in a worker, if they are not streamed."""
        return _placement(self.config.data)[1]

    @property
    def train_split(self) -> Split:
        """Return the rows that are trained on."""
        return self.prepared.join(self.config.data.train_splits)

    @property
    def train_rows(self) -> int:
        """Return the number of rows of the training split that are used."""
        rows = self.train_split.rows
        return min(rows, self.config.data.limit or rows)

    @property
    def sample_order(self) -> SampleOrder:
        """Return what fixes the order of the samples."""
        rows, config = self.train_rows, self.config
        episode = getattr(config.data, "episode", None)
        content = [self.prepared.manifest_hash, self.train_split.name, rows, episode]
        identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return SampleOrder(rows, identity, config.run.seed, config.train.global_batch_size)

    @property
    def evaluation_tables(self) -> dict[str, tuple[PreparedSet, str]]:
        """Return every split that is evaluated on, by the name under which the task reads it."""
        own = {name: (self.prepared, name) for name in self.evaluation_splits}
        return {**own, **self.other_tables}

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        return self.settings.total_steps(self.sample_order.steps_per_epoch)

    @property
    def uses_views(self) -> bool:
        """Return whether the batches of training hold images."""
        return self.options.images is not None

    @property
    def shard_rows(self) -> np.ndarray:
        """Return the rows of the shards that are trained on: (S,)."""
        return np.asarray(self.train_split.shard_rows)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a training row in memory."""
        split = self.train_split
        size = decoded_bytes(self.prepared, split, views=self.uses_views, features=self.features)
        return max(1, size // max(split.rows, 1))

    @property
    def files(self) -> SplitFiles:
        """Return the files that are read together, those of :attr:`reader`."""
        split = self.train_split
        views = (split.views,) if self.uses_views else ()
        return SplitFiles((split.geometry, *(one.files for one in self.features), *views))

    @property
    def reader(self) -> ShardReader:
        """Return the reader of a stream."""
        data, views = self.config.data, ("views",) if self.uses_views else ()
        beside = (*(one.column for one in self.features), *views)
        cache = None
        if data.cache_bytes is not None:
            cache = ShardCache(data.cache_folder, data.cache_bytes)
        return ShardReader(self.options.columns, beside, cache)

    def stream_layout(self, row_bytes: int) -> StreamLayout:
        """Return what fixes the order of a stream besides set and seed."""
        buffer = self.config.data.shuffle_buffer
        return StreamLayout.of(self.shard_rows, row_bytes=row_bytes, group_rows=buffer)

    def stream_feed(self, source: RowSource, *, row_bytes: int, device: torch.device) -> StreamFeed:
        """Return the training samples from a source that is read as they are needed.

        Args:
            source: Reads them.
            row_bytes: :attr:`row_bytes`.
            device: The worker's device.
        """
        files, shard_rows = self.train_split.geometry, self.shard_rows
        return StreamFeed(
            shard_rows,
            self.options.for_device(device),
            source,
            seed=self.config.run.seed,
            layout=self.stream_layout(row_bytes),
            epochs=self.settings.total_epochs,
            sample_ids=lambda n: read_table(files[n], ["sample_id"])["sample_id"].to_numpy(),
            pinned=device.type == "cuda",
        )

    def check(self, workers: range) -> None:
        """Refuse a batch that does not fit the data or the workers, before anything starts.

        Args:
            workers: Every number of workers that may occur.

        Raises:
            ConfigError: If it does not fit.
        """
        train = self.config.train
        size, micro = train.global_batch_size, train.micro_batch_size
        for world_size in workers:
            plan = BatchPlan(size, world_size, micro)
            if plan.smallest_part == 0:
                raise ConfigError(
                    f"train.micro_batch_size={micro}: some of {world_size} workers have one shape "
                    "less than others, and as many micro batches; choose a larger one"
                )
            together = world_size if train.sync_batch_norm else 1
            if together * plan.smallest_part < self.smallest_batch:
                option = "global" if micro is None else "micro"
                parts, share = plan.micro_batches, size // world_size
                cut = "" if parts == 1 else f", {share} in {parts} parts,"
                raise ConfigError(
                    f"train.{option}_batch_size={micro or size}: a worker{cut} would train on one "
                    "shape at a time, of which batch norm has no statistics; choose a larger one"
                )
        steps_per_epoch(self.train_rows, size, split=self.train_split.name)


def _placement(data: SetSection) -> tuple[Mode, Residency]:
    """Return how rows reach the workers, and where these keep them."""
    if data.residency == "stream":
        return ("stream" if data.mode == "auto" else data.mode), "host"
    if data.residency == "auto":
        return data.mode, "auto"
    return "shared", "device" if data.residency == "device" else "host"


def resolved(job: TrainingJob, *, on_gpu: bool) -> TrainingJob:
    """Return the job with what its settings leave open: the precision, and what is trained on."""
    precision = resolve_precision(job.config.precision, on_gpu=on_gpu)
    training_set = job.sample_order.training_set
    return replace(
        job, settings=replace(job.settings, precision=precision, training_set=training_set)
    )


def resolve_precision(precision: str, *, on_gpu: bool) -> Literal["fp32", "bf16"]:
    """Resolve ``auto``: bf16 on GPUs, fp32 on CPUs."""
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def resolve_mode(job: TrainingJob) -> Mode:
    """Resolve ``auto``: ``shared`` where the set fits the object store, else ``stream``."""
    if job.mode != "auto":
        return job.mode
    begun = _mode_of_epoch(job.folder.checkpoints)
    if begun is not None:
        return begun
    train, views = job.train_split, job.uses_views
    size = decoded_bytes(job.prepared, train, views=views, features=job.features)
    for prepared, name in job.evaluation_tables.values():
        size += decoded_bytes(prepared, prepared.splits[name], views=False)
    return "shared" if fits_object_store(size) else "stream"


def _mode_of_epoch(checkpoints: str) -> Mode | None:
    """Return the ingest mode of an unfinished epoch, which has to end as it was begun."""
    try:
        found = CheckpointStore(checkpoints).load_latest()
    except CheckpointError:
        return None  # the workers report what is damaged
    if found is None or not Progress.of(found.train).samples_in_epoch:
        return None
    return "stream" if was_streamed(found.train, now=False) else "shared"
