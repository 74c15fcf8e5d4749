"""A task and a prepared set to data-parallel training: Ray Train workers, or this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from recon_ray import errors
from recon_ray.cluster.context import WorkerPlan
from recon_ray.cluster.failures import FailureNotes, explaining_failures
from recon_ray.cluster.notices import messenger
from recon_ray.cluster.progress import progress_bar, shows_bar
from recon_ray.cluster.reservations import free_earlier, note_submission
from recon_ray.cluster.worker import WorkerPayload, train_loop
from recon_ray.config.schema import ClusterSection, RuntimeSection
from recon_ray.data.batches import BatchOptions, IndexedTable
from recon_ray.data.prepared import PreparedSet, Split
from recon_ray.data.stream import (
    SplitBlocks,
    decoded_bytes,
    fits_object_store,
    put_blocks,
    reordered,
    stream_dataset,
)
from recon_ray.data.teacher_cache import StoredFeatures
from recon_ray.errors import CheckpointError, ConfigError, ReconError
from recon_ray.points import ops
from recon_ray.train.batching import BatchPlan, steps_per_epoch
from recon_ray.train.checkpoint import CheckpointStore
from recon_ray.train.inference import Inference
from recon_ray.train.loop import fit
from recon_ray.train.memory import training_advice
from recon_ray.train.residency import Residency, indexed_feed
from recon_ray.train.runtime import LocalRuntime, RunFolder, new_attempt
from recon_ray.train.settings import FitSettings
from recon_ray.train.task import Task

logger = logging.getLogger(__name__)

#: Training rows that evaluation reads when the split is streamed because it does not fit memory.
STREAM_EVALUATION_ROWS = 4096

Mode = Literal["auto", "stream", "cached", "shared"]


@dataclass(frozen=True)
class TrainingJob:
    """What is trained on what.

    Args:
        make_task: Makes the task; picklable.
        settings: Settings of the loop; its precision is set from the device here.
        options: What a batch holds.
        prepared: The prepared set.
        folder: The run's folder.
        evaluation_splits: Splits that the task evaluates on, besides ``train``.
        mode: Ingest mode.
        residency: Where the training rows lie, if they are not streamed.
        limit: Most training rows.
        shuffle_buffer: Rows mixed in memory when streaming.
        keep_checkpoints: Newest checkpoints that are kept.
        keep_every: Those after every so many steps are kept too.
        keeps_ledger: Whether the uses of every sample are counted.
        runtime: Device, precision, backend, threads.
        features: Stored features that are read beside the training rows.
        train_splits: Splits that are trained on, together.
        other_tables: Splits of other sets, by the name under which the task asks for them.
    """

    make_task: Callable[[], Task]
    settings: FitSettings
    options: BatchOptions
    prepared: PreparedSet
    folder: RunFolder
    evaluation_splits: tuple[str, ...]
    mode: Mode
    residency: Residency
    limit: int | None
    shuffle_buffer: int
    keep_checkpoints: int
    runtime: RuntimeSection
    keep_every: int | None = None
    keeps_ledger: bool = False
    features: tuple[StoredFeatures, ...] = ()
    train_splits: tuple[str, ...] = ("train",)
    other_tables: Mapping[str, tuple[PreparedSet, str]] = field(default_factory=dict)

    @property
    def train_split(self) -> Split:
        """The rows that are trained on."""
        return self.prepared.join(self.train_splits)

    @property
    def train_rows(self) -> int:
        """Rows of the training split that are used."""
        rows = self.train_split.rows
        return rows if self.limit is None else min(rows, self.limit)

    @property
    def evaluation_tables(self) -> dict[str, tuple[PreparedSet, str]]:
        """Every split that is evaluated on, by the name under which the task asks for it."""
        own = {name: (self.prepared, name) for name in self.evaluation_splits}
        return {**own, **self.other_tables}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        settings = self.settings
        whole = settings.total_epochs * (self.train_rows // settings.global_batch_size)
        return min(whole, settings.max_steps or whole)

    @property
    def uses_views(self) -> bool:
        """Whether the batches of training hold images."""
        return self.options.images is not None

    def check(self, workers: range) -> None:
        """Refuse what cannot run, before anything starts.

        Raises:
            ConfigError: If the data or the batch do not fit.
        """
        name = self.train_split.name
        steps_per_epoch(self.train_rows, self.settings.global_batch_size, split=name)
        for world_size in workers:
            BatchPlan(self.settings.global_batch_size, world_size)
        if self.uses_views and not self.prepared.has_views:
            raise ConfigError(
                f"teacher.image.name: {self.prepared.path} holds no images; set "
                "teacher.image.name=null, or prepare the set again with prepare.views=4"
            )


def with_precision(settings: FitSettings, precision: str, *, on_gpu: bool) -> FitSettings:
    """Resolve the precision of a training."""
    return replace(settings, precision=resolve_precision(precision, on_gpu=on_gpu))


def resolve_precision(precision: str, *, on_gpu: bool) -> Literal["fp32", "bf16"]:
    """Resolve ``auto``: bf16 on GPUs, fp32 on CPUs."""
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def train_here(job: TrainingJob) -> dict[str, float]:
    """Train in this process, without Ray; same order of samples and same files as ``shared``."""
    job.check(range(1, 2))
    on_gpu = job.runtime.device == "cuda" or (
        job.runtime.device == "auto" and torch.cuda.is_available()
    )
    torch.set_num_threads(job.runtime.threads or os.cpu_count() or 1)
    columns = list(job.options.columns)
    split, options = job.train_split, job.options
    train = job.prepared.read(split, columns=columns, views=job.uses_views)
    train = train.slice(0, job.train_rows)
    views = [train.select(["sample_id", "views"])] if job.uses_views else None
    features = [[read_features(one).slice(0, job.train_rows)] for one in job.features]
    tables = {split.name: IndexedTable([train.select(columns)], views, features)}
    device = torch.device("cuda" if on_gpu else "cpu")
    train_feed = indexed_feed(
        tables[split.name],
        options,
        seed=job.settings.seed,
        residency=job.residency,
        device=device,
    )
    tables |= read_tables(job.evaluation_tables, columns)
    settings = with_precision(job.settings, job.runtime.precision, on_gpu=on_gpu)
    runtime = LocalRuntime(
        job.folder,
        tables=tables,
        train_feed=train_feed,
        device=device,
        keep_checkpoints=job.keep_checkpoints,
        inference=Inference(settings.precision),
        keep_every=job.keep_every,
        keeps_ledger=job.keeps_ledger,
    )
    with progress_bar(job.folder, job.total_steps):
        return fit(job.make_task(), runtime, settings)


def read_features(stored: StoredFeatures) -> pa.Table:
    """Read the stored features of a whole split."""
    return pq.read_table(list(stored.files), columns=["sample_id", stored.column])


def read_tables(
    named: Mapping[str, tuple[PreparedSet, str]], columns: Sequence[str]
) -> dict[str, IndexedTable]:
    """Read splits of one or several sets into this process."""
    return {
        name: IndexedTable([prepared.read(split, columns=columns)])
        for name, (prepared, split) in named.items()
    }


def put_tables(
    named: Mapping[str, tuple[PreparedSet, str]], columns: Sequence[str]
) -> dict[str, SplitBlocks]:
    """Read splits of one or several sets into the object store."""
    blocks: dict[str, SplitBlocks] = {}
    for path in {prepared.path for prepared, _ in named.values()}:
        wanted = {name: (p, split) for name, (p, split) in named.items() if p.path == path}
        splits = [prepared.splits[split] for prepared, split in wanted.values()]
        stored = put_blocks(splits, columns, with_views=())
        blocks |= {name: stored[split] for name, (_, split) in wanted.items()}
    return blocks


def resolve_mode(job: TrainingJob) -> Mode:
    """``auto`` keeps the set in the object store where it fits, and streams it otherwise."""
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
    """Ingest mode of an epoch that is half done, which has to end as it was begun."""
    try:
        found = CheckpointStore(checkpoints).load_latest()
    except CheckpointError:
        return None  # the workers say what is damaged
    if found is None or not found.train["progress"].get("step_in_epoch"):
        return None
    return "stream" if found.train.get("tracks_samples") else "shared"


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
    with messenger() as actor:
        trainer = _trainer(loop, job, cluster, plan, mode, actor)
        free_earlier(job.folder)
        note_submission(job.folder, trainer.train_run_context.run_id)
        advice = training_advice(job.settings, world_size=plan.max_workers)
        with explaining_failures(advice):
            outcome: Mapping[str, Any] = trainer.fit().return_value
    if "error" in outcome:
        kind = getattr(errors, str(outcome["error"]), ReconError)
        raise kind(outcome["message"])
    return dict(outcome["metrics"])


def _trainer(
    loop: Callable[[dict[str, Any]], dict[str, Any]],
    job: TrainingJob,
    cluster: ClusterSection,
    plan: WorkerPlan,
    mode: Mode,
    actor: Any,  # noqa: ANN401 - an actor's handle
) -> TorchTrainer:
    trainer = TorchTrainer(
        loop,
        train_loop_config={"payload": _payload(job, plan, mode, actor)},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=scaling(cluster, plan),
        run_config=RunConfig(
            name="checkpoints",  # Ray's folder is <run>/checkpoints, where our store writes
            storage_path=job.folder.place,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[FailureNotes(job.folder.place)],
        ),
        datasets=_datasets(job, mode),
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
    if streamed and job.limit is not None:
        raise ConfigError("data.limit needs data.mode=shared; leave one of the two out")
    splits = [job.prepared.splits[name] for name in job.evaluation_splits]
    train = job.train_split
    if not streamed:
        splits.append(train)
    elif splits:
        splits.append(train.head(STREAM_EVALUATION_ROWS))
    with_views = {train.name} if job.uses_views and not streamed else set()
    settings = with_precision(job.settings, job.runtime.precision, on_gpu=plan.gpus_per_worker > 0)
    cores = (os.cpu_count() or 1) * plan.nodes
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
        limits={train.name: job.limit},
        train_split=train.name,
        train_rows=train.rows if streamed else 0,
        shuffle_buffer=job.shuffle_buffer,
        keep_checkpoints=job.keep_checkpoints,
        residency=job.residency,
        keep_every=job.keep_every,
        keeps_ledger=job.keeps_ledger,
        attempt=new_attempt(),
        messenger=actor,
        ops_backend=job.runtime.ops_backend,
        driver_ops=ops.backend(),
        threads=job.runtime.threads or max(1, cores // plan.max_workers),
        show_records=not shows_bar(job.folder),
    )


def _datasets(job: TrainingJob, mode: Mode) -> dict[str, Any]:
    """Nothing to stream in mode ``shared``, else the epochs and the rest of an unfinished one."""
    if mode == "shared":
        return {}
    source = _StreamSource(
        job.prepared,
        job.train_splits,
        job.options.columns,
        job.uses_views,
        job.features,
        job.settings.seed,
        job.folder.checkpoints,
    )
    train: Any = source.whole
    if mode == "cached":
        train = reordered(source.whole().materialize(), seed=source.order_seed())
    return {"train": train, "resume": source.rest}


@dataclass(frozen=True)
class _StreamSource:
    """Makes the datasets; Ray Train calls it again whenever the workers start anew."""

    prepared: PreparedSet
    train_splits: tuple[str, ...]
    columns: tuple[str, ...]
    views: bool
    features: tuple[StoredFeatures, ...]
    seed: int
    checkpoints: str

    def whole(self) -> ray.data.Dataset:
        """All rows of an epoch."""
        return self._dataset(used=None)

    def rest(self) -> ray.data.Dataset:
        """The rows that the unfinished epoch of the newest checkpoint has not used."""
        seen = self._progress().get("seen")
        return self._dataset(used=None if seen is None else np.asarray(seen))

    def order_seed(self) -> int:
        """Seed of the order from here on; without the epoch a restart repeats epoch 0's."""
        return self.seed + int(self._progress().get("epoch", 0))

    def _dataset(self, used: np.ndarray | None) -> ray.data.Dataset:
        return stream_dataset(
            self.prepared.join(self.train_splits),
            self.columns,
            views=self.views,
            features=self.features,
            seed=self.order_seed(),
            used=used,
        )

    def _progress(self) -> Mapping[str, Any]:
        found = CheckpointStore(self.checkpoints).load_latest()
        return {} if found is None else found.train["progress"]


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
