"""Frozen image teachers in the workers of a cluster, or in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recon_ray.cluster.encode_pool import Record
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
