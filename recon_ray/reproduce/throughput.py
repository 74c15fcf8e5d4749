"""Seconds that a cloud takes in a model, measured on a few shapes of its set in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.loading.batches import BatchOptions, IndexedTable, make_batch
from recon_ray.errors import ReconError
from recon_ray.models.recon import Embedder
from recon_ray.points import ops
from recon_ray.points.random import SampleGenerator
from recon_ray.train.task import Task

#: Shapes of the timed batch, and times that it is timed after a first one.
SHAPES, REPEATS = 8, 3
#: Threads meanwhile, as of one of many runs on a machine; several would wait for each other where
#: other work is going on.
THREADS = 1


@dataclass(frozen=True)
class Pace:
    """Seconds that one cloud takes.

    Attributes:
        trained: Forward and backward pass.
        encoded: Forward pass.
    """

    trained: float
    encoded: float


def time_task(
    task: Task, options: BatchOptions, prepared: PreparedSet, split: Split, device: torch.device
) -> Pace:
    """Time a training task on a few of its shapes.

    Args:
        task: The task.
        options: What its batches hold.
        prepared: Its set.
        split: Where the shapes come from.
        device: Where the model runs.

    Raises:
        ReconError: If they cannot be read, or the task cannot be built.
    """
    if options.features:
        raise ReconError("its features come from a cache")
    has_views = options.images is not None
    rows = prepared.read(split.head(SHAPES), options.columns, views=has_views).slice(0, SHAPES)
    beside = [rows.select(["sample_id", "views"])] if has_views else None
    table = IndexedTable([rows.drop_columns(["views"]) if has_views else rows], beside)
    taken = table.take(np.arange(len(table)), options.needs)
    batch = make_batch(taken, options, epoch=0)
    batch = {name: value.to(device) for name, value in batch.items()}
    module = task.build().to(device)
    task.on_device(device)

    def losses() -> Tensor:
        ids = batch["sample_id"]
        with torch.no_grad():
            enriched = task.prepare_on_device(batch, SampleGenerator(0, ids))
        return module(enriched, SampleGenerator(0, ids, stream=1))["loss"]

    def train() -> None:
        module.train()
        losses().backward()

    def encode() -> None:
        module.eval()
        with torch.inference_mode():
            losses()

    return Pace(_time(train, device), _time(encode, device))


def time_encoder(
    model: Embedder, num_points: int, prepared: PreparedSet, device: torch.device
) -> Pace:
    """Time an encoder on a few shapes of a set.

    Args:
        model: The encoder.
        num_points: Points that it is given of a cloud.
        prepared: The set.
        device: Where it runs.

    Raises:
        DataError: If the shapes cannot be read.
    """
    split = next(iter(prepared.splits.values()))
    rows = prepared.read(split.head(SHAPES), ["points", "label"]).slice(0, SHAPES)
    clouds = make_batch(IndexedTable([rows]).take(np.arange(len(rows))), BatchOptions(), epoch=0)[
        "points"
    ].to(device)
    model = model.eval().to(device)

    def encode() -> None:
        chosen = ops.furthest_point_sample(clouds, num_points)[1]
        with torch.inference_mode():
            model.svm_features(chosen)

    return Pace(0.0, _time(encode, device))


def _time(run: Callable[[], None], device: torch.device) -> float:
    """Seconds a shape: median of some runs after one that is not counted."""
    times = []
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for _ in range(1 + REPEATS):
            began = time.perf_counter()
            run()
            _wait(device)
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[1:]) / SHAPES


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_of(config: JobConfig) -> torch.device:
    """The device that a run in this process would take."""
    on_gpu = config.runtime.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def device_name(device: torch.device) -> str:
    """What a device is called in a table."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU core"
