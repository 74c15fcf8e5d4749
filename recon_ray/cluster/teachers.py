"""Frozen teachers over a pool of Ray actors, or in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from recon_ray import errors
from recon_ray.cluster.context import WorkerPlan
from recon_ray.cluster.worker import set_up_worker_log, work_in
from recon_ray.config.schema import ClusterSection
from recon_ray.data.stream import configure
from recon_ray.data.teacher_shards import EncodeTask, Record, encode_shard
from recon_ray.errors import ReconError
from recon_ray.machine import cpu_count
from recon_ray.models.teachers import ImageTeacher

Encode = Callable[[Sequence[EncodeTask]], Iterator[Record]]


@dataclass(frozen=True)
class TeacherWorker:
    """What a worker needs to encode pictures; small and picklable.

    Args:
        make: Makes the teacher on the CPU.
        threads: Threads of torch. The sums of a forward pass on a CPU may depend on them, so they
            do not follow the number of cores.
        decoders: Threads that decode pictures, which changes nothing.
        directory: The driver's, to which relative paths belong.
    """

    make: Callable[[], ImageTeacher]
    threads: int
    decoders: int
    directory: str = field(default_factory=lambda: str(Path.cwd()))


def encode_here(worker: TeacherWorker, *, on_gpu: bool) -> Encode:
    """Give a runner that encodes shards in this process."""

    def run(tasks: Sequence[EncodeTask]) -> Iterator[Record]:
        torch.set_num_threads(worker.threads)
        teacher = worker.make().to("cuda" if on_gpu else "cpu")
        for task in tasks:
            yield encode_shard(task, teacher, threads=cpu_count())

    return run


def encode_on_ray(worker: TeacherWorker, cluster: ClusterSection, plan: WorkerPlan) -> Encode:
    """Give a runner that encodes shards on a pool of actors of the joined cluster.

    Each actor loads the teacher once and takes one shard after the other; a shard of an actor that
    died is encoded again by another one.

    Raises:
        ReconError: What an actor met that the user can act on.
    """

    def run(tasks: Sequence[EncodeTask]) -> Iterator[Record]:
        configure()
        shards = ray.data.from_items(
            [{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
        )
        records = shards.map_batches(
            _ShardEncoder,
            fn_constructor_args=(worker, tuple(tasks)),
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=min(cluster.allowed_workers[0], len(tasks)),
                max_size=min(plan.max_workers, len(tasks)),
                max_tasks_in_flight_per_actor=1,
            ),
            num_cpus=plan.cpus_per_worker,
            num_gpus=plan.gpus_per_worker or None,
        )
        for row in records.iter_rows():
            record = json.loads(row["record"])
            if "error" in record:
                raise _error(record)
            yield record

    return run


def encode_texts_on_ray(encode: Callable[[str], Tensor], plan: WorkerPlan) -> Tensor:
    """Run a text teacher in one worker of the joined cluster.

    Args:
        encode: Makes the teacher, runs it on a device and gives the features on the CPU.
        plan: What a worker reserves.

    Raises:
        ReconError: What the worker met that the user can act on.
    """
    device = "cuda" if plan.gpus_per_worker else "cpu"
    task = ray.remote(_encode_texts)
    task = task.options(num_cpus=plan.cpus_per_worker, num_gpus=plan.gpus_per_worker)
    encoded = ray.get(task.remote(encode, device, str(Path.cwd())))
    if isinstance(encoded, dict):
        raise _error(encoded)
    return encoded


def _encode_texts(encode: Callable[[str], Tensor], device: str, directory: str) -> Tensor | Record:
    set_up_worker_log(1, show_records=False)
    work_in(directory)
    try:
        return encode(device)
    except ReconError as error:
        return _told(error)


class _ShardEncoder:
    """An actor: a teacher that encodes the shards whose numbers it is given."""

    def __init__(self, worker: TeacherWorker, tasks: tuple[EncodeTask, ...]) -> None:
        set_up_worker_log(1, show_records=False)
        work_in(worker.directory)
        torch.set_num_threads(worker.threads)
        self._tasks = tasks
        self._decoders = worker.decoders
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._worker = worker
        self._teacher: ImageTeacher | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Encode one shard; an error of ours is returned, as Ray would wrap it."""
        task = self._tasks[int(batch["number"][0])]
        try:
            if self._teacher is None:
                self._teacher = self._worker.make().to(self._device)
            record = encode_shard(task, self._teacher, threads=self._decoders)
        except ReconError as error:
            record = _told(error)
        return {"record": [json.dumps(record)]}


def _told(error: ReconError) -> Record:
    """An error of ours as a value: raised, it would come wrapped by Ray, and be tried again."""
    return {"error": type(error).__name__, "message": str(error)}


def _error(told: Record) -> ReconError:
    kind: type[ReconError] = getattr(errors, str(told["error"]), ReconError)
    return kind(told["message"])
