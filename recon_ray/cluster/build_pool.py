"""Shards built by Ray Data, one task a shard, on all nodes of a cluster."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
import ray.data

from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.loading.ray_log import quiet_ray_data
from recon_ray.errors import DataError, ReconError

if TYPE_CHECKING:
    from recon_ray.data.prepare.runners import Build, Record, Run
    from recon_ray.data.prepare.shard_plan import ShardTask


def run_on_ray(cluster: ClusterSection, at_once: int | None = None) -> Run:
    """Return a runner that builds shards as tasks of Ray Data.

    A task reserves one CPU. Ray repeats the tasks of a node that is lost; a shard is the same
    whoever builds it, and however often. What a shard cannot be built for ends the job.

    Args:
        cluster: The cluster that is joined, or started for the time of the job.
        at_once: At most so many tasks at once; by default as many as there are CPUs.
    """

    def run(build: Build, tasks: Sequence[ShardTask]) -> Iterator[Record]:
        if not tasks:
            return
        with ray_session(cluster):
            yield from _records(_dataset(build, tasks, at_once))

    return run


@dataclass(frozen=True)
class _BuildShard:
    """Builds the shards of a block; an error of ours is returned, Ray would only repeat it."""

    build: Build

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table({"record": [self._one(task) for task in table["task"].to_pylist()]})

    def _one(self, task: bytes) -> str:
        try:
            return json.dumps(self.build(pickle.loads(task)))
        except ReconError as error:
            return json.dumps({"error": str(error)})


def _dataset(build: Build, tasks: Sequence[ShardTask], at_once: int | None) -> ray.data.Dataset:
    quiet_ray_data()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False  # a record is given when its shard is built
    # A list of items is sent to the nodes as one block a shard.
    items = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(
        _BuildShard(build), batch_size=1, batch_format="pyarrow", num_cpus=1, concurrency=at_once
    )


def _records(dataset: ray.data.Dataset) -> Iterator[Record]:
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    with closing(iter(batches)) as blocks:  # which ends the threads that read ahead
        for block in blocks:
            for text in block["record"].to_pylist():
                record = json.loads(text)
                if "error" in record:
                    raise DataError(record["error"])
                yield record
