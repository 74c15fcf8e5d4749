"""The driver of ``jobs/embed.py``."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recon_ray.cluster.encode_pool import Encode, encode_here, encode_on_ray
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.training_job import resolve_precision
from recon_ray.cluster.worker import use_ops as use_driver_ops
from recon_ray.data.format.files import remove_temporaries
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.runners import ShardProgress
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count
from recon_ray.points import ops
from recon_ray.runs.storage import join
from recon_ray.tasks.classify.classifier_checks import check_patches, check_points, load_start
from recon_ray.tasks.config_checks import check_here, find_set, use_ops
from recon_ray.tasks.embed.config import EmbedConfig
from recon_ray.tasks.embed.encode import (
    Encoder,
    ShardEmbedder,
    feature_widths,
    load_encoder,
    model_hash,
)
from recon_ray.tasks.embed.parts import EmbedTask, file_tasks, set_tasks
from recon_ray.tasks.feature_extraction import PointChoice
from recon_ray.tasks.point_pipeline import pipeline_of
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import open_run
from recon_ray.train.inference import Inference

logger = logging.getLogger(__name__)

#: Folder of the parts in the run's folder.
EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class EmbedWorker:
    """What a worker needs; small and picklable.

    Attributes:
        weights: Place of the weights.
        sizes: Constructor arguments that a foreign file does not tell.
        model: Hash of the model.
        inference: How it runs.
        batch_size: Shapes encoded at once.
        threads: Threads of torch.
        ops_backend: Implementation of the point operations, as configured.
        driver_ops: The one that the driver has found for that.
    """

    weights: str
    sizes: dict[str, Any]
    model: str
    inference: Inference
    batch_size: int
    threads: int
    ops_backend: ops.BackendName
    driver_ops: str

    def start(self, device: str) -> Callable[[EmbedTask], dict[str, Any]]:
        """Load the model on a device."""
        use_driver_ops(self.ops_backend, self.driver_ops)
        return ShardEmbedder(
            self.weights,
            self.sizes,
            self.model,
            device=torch.device(device),
            inference=self.inference,
            batch_size=self.batch_size,
        )


def embed(job: Job[EmbedConfig]) -> JobResult:
    """Encode all shapes, a part of Parquet a shard, and write ``result.json``."""
    config = job.config
    check_here(config)
    use_ops(config)
    prepared = None if config.data.path is None else find_set("data.path", Path(config.data.path))
    sizes = config.model.model_dump()
    place, _ = load_start(config.init_from, **sizes)
    assert place is not None
    model = load_encoder(place, sizes)
    _check(config, prepared, model)
    name = model_hash(model)
    if prepared is not None and config.data.verify:
        prepared.verify_hashes()
    if job.dry_run:
        tasks = _plan(config, prepared, name, folder="")
        shapes = sum(task.rows.count for task in tasks)
        return JobResult(f"dry run: {shapes:,} shapes in {len(tasks)} parts, nothing is written")
    run = open_run("embed", config, label=_label(prepared), resume=config.resume)
    folder = join(run.folder.place, EMBEDDINGS)
    tasks = _plan(config, prepared, name, folder)
    run.begin()
    todo = [task for task in tasks if not task.is_finished()]
    done = len(tasks) - len(todo)
    logger.info("%s: %d parts, %d of them there already", folder, len(tasks), done)
    started = time.monotonic()
    try:
        _encode(config, place, name, todo)
    finally:
        if run.folder.is_local:
            remove_temporaries(run.folder.local / EMBEDDINGS, {task.split for task in tasks})
    encoded = sum(task.rows.count for task in todo)
    metrics = {
        "shapes": float(sum(task.rows.count for task in tasks)),
        "shapes_encoded": float(encoded),
        "shapes_per_second": encoded / max(time.monotonic() - started, 1e-9),
    }
    counted = Counter[str]()
    for task in tasks:
        counted[task.split] += task.rows.count
    widths = feature_widths(model)
    return run.finish(
        metrics,
        table=_summary(counted, widths, folder),
        selection="all shapes of the splits and files",
        counts={"shapes": dict(counted), "parts": len(tasks), "parts_written": len(todo)},
        columns=widths,
        embeddings=folder,
        init_from=config.init_from,
        data=None if prepared is None else str(prepared.path),
    )


def _label(prepared: PreparedSet | None) -> str:
    return "files" if prepared is None else prepared.path.name


def _check(config: EmbedConfig, prepared: PreparedSet | None, model: Encoder) -> None:
    """Refuse what the model or the set does not have.

    Raises:
        ConfigError: Naming the option.
    """
    check_patches(config.data.num_points, model)
    if prepared is None:
        return
    check_points(prepared, config.data.num_points, follows_reference=False)
    for split in config.embed.splits or ():
        if split not in prepared.splits:
            raise ConfigError(
                f"embed.splits={split}: {prepared.path} has the splits "
                f"{', '.join(prepared.splits)}; choose of them"
            )


def _plan(
    config: EmbedConfig, prepared: PreparedSet | None, model: str, folder: str
) -> list[EmbedTask]:
    tasks: list[EmbedTask] = []
    if prepared is not None:
        splits = config.embed.splits or tuple(prepared.splits)
        choice = _choice(config, prepared.manifest.get("card"))
        limit = config.data.limit
        tasks += set_tasks(folder, prepared, splits, choice, model=model, limit=limit)
    axis, seed = config.up_axis, config.run.seed
    choice = _choice(config, None)
    tasks += file_tasks(folder, config.files, choice, model=model, up_axis=axis, seed=seed)
    return tasks


def _choice(config: EmbedConfig, card: dict[str, Any] | None) -> PointChoice:
    """The farthest points of each cloud, as the probes read them."""
    pipeline = pipeline_of(
        card,
        num_points=config.data.num_points,
        follows_reference=config.protocol == "reference",
        normalize=config.data.normalize,
    )
    return pipeline.test()


def _encode(config: EmbedConfig, place: str, model: str, todo: Sequence[EmbedTask]) -> None:
    """Write the parts."""
    if not todo:
        return
    shapes = sum(task.rows.count for task in todo)
    progress = ShardProgress("embed", shards=len(todo), units=shapes, unit="shapes")
    with _encoder(config, place, model) as encode:
        for record in encode(todo):
            progress.add(record["shapes"])


@contextmanager
def _encoder(config: EmbedConfig, place: str, model: str) -> Iterator[Encode]:
    """The workers of the job, or this process."""
    if config.cluster.workers == 0:
        on_gpu = config.runtime.device != "cpu" and torch.cuda.is_available()
        worker = _worker(config, place, model, threads=cpu_count(), on_gpu=on_gpu)
        yield encode_here(worker, on_gpu=on_gpu)
        return
    with ray_session(config.cluster):
        plan = plan_workers(
            config.cluster, reads_during_training=False, device=config.runtime.device
        )
        on_gpu, threads = plan.gpus_per_worker > 0, plan.threads_per_worker
        worker = _worker(config, place, model, threads=threads, on_gpu=on_gpu)
        yield encode_on_ray(worker, config.cluster, plan)


def _worker(
    config: EmbedConfig, place: str, model: str, *, threads: int, on_gpu: bool
) -> EmbedWorker:
    runtime = config.runtime
    precision = resolve_precision(runtime.precision, on_gpu=on_gpu)
    return EmbedWorker(
        place,
        config.model.model_dump(),
        model,
        Inference(precision, runtime.compile, runtime.cuda_graph == "auto"),
        config.embed.batch_size,
        runtime.threads or threads,
        runtime.ops_backend,
        ops.backend(),
    )


def _summary(counted: Counter[str], widths: dict[str, int], folder: str) -> str:
    lines = [f"{'split':28}{'shapes':>12}"]
    lines += [f"{split:28}{count:>12,}" for split, count in counted.items()]
    columns = ", ".join(f"{name} ({width})" for name, width in widths.items())
    return "\n".join([*lines, f"columns: {columns}", folder])
