"""Shards built by Ray Data, one task a shard, on all nodes of a cluster."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
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
            yield from map_tasks(TaskMapper(build), tasks, num_cpus=1, concurrency=at_once)

    return run


class TaskMapper:
    """A function of a task, JSON out; it returns our errors, as Ray would repeat the task."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the results of a table of pickled tasks."""
        return pa.table({"result": [self._one(task) for task in table["task"].to_pylist()]})

    def _one(self, task: bytes) -> str:
        try:
            return json.dumps({"value": self.function(pickle.loads(task))})
        except ReconError as error:
            return json.dumps(as_record(error))


def map_tasks(
    mapper: TaskMapper | type[TaskMapper],
    tasks: Sequence[Any],
    **options: Any,  # noqa: ANN401 - further arguments of Dataset.map_batches
) -> Iterator[Any]:
    """Map one or more picklable tasks on the joined cluster; yield results as they are ready.

    Raises:
        ReconError: The first one of a task.
    """
    quiet_ray_data()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    # A list of items is sent to the nodes as one block a task.
    items = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map_batches(mapper, batch_size=1, batch_format="pyarrow", **options)
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    with closing(iter(batches)) as blocks:  # which ends the threads that read ahead
        for block in blocks:
            for text in block["result"].to_pylist():
                result = json.loads(text)
                if "error" in result:
                    raise from_record(result)
                yield result["value"]
