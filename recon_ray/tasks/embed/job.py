"""Main function of ``jobs/embed.py``: all shapes of a set or of files, one part a shard."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Any

from recon_ray.cluster.encode_pool import EncodePool
from recon_ray.cluster.training_job import resolve_precision
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.points import ops
from recon_ray.storage import join
from recon_ray.tasks.config_checks import (
    check_here,
    check_patches,
    check_points,
    check_split,
    find_set,
    use_ops,
)
from recon_ray.tasks.embed.config import EmbedConfig
from recon_ray.tasks.embed.encode import (
    EmbedWorker,
    Encoder,
    feature_widths,
    load_encoder,
    model_hash,
)
from recon_ray.tasks.embed.parts import EmbedTask, file_parts, set_parts
from recon_ray.tasks.point_pipeline import evaluated_clouds
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import open_run
from recon_ray.tasks.shard_encoding import encode_shards
from recon_ray.tasks.start_weights import describe_weights, open_start
from recon_ray.train.inference import Inference
from recon_ray.weights.weight_files import LoadedWeights

#: Folder of the parts in the run's folder.
EMBEDDINGS = "embeddings"


def embed(job: Job[EmbedConfig]) -> JobResult:
    """Encode all shapes, a part of Parquet a shard, and write ``result.json``."""
    check_here(job.config)
    use_ops(job.config)
    config, place, weights = open_start(job.config)
    prepared = None if config.data.path is None else find_set("data.path", config.data.path)
    model = load_encoder(place, weights.sizes)
    _check(config, prepared, model)
    name, widths = model_hash(model), feature_widths(model)
    if prepared is not None:
        prepared = prepared.checked(config.data.verify)
    if job.dry_run:
        tasks = _plan(config, prepared, weights, name, folder="")
        shapes = sum(task.units for task in tasks)
        return JobResult(f"dry run: {shapes:,} shapes in {len(tasks)} parts, nothing is written")
    label = "files" if prepared is None else prepared.path.name
    run = open_run("embed", config, label=label, resume=config.resume)
    folder = join(run.folder.place, EMBEDDINGS)
    tasks = _plan(config, prepared, weights, name, folder)
    run.begin()
    started = time.monotonic()
    with EncodePool(config.cluster, config.runtime.device) as pool:
        worker = partial(_worker, config, place, weights.sizes, name, pool)
        encoded = encode_shards("embed", tasks, pool, worker, unit="shapes")
    seconds, shapes = time.monotonic() - started, sum(task.units for task in encoded)
    shapes_of = Counter[str]()
    for task in tasks:
        shapes_of[task.split] += task.units
    return run.finish(
        {
            "shapes": float(shapes_of.total()),
            "shapes_encoded": float(shapes),
            "shapes_per_second": shapes / max(seconds, 1e-9),
        },
        table=_summary(shapes_of, widths, folder),
        selection="all shapes of the splits and files",
        counts={"shapes": dict(shapes_of), "parts": len(tasks), "parts_written": len(encoded)},
        columns=widths,
        embeddings=folder,
        init_from=config.init_from,
        weights=describe_weights(weights),
        data=None if prepared is None else str(prepared.path),
    )


def _check(config: EmbedConfig, prepared: PreparedSet | None, model: Encoder) -> None:
    """Refuse more points than are stored, too few for the model, and unknown splits."""
    check_patches(config.data.num_points, model)
    if prepared is None:
        return
    check_points(prepared, config.data.num_points)
    for split in config.embed.splits or ():
        check_split(prepared, "embed.splits", split)


def _plan(
    config: EmbedConfig,
    prepared: PreparedSet | None,
    weights: LoadedWeights,
    model: str,
    folder: str,
) -> list[EmbedTask]:
    """Plan the parts of the set and of the files, with the farthest points of each cloud."""
    tasks: list[EmbedTask] = []
    if prepared is not None:
        splits = config.embed.splits or tuple(prepared.splits)
        choice, limit = evaluated_clouds(config, prepared, weights).test(), config.data.limit
        tasks += set_parts(folder, prepared, splits, choice, model=model, limit=limit)
    choice = evaluated_clouds(config, None, weights).test()
    axis, seed = config.up_axis, config.run.seed
    return tasks + file_parts(folder, config.files, choice, model=model, up_axis=axis, seed=seed)


def _worker(
    config: EmbedConfig, place: str, sizes: dict[str, Any], model: str, pool: EncodePool
) -> EmbedWorker:
    runtime = config.runtime
    precision = resolve_precision(config.precision, on_gpu=pool.on_gpu)
    return EmbedWorker(
        place,
        sizes,
        model,
        Inference(precision, runtime.compile, runtime.cuda_graph == "auto"),
        config.embed.batch_size,
        runtime.threads or pool.plan.threads_per_worker,
        runtime.ops_backend,
        ops.backend(),
    )


def _summary(shapes_of: Counter[str], widths: dict[str, int], folder: str) -> str:
    lines = [f"{'split':28}{'shapes':>12}"]
    lines += [f"{split:28}{count:>12,}" for split, count in shapes_of.items()]
    columns = ", ".join(f"{name} ({width})" for name, width in widths.items())
    return "\n".join([*lines, f"columns: {columns}", folder])
