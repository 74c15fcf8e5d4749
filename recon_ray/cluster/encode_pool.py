"""Workers that encode shards with a model: actors of a cluster, or this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Protocol

import ray
import torch
from ray.data import ActorPoolStrategy

from recon_ray.cluster.build_pool import TaskMapper, map_tasks
from recon_ray.cluster.placement import WorkerPlan, plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.worker import set_up_worker_log, work_in
from recon_ray.config.sections.common import ClusterSection
from recon_ray.machine import cpu_count, working_directory


class ShardWorker(Protocol):
    """A model that encodes shards, before it is loaded; small and picklable."""

    @property
    def threads(self) -> int:
        """Threads of torch."""
        ...

    def start(self, device: str) -> Callable[[Any], int]:
        """Load the model on ``cpu`` or ``cuda``; return a function from a task to its units."""
        ...


class EncodePool(ExitStack):
    """The workers of a job; a context, which joins the cluster when a worker is first needed.

    Args:
        cluster: Where and how many; 0 workers are this process.
        device: ``runtime.device``.
    """

    def __init__(self, cluster: ClusterSection, device: str) -> None:
        super().__init__()
        self.cluster, self.device = cluster, device
        self.is_local = cluster.workers == 0

    @cached_property
    def plan(self) -> WorkerPlan:
        """Resources of the workers.

        Raises:
            ConfigError: If they do not fit the cluster.
        """
        if self.is_local:
            cpus, on_gpu = cpu_count(), self.device != "cpu" and torch.cuda.is_available()
            return WorkerPlan(1, 1, cpus, float(on_gpu), 1, cpus, cpus)
        self.enter_context(ray_session(self.cluster))
        return plan_workers(
            self.cluster, reads_during_training=False, device=self.device, exchanges=False
        )

    @property
    def on_gpu(self) -> bool:
        """Return whether the workers compute on GPUs."""
        return self.plan.gpus_per_worker > 0

    def run(self, worker: ShardWorker, tasks: Sequence[Any]) -> Iterator[int]:
        """Encode the shards of one or more tasks; yield their units as they are ready.

        Each actor loads the model once and takes one shard after the other; the shard of an actor
        that died is encoded again by another one.

        Raises:
            ReconError: The first one of a worker.
        """
        plan = self.plan
        if self.is_local:
            torch.set_num_threads(worker.threads)
            yield from map(worker.start("cuda" if self.on_gpu else "cpu"), tasks)
            return
        yield from map_tasks(
            _ShardEncoder,
            len(tasks),
            # A reference in a list stays one: Ray would fetch it for an argument.
            fn_constructor_args=(worker, working_directory(), [ray.put(tasks)]),
            compute=ActorPoolStrategy(
                min_size=min(plan.min_workers, len(tasks)),
                max_size=min(plan.max_workers, len(tasks)),
                max_tasks_in_flight_per_actor=1,
            ),
            num_cpus=plan.cpus_per_worker,
            num_gpus=plan.gpus_per_worker or None,
        )


class _ShardEncoder(TaskMapper):
    """An actor: a model that is loaded with the first shard, where an error can be returned."""

    def __init__(self, worker: ShardWorker, directory: str, tasks: list[ray.ObjectRef]) -> None:
        super().__init__(self._load_and_encode, tasks[0])
        set_up_worker_log(1, show_records=False)
        work_in(directory)
        torch.set_num_threads(worker.threads)
        self._worker = worker

    def _load_and_encode(self, task: Any) -> int:  # noqa: ANN401 - a task of the worker
        self.function = self._worker.start("cuda" if ray.get_gpu_ids() else "cpu")
        return int(self.function(task))
