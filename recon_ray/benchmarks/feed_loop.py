"""Timing of a worker's training samples, without a model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from recon_ray.cluster.stop_watch import end_together
from recon_ray.cluster.worker import RayRuntime, WorkerPayload, set_up_worker_log
from recon_ray.data.loading.batches import Batch
from recon_ray.data.loading.prefetch import prefetch
from recon_ray.train.feed.batching import BatchPlan


class EpochTime(NamedTuple):
    """Time of one pass over the samples.

    Attributes:
        rows: Samples that came.
        distinct: Different samples among them.
        seconds: From the request to the last batch.
        first_seconds: From the request to the first batch: the fixed cost of a pass.
    """

    rows: int
    distinct: int
    seconds: float
    first_seconds: float


def time_epoch(batches: Iterable[Batch]) -> EpochTime:
    """Take all batches of a pass as fast as they come."""
    started = time.perf_counter()
    first = 0.0
    ids: list[np.ndarray] = []
    for batch in batches:
        first = first or time.perf_counter() - started
        ids.append(batch["sample_id"].numpy())
    seconds = time.perf_counter() - started
    taken = np.concatenate(ids)
    return EpochTime(len(taken), len(np.unique(taken)), seconds, first)


def feed_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a worker that only reads: the feed of the training loop, timed.

    Args:
        config: ``{"payload": WorkerPayload}``.

    Returns:
        ``{"metrics": {"epochs": [EpochTime as a list, ...]}}`` or an error, see
        :func:`recon_ray.cluster.stop_watch.end_together`.
    """
    payload: WorkerPayload = config["payload"]

    def run() -> dict[str, Any]:
        runtime = RayRuntime(payload)
        set_up_worker_log(runtime.rank, show_records=False)
        train = payload.job.config.train
        plan = BatchPlan(train.global_batch_size, runtime.world_size)
        feed = runtime.feed()
        epochs = [
            list(time_epoch(prefetch(partial(feed.epoch, epoch, 0, plan, runtime.rank))))
            for epoch in range(train.epochs)
        ]
        return {"metrics": {"epochs": epochs}}

    return end_together(payload.setup.stop_actor, run)
