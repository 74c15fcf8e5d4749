"""Ray Data over prepared sets: tables in the object store, and streams that workers read.

A worker derives what it reads from the order of the samples and its rank, and reads it as a dataset
of its own: nothing central knows the shards.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from recon_ray.cluster.workarounds.ray_log import quiet_ray_data
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.shards import ShardFile, ShardFiles
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.data.loading.shard_reader import (
    ShardRead,
    ShardReader,
    SplitFiles,
    take_rows,
    without_problems,
)
from recon_ray.data.loading.stream_order import Read, dealt
from recon_ray.errors import DataError

#: Part of the object store that decoded blocks may fill before ``auto`` turns to streaming, that
#: all streams together may fill with what was read ahead, and with what they hold.
STORE_FRACTION, AHEAD_FRACTION, HELD_FRACTION = 0.6, 0.4, 0.4
#: Bytes in memory that a task reads (every task costs some 30 ms), but fewer where that would leave
#: a CPU fewer tasks than this; most shards of a task; most tasks that are planned at once, and
#: most shards.
TASK_BYTES, TASKS_A_CPU, TASK_READS, MOST_TASKS = 1 << 27, 4, 1024, 64
MOST_READS = 8192
#: Most bytes that a worker's tasks read ahead.
AHEAD_BYTES = 1 << 28
#: Bytes of a block.
BLOCK_BYTES = 16 << 20
#: Blocks that a worker fetches from other nodes before it needs them, in shards.
FETCHED_AHEAD = 8


class PreparedShards(Datasource):
    """Shards of a prepared set, of which all rows or some are read.

    A task reads consecutive shards and carries their names only. Ray's own reader of Parquet starts
    32 processes before every epoch, which read the footers of all files; here it is known what they
    hold.

    Args:
        reader: Reads the shards.
        reads: What is read, in order.
        row_bytes: Bytes of a row in memory.
        name: Name in Ray's dashboard.
    """

    def __init__(
        self, reader: ShardReader, reads: Sequence[ShardRead], *, row_bytes: int, name: str
    ) -> None:
        super().__init__()
        self._reader, self._reads, self._row_bytes, self._name = reader, reads, row_bytes, name

    def get_name(self) -> str:
        """Return the name in Ray's dashboard."""
        return self._name

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes that all rows take in memory."""
        return sum(len(read.rows) for read in self._reads) * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, *_: object, **__: object
    ) -> list[ReadTask]:
        """Return tasks that read equally many consecutive shards."""
        count = min(parallelism, len(self._reads))
        bounds = [len(self._reads) * number // count for number in range(count + 1)]
        tasks = []
        for start, stop in itertools.pairwise(bounds):
            reads = self._reads[start:stop]
            rows = sum(len(read.rows) for read in reads)
            metadata = BlockMetadata(
                num_rows=rows,
                size_bytes=rows * self._row_bytes,
                input_files=[str(file) for read in reads for file in read.files],
                exec_stats=None,
            )
            tasks.append(
                ReadTask(
                    partial(self._reader, reads), metadata, per_task_row_limit=per_task_row_limit
                )
            )
        return tasks


@dataclass(frozen=True)
class SplitBlocks:
    """A split among the decoded blocks in the object store.

    Args:
        split: The split; its files are not opened again.
        geometry: References to Arrow tables, which may hold other splits too.
        views: The same for the images, or None where they are not used.
        features: The same for stored features, a list for each kind.
    """

    split: Split
    geometry: list[Any]
    views: list[Any] | None
    features: tuple[list[Any], ...] = ()

    def fetch(self, *, limit: int | None = None) -> IndexedTable:
        """Map the blocks into this process, without copies; with a limit only the first rows.

        Raises:
            DataError: If the blocks do not hold the split's rows.
        """
        rows = self.split.rows if limit is None else min(limit, self.split.rows)
        geometry = self._of_split(ray.get(self.geometry), rows)
        views = None if self.views is None else self._of_split(ray.get(self.views), rows)
        features = [self._of_split(ray.get(blocks), rows) for blocks in self.features]
        return IndexedTable(geometry, views, features)

    def _of_split(self, tables: Sequence[pa.Table], rows: int) -> list[pa.Table]:
        """Slices of the tables that hold the split's first rows, in order of sample id."""
        ranges = [(s.first_sample_id, s.first_sample_id + s.planned) for s in self.split.members]
        slices, found = [], 0
        for table in sorted((t for t in tables if len(t)), key=lambda t: t["sample_id"][0].as_py()):
            ids = table["sample_id"].to_numpy()
            for start, end in np.searchsorted(ids, ranges):
                slices.append(table.slice(start, min(end - start, rows - found)))
                found += len(slices[-1])
        if found != rows:
            raise DataError(
                f"split {self.split.name!r}: {found} of {rows} rows were read; verify the "
                "prepared set"
            )
        return [table for table in slices if len(table)]


def put_blocks(
    splits: Sequence[Split],
    columns: Sequence[str],
    *,
    with_views: Container[str],
    features: Mapping[str, Sequence[StoredFeatures]] | None = None,
) -> dict[str, SplitBlocks]:
    """Read splits once through Ray Data and keep their decoded blocks in the object store.

    Args:
        splits: Splits of a prepared set.
        columns: Geometry columns.
        with_views: Names of the splits whose images are read too.
        features: Split name to the stored features that are read too.
    """
    if not splits:
        return {}
    geometry = _put_files(*_files(splits, "geometry"), columns)
    pictured = [split for split in splits if split.name in with_views]
    files, rows = _files(pictured, "views")
    views = _put_files(files, rows, ("sample_id", "views")) if files else None
    kept = {
        split.name: tuple(
            _put_files(one.files, split.shard_rows, ("sample_id", one.column))
            for one in (features or {}).get(split.name, ())
        )
        for split in splits
    }
    return {
        split.name: SplitBlocks(
            split, geometry, views if split in pictured else None, kept[split.name]
        )
        for split in splits
    }


def _files(
    splits: Sequence[Split], kind: Literal["geometry", "views"]
) -> tuple[list[ShardFile], list[int]]:
    """Files of splits and their rows, in order of sample id; a block may hold several splits."""
    members = [member for split in splits for member in split.members]
    members.sort(key=lambda split: split.first_sample_id)
    rows = {
        file: count
        for member in members
        for file, count in zip(getattr(member, kind), member.shard_rows, strict=False)
    }
    return list(rows), list(rows.values())


def _put_files(
    files: Sequence[ShardFile], rows: Sequence[int] | np.ndarray, columns: Sequence[str]
) -> list[Any]:
    """Read whole files into the object store.

    Raises:
        DataError: If one is unreadable.
    """
    reads = [
        ShardRead((file,), range(int(count)))
        for file, count in zip(files, rows, strict=True)
        if count
    ]
    size = max(1, files[0].size // max(int(rows[0]), 1))
    return [ref for ref, _ in _materialized(ShardReader(columns), reads, size, "prepared set")]


def _materialized(
    reader: ShardReader, reads: Sequence[ShardRead], row_bytes: int, name: str
) -> list[tuple[Any, int]]:
    """Read into the object store; return references to the tables, and their rows.

    Raises:
        DataError: If a file is unreadable.
    """
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    dataset = _dataset(reader, reads, row_bytes=row_bytes, name=name, cpus=cpus)
    try:
        bundles = list(dataset.materialize().iter_internal_ref_bundles())
    except DataError as error:  # the task's, whose text Ray has added to
        own = getattr(error, "cause", error)
        raise DataError(str(own).partition("\n")[0]) from error
    return [
        (ref, metadata.num_rows)
        for bundle in bundles
        for ref, metadata in zip(bundle.block_refs, bundle.metadata, strict=True)
        if metadata.num_rows
    ]


def decoded_bytes(
    prepared: PreparedSet, split: Split, *, views: bool, features: Sequence[StoredFeatures] = ()
) -> int:
    """Bytes that a split takes in memory: points and features exactly, images as on disk."""
    itemsize = np.dtype(prepared.manifest.get("points_dtype", "float32")).itemsize
    stored = sum(one.bytes_per_sample for one in features)
    size = split.rows * (prepared.num_points * 3 * itemsize + 64 + stored)
    if not views:
        return size
    return size + (split.views.total_bytes if isinstance(split.views, ShardFiles) else 0)


def fits_object_store(size: int) -> bool:
    """Return whether that many bytes fit the object store of every node."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = min((resources.get("object_store_memory", 0.0) for resources in alive), default=-1.0)
    return size <= STORE_FRACTION * room


def configure() -> None:
    """Set Ray Data up for this process: quiet, in order, blocks of 16 MiB."""
    quiet_ray_data()
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES


def _dataset(
    reader: ShardReader,
    reads: Sequence[ShardRead],
    *,
    row_bytes: int,
    name: str,
    cpus: int,
    num_cpus: float = 1.0,
    node: str | None = None,
) -> ray.data.Dataset:
    """Return a lazy dataset of what is read, in its order.

    Args:
        reader: Reads the shards.
        reads: What is read.
        row_bytes: Bytes of a row in memory.
        name: Name in Ray's dashboard.
        cpus: Most tasks that read at once.
        num_cpus: CPUs that a task reserves.
        node: Id of the node on which it is read, if that matters.
    """
    configure()
    source = PreparedShards(reader, reads, row_bytes=row_bytes, name=name)
    tasks = max(
        source.estimate_inmemory_data_size() // TASK_BYTES,
        min(len(reads), TASKS_A_CPU * cpus),
        -(-len(reads) // TASK_READS),
        1,
    )
    labels = None if node is None else {"ray.io/node-id": node}
    return ray.data.read_datasource(
        source,
        override_num_blocks=tasks,
        num_cpus=num_cpus,
        concurrency=cpus,
        label_selector=labels,
    )


@dataclass(frozen=True)
class RayStream:
    """Reads shards in tasks of Ray, for one of several workers.

    The tasks reserve no CPU. One that has read enough ahead waits until its worker goes on, and the
    worker may wait for another one, whose task would wait for that CPU.

    Attributes:
        files: Files of the split.
        reader: Reads them, and reports errors.
        row_bytes: Bytes of a row in memory.
        name: Name in Ray's dashboard.
        workers: Workers that read at once.
        cpus: Most tasks of this worker that read at once.
        node: Id of the node on which they run, if that matters.
        copies: Copy what was read out of the object store, which is small for what is held.
    """

    files: SplitFiles
    reader: ShardReader
    row_bytes: int
    name: str
    workers: int
    cpus: int
    node: str | None = None
    copies: bool = False

    def __call__(self, reads: Iterable[Read], *, is_first: bool) -> Iterator[pa.Table]:
        """Return the rows of the reads in their order, read ahead; see :data:`RowSource`.

        Raises:
            DataError: If a file is unreadable.
        """
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        limits = ExecutionResources.for_limits(
            object_store_memory=min(AHEAD_BYTES, AHEAD_FRACTION * store / self.workers)
        )
        for chunk in self._chunks(reads):
            dataset = _dataset(
                self.reader, [self.files.of(read, is_first=is_first) for read in chunk],
                row_bytes=self.row_bytes, name=self.name, cpus=self.cpus, num_cpus=0.0,
                node=self.node,
            )  # fmt: skip
            dataset.context.execution_options.resource_limits = limits
            # Whole blocks: smaller batches would be copied together from their pieces.
            tables = without_problems(
                dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
            )
            yield from map(_copied, tables) if self.copies else tables

    def _chunks(self, reads: Iterable[Read]) -> Iterator[list[Read]]:
        """Cut what is read into datasets of a bounded number of tasks."""
        most, rows = MOST_TASKS * TASK_BYTES // max(self.row_bytes, 1), 0
        chunk: list[Read] = []
        for read in reads:
            chunk.append(read)
            rows += len(read.rows)
            if rows >= most or len(chunk) >= MOST_READS:
                yield chunk
                chunk, rows = [], 0
        if chunk:
            yield chunk


def _copied(table: pa.Table) -> pa.Table:
    """Return a table in memory of this process."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@dataclass(frozen=True)
class StreamBlocks:
    """All rows of a split in the object store, in the order in which its shards are dealt.

    Attributes:
        shard_rows: (S,) rows of its shards.
        seed: Seed by which they are dealt.
        refs: References to Arrow tables whose rows follow each other.
        rows: Rows of each.
    """

    shard_rows: np.ndarray
    seed: int
    refs: list[Any]
    rows: list[int]

    def __call__(self, reads: Iterable[Read], *, is_first: bool) -> Iterator[pa.Table]:
        """Return the rows of the reads in their order, without copies of whole shards."""
        del is_first  # compared when they were put
        deal = dealt(len(self.shard_rows), seed=self.seed)
        first = np.empty(len(deal), dtype=np.int64)
        first[deal] = np.cumsum(self.shard_rows[deal]) - self.shard_rows[deal]
        bounds = np.concatenate([[0], np.cumsum(self.rows)])
        waiting: deque[tuple[np.ndarray, list[int]]] = deque()
        for read in itertools.chain(reads, [None] * FETCHED_AHEAD):
            if read is not None:
                rows = first[read.shard] + np.asarray(read.rows)
                blocks = np.unique(np.searchsorted(bounds, rows, side="right") - 1).tolist()
                refs = [self.refs[block] for block in blocks]
                ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=True)
                waiting.append((rows, blocks))
            if waiting and (read is None or len(waiting) > FETCHED_AHEAD):
                yield from self._rows(*waiting.popleft(), bounds)

    def _rows(
        self, rows: np.ndarray, blocks: Sequence[int], bounds: np.ndarray
    ) -> Iterator[pa.Table]:
        for block, table in zip(blocks, ray.get([self.refs[b] for b in blocks]), strict=True):
            local = rows[slice(*np.searchsorted(rows, bounds[block : block + 2]))] - bounds[block]
            if local[-1] - local[0] + 1 == len(local):
                yield table.slice(local[0], len(local))
            else:
                yield take_rows(table, local)


def put_stream(
    files: SplitFiles, shard_rows: np.ndarray, reader: ShardReader, *, row_bytes: int, seed: int
) -> StreamBlocks:
    """Read a split once into the object store, in the order in which a seed deals its shards.

    Raises:
        DataError: If a file is unreadable.
    """
    reads = [
        files.of(Read(shard, range(int(shard_rows[shard]))))
        for shard in dealt(len(shard_rows), seed=seed).tolist()
        if shard_rows[shard]
    ]
    found = _materialized(reader, reads, row_bytes, "cached")
    return StreamBlocks(shard_rows, seed, [ref for ref, _ in found], [rows for _, rows in found])


def read_tables(
    named: Mapping[str, tuple[PreparedSet, str]], columns: Sequence[str]
) -> dict[str, IndexedTable]:
    """Read splits of one or several sets into this process."""
    return {
        name: IndexedTable([prepared.read(split, columns=columns)])
        for name, (prepared, split) in named.items()
    }


def put_tables(
    named: Mapping[str, tuple[PreparedSet, str]], columns: Sequence[str]
) -> dict[str, SplitBlocks]:
    """Read splits of one or several sets into the object store."""
    blocks: dict[str, SplitBlocks] = {}
    for path in {prepared.path for prepared, _ in named.values()}:
        wanted = {name: (p, split) for name, (p, split) in named.items() if p.path == path}
        splits = [prepared.splits[split] for prepared, split in wanted.values()]
        stored = put_blocks(splits, columns, with_views=())
        blocks |= {name: stored[split] for name, (_, split) in wanted.items()}
    return blocks
