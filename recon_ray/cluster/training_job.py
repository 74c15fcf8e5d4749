"""A training job: what is trained on what, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from recon_ray.config.sections.data import SetSection
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import BatchOptions
from recon_ray.data.loading.stream import decoded_bytes, fits_object_store
from recon_ray.errors import CheckpointError
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.train.feed.batching import BatchPlan, steps_per_epoch
from recon_ray.train.feed.resident import Residency
from recon_ray.train.settings import FitSettings
from recon_ray.train.task import Task

Mode = Literal["auto", "stream", "cached", "shared"]


@dataclass(frozen=True)
class TrainingJob:
    """A task, its data, and how the rows reach the workers; picklable.

    Args:
        make_task: Makes the task; picklable.
        settings: The configuration and what the job adds to it; its precision is resolved here.
        options: What a batch holds.
        prepared: The prepared set.
        folder: The run's folder.
        evaluation_splits: Splits that the task evaluates on, besides the training split.
        features: Stored features that are read beside the training rows.
        other_tables: Splits of other sets, by the name under which the task reads them.
        split_counts: Counts of what the measured splits share with the trained ones.
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
    def evaluation_tables(self) -> dict[str, tuple[PreparedSet, str]]:
        """Return every split that is evaluated on, by the name under which the task reads it."""
        own = {name: (self.prepared, name) for name in self.evaluation_splits}
        return {**own, **self.other_tables}

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        size = self.config.train.global_batch_size
        return self.settings.total_steps(self.train_rows // size)

    @property
    def uses_views(self) -> bool:
        """Return whether the batches of training hold images."""
        return self.options.images is not None

    def check(self, workers: range) -> None:
        """Refuse a batch that does not fit the data or the workers, before anything starts.

        Args:
            workers: Every number of workers that may occur.

        Raises:
            ConfigError: If it does not fit.
        """
        size = self.config.train.global_batch_size
        steps_per_epoch(self.train_rows, size, split=self.train_split.name)
        for world_size in workers:
            BatchPlan(size, world_size)


def _placement(data: SetSection) -> tuple[Mode, Residency]:
    """Return how rows reach the workers, and where these keep them."""
    if data.residency == "stream":
        return ("stream" if data.mode == "auto" else data.mode), "host"
    if data.residency == "auto":
        return data.mode, "auto"
    return "shared", "device" if data.residency == "device" else "host"


def with_precision(job: TrainingJob, *, on_gpu: bool) -> TrainingJob:
    """Return the job with its precision resolved."""
    precision = resolve_precision(job.config.precision, on_gpu=on_gpu)
    return replace(job, settings=replace(job.settings, precision=precision))


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
    if found is None or not found.train["progress"].get("step_in_epoch"):
        return None
    return "stream" if found.train.get("tracks_samples") else "shared"
