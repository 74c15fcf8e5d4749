"""Frozen teachers in the workers of a cluster, or in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray
from torch import Tensor

from recon_ray.cluster.encode_pool import Record
from recon_ray.cluster.placement import WorkerPlan
from recon_ray.cluster.worker import set_up_worker_log, work_in
from recon_ray.errors import ReconError, as_record, from_record
from recon_ray.machine import working_directory
from recon_ray.teachers.cache_shards import EncodeTask, encode_shard
from recon_ray.teachers.protocol import ImageTeacher


@dataclass(frozen=True)
class TeacherWorker:
    """What a worker needs to encode pictures; small and picklable.

    Args:
        make: Makes the teacher on the CPU.
        threads: Threads of torch. The sums of a forward pass on a CPU may depend on them, so they
            do not follow the number of cores.
        decoders: Threads that decode pictures, which changes nothing.
    """

    make: Callable[[], ImageTeacher]
    threads: int
    decoders: int

    def start(self, device: str) -> Callable[[EncodeTask], Record]:
        """Make the teacher on a device; give what encodes a shard."""
        teacher = self.make().to(device)
        return lambda task: encode_shard(task, teacher, threads=self.decoders)


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
    encoded = ray.get(task.remote(encode, device, working_directory()))
    if isinstance(encoded, dict):
        raise from_record(encoded)
    return encoded


def _encode_texts(encode: Callable[[str], Tensor], device: str, directory: str) -> Tensor | Record:
    set_up_worker_log(1, show_records=False)
    work_in(directory)
    try:
        return encode(device)
    except ReconError as error:
        return as_record(error)
