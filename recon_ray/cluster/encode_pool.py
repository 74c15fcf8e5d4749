"""Shards encoded by models: over a pool of Ray actors, or in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from recon_ray.cluster.placement import WorkerPlan
from recon_ray.cluster.worker import set_up_worker_log, work_in
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.loading.stream import configure
from recon_ray.errors import ReconError, as_record, from_record
from recon_ray.machine import working_directory

Record = dict[str, Any]
Encode = Callable[[Sequence[Any]], Iterator[Record]]


class ShardWorker(Protocol):
    """What a worker needs to encode shards; small and picklable."""

    @property
    def threads(self) -> int:
        """Threads of torch."""
        ...

    def start(self, device: str) -> Callable[[Any], Record]:
        """Load the model on ``cpu`` or ``cuda``; give what encodes a shard and tells of it."""
        ...


def encode_here(worker: ShardWorker, *, on_gpu: bool) -> Encode:
    """Return a runner that encodes shards in this process."""

    def run(tasks: Sequence[Any]) -> Iterator[Record]:
        torch.set_num_threads(worker.threads)
        encode = worker.start("cuda" if on_gpu else "cpu")
        for task in tasks:
            yield encode(task)

    return run


def encode_on_ray(worker: ShardWorker, cluster: ClusterSection, plan: WorkerPlan) -> Encode:
    """Return a runner that encodes shards on a pool of actors of the joined cluster.

    Each actor loads the model once and takes one shard after the other; a shard of an actor that
    died is encoded again by another one.

    Raises:
        ReconError: What an actor met that the user can act on.
    """

    def run(tasks: Sequence[Any]) -> Iterator[Record]:
        configure()
        shards = ray.data.from_items(
            [{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
        )
        records = shards.map_batches(
            _ShardEncoder,
            fn_constructor_args=(worker, tuple(tasks), working_directory()),
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=min(cluster.allowed_workers[0], len(tasks)),
                max_size=min(plan.max_workers, len(tasks)),
                max_tasks_in_flight_per_actor=1,
            ),
            num_cpus=plan.cpus_per_worker,
            num_gpus=plan.gpus_per_worker or None,
        )
        with closing(iter(records.iter_rows())) as rows:  # which ends the threads that read ahead
            for row in rows:
                record = json.loads(row["record"])
                if "error" in record:
                    raise from_record(record)
                yield record

    return run


class _ShardEncoder:
    """An actor: a model that encodes the shards whose numbers it is given."""

    def __init__(self, worker: ShardWorker, tasks: tuple[Any, ...], directory: str) -> None:
        set_up_worker_log(1, show_records=False)
        work_in(directory)
        torch.set_num_threads(worker.threads)
        self._tasks = tasks
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._worker = worker
        self._encode: Callable[[Any], Record] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Encode one shard; an error of ours is returned, as Ray would wrap it."""
        task = self._tasks[int(batch["number"][0])]
        try:
            if self._encode is None:
                self._encode = self._worker.start(self._device)
            record = self._encode(task)
        except ReconError as error:
            record = as_record(error)
        return {"record": [json.dumps(record)]}


def run_in_worker(compute: Callable[[str], Tensor], plan: WorkerPlan) -> Tensor:
    """Run a function on the device of one worker of the joined cluster.

    Args:
        compute: Gets the device and returns a tensor on the CPU.
        plan: What a worker reserves.

    Raises:
        ReconError: What the worker met that the user can act on.
    """
    device = "cuda" if plan.gpus_per_worker else "cpu"
    task = ray.remote(_run_in_worker)
    task = task.options(num_cpus=plan.cpus_per_worker, num_gpus=plan.gpus_per_worker)
    found = ray.get(task.remote(compute, device, working_directory()))
    if isinstance(found, dict):
        raise from_record(found)
    return found


def _run_in_worker(
    compute: Callable[[str], Tensor], device: str, directory: str
) -> Tensor | Record:
    set_up_worker_log(1, show_records=False)
    work_in(directory)
    try:
        return compute(device)
    except ReconError as error:
        return as_record(error)
