"""Shards built by Ray Data, one task a shard, on all nodes of a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data

from recon_ray.cluster.session import ray_session
from recon_ray.cluster.workarounds.ray_log import quiet_ray_data
from recon_ray.config.sections.common import ClusterSection
from recon_ray.errors import ReconError, as_record, from_record

if TYPE_CHECKING:
    from recon_ray.data.prepare.runners import Build, Record, Run
    from recon_ray.data.prepare.shard_plan import ShardTask


#: Blocks of tasks for a CPU of the cluster, so that none waits long for the others in the end.
BLOCKS_A_CPU = 64


def run_on_ray(cluster: ClusterSection, at_once: int | None = None) -> Run:
    """Return a runner that builds shards as tasks of Ray Data.

    A task reserves one CPU. Ray repeats the tasks of a node that is lost; a shard is the same on
    every node, and however often it is built. The first error of a shard ends the job.

    Args:
        cluster: The cluster that is joined, or started for the time of the job.
        at_once: Most tasks at once; by default one a CPU.
    """

    def run(build: Build, tasks: Sequence[ShardTask]) -> Iterator[Record]:
        if not tasks:
            return
        with ray_session(cluster):
            mapper = TaskMapper(build, ray.put(tasks))
            yield from map_tasks(mapper, len(tasks), num_cpus=1, concurrency=at_once)

    return run


class TaskMapper:
    """A function of a task, JSON out; it returns our errors, as Ray would repeat the task.

    Args:
        function: The function.
        tasks: Reference to all tasks.
    """

    def __init__(self, function: Callable[[Any], Any], tasks: ray.ObjectRef) -> None:
        self.function = function
        self._tasks = tasks

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the results of a table of numbers of tasks."""
        return pa.table({"result": [self._one(number) for number in table["id"].to_pylist()]})

    def _one(self, number: int) -> str:
        try:
            return json.dumps({"value": self.function(_fetched(self._tasks)[number])})
        except ReconError as error:
            return json.dumps(as_record(error))


@lru_cache(maxsize=1)
def _fetched(tasks: ray.ObjectRef) -> Sequence[Any]:
    """Return the tasks, which a node fetches once; a process of Ray's takes many of them."""
    found: Sequence[Any] = ray.get(tasks)
    return found


def map_tasks(
    mapper: TaskMapper | type[TaskMapper],
    count: int,
    **options: Any,  # noqa: ANN401 - further arguments of Dataset.map_batches
) -> Iterator[Any]:
    """Map tasks on the joined cluster; yield results as they are ready.

    The tasks are in the object store once; what is sent are their numbers, a few a block where
    there are more than :data:`BLOCKS_A_CPU` for every CPU.

    Args:
        mapper: The function of a task.
        count: Number of tasks, one or more.
        **options: Arguments of Dataset.map_batches.

    Raises:
        ReconError: The first one of a task.
    """
    quiet_ray_data()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = min(count, BLOCKS_A_CPU * cpus)
    dataset = ray.data.range(count, override_num_blocks=blocks)
    dataset = dataset.map_batches(mapper, batch_size=1, batch_format="pyarrow", **options)
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    with closing(iter(batches)) as found:  # which ends the threads that read ahead
        for block in found:
            for text in block["result"].to_pylist():
                result = json.loads(text)
                if "error" in result:
                    raise from_record(result)
                yield result["value"]
