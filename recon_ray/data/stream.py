"""Ray Data over prepared sets: blocks in the object store, or a stream that is read each epoch.

This and ``cluster`` are the only places that import Ray, here inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recon_ray.data.batches import IndexedTable
from recon_ray.data.prepared import PreparedSet, Split
from recon_ray.data.teacher_cache import StoredFeatures
from recon_ray.errors import DataError

if TYPE_CHECKING:
    import ray

#: Part of the object store that decoded blocks may fill before ``auto`` turns to streaming.
STORE_FRACTION = 0.6


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
        """Map the blocks into this process, without copies.

        Args:
            limit: Take the first rows only.

        Raises:
            DataError: If the blocks do not hold the split's rows.
        """
        import ray

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
    geometry = _materialize(_files(splits, "geometry"), columns)
    pictured = [split for split in splits if split.name in with_views]
    files = _files(pictured, "views")
    views = _materialize(files, ("sample_id", "views")) if files else None
    kept = {
        name: tuple(_materialize(one.files, ("sample_id", one.column)) for one in stored)
        for name, stored in (features or {}).items()
    }
    return {
        split.name: SplitBlocks(
            split, geometry, views if split in pictured else None, kept.get(split.name, ())
        )
        for split in splits
    }


def _files(splits: Sequence[Split], kind: Literal["geometry", "views"]) -> list[Path]:
    """Files of splits, each once and in order of sample id, as a block may hold several."""
    members = [member for split in splits for member in split.members]
    members.sort(key=lambda split: split.first_sample_id)
    return list(dict.fromkeys(file for member in members for file in getattr(member, kind)))


def decoded_bytes(
    prepared: PreparedSet,
    split: Split,
    *,
    views: bool,
    features: Sequence[StoredFeatures] = (),
) -> int:
    """Bytes that a split takes in memory: points and features exactly, images as on disk."""
    itemsize = np.dtype(prepared.manifest.get("points_dtype", "float32")).itemsize
    stored = sum(one.bytes_per_sample for one in features)
    size = split.rows * (prepared.num_points * 3 * itemsize + 64 + stored)
    return size + (sum(Path(file).stat().st_size for file in split.views) if views else 0)


def fits_object_store(size: int) -> bool:
    """Whether that many bytes fit the object store of every node."""
    import ray

    stores = [
        node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]
    ]
    return bool(stores) and size <= STORE_FRACTION * min(stores)


def stream_dataset(
    split: Split,
    columns: Sequence[str],
    *,
    views: bool,
    features: Sequence[StoredFeatures] = (),
    seed: int,
    used: np.ndarray | None = None,
) -> ray.data.Dataset:
    """Lazy dataset over a split, with the files in another order each epoch.

    Args:
        split: The split of a prepared set.
        columns: Geometry columns.
        views: Whether the images are attached to the rows.
        features: Stored features that are attached to the rows.
        seed: Seed of the order of files.
        used: (S,) uint8 over sample ids, 1 where the unfinished epoch has used the sample.
    """
    import ray

    configure()
    dataset = ray.data.read_parquet(
        [str(file) for file in split.geometry],
        shuffle=ray.data.FileShuffleConfig(seed=seed),
    ).select_columns(list(columns))
    if used is not None and used.any():
        dataset = dataset.map_batches(_Unused(used), batch_format="pyarrow", batch_size=None)
    beside = [(split.views, "views")] if views else []
    beside += [(list(one.files), one.column) for one in features]
    for files, column in beside:
        attach = Attach([str(file) for file in files], column, id_ranges(split))
        dataset = dataset.map_batches(attach, batch_format="pyarrow", batch_size=64)
    return dataset


def reordered(dataset: ray.data.Dataset, *, seed: int) -> ray.data.Dataset:
    """Give the blocks of a materialized dataset in another order each epoch.

    A Ray without the needed option keeps one order; rows are mixed in the workers' buffers anyway.
    """
    import ray

    reseeding = getattr(ray.data, "RandomSeedConfig", None)
    if reseeding is None:
        return dataset
    return dataset.randomize_block_order(seed=reseeding(seed=seed))


def tables_of(shard: ray.data.DataIterator) -> Iterator[pa.Table]:
    """The rows of a worker's shard as Arrow tables, read ahead."""
    # Whole blocks: smaller batches would be copied together from their pieces.
    yield from shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


@dataclass(frozen=True)
class _Unused:
    """Leaves out the rows that the unfinished epoch has used."""

    used: np.ndarray

    def __call__(self, table: pa.Table) -> pa.Table:
        ids = table["sample_id"].to_numpy()
        known = ids < len(self.used)
        fresh = ~known
        fresh[known] = self.used[ids[known]] == 0
        return table.filter(pa.array(fresh))


@dataclass(frozen=True)
class Attach:
    """Adds a column that lies in sibling files, to rows in order of sample id in their shard.

    Args:
        files: The sibling files, one a shard.
        column: The column in them.
        ranges: First and last sample id of each.
    """

    files: Sequence[str]
    column: str
    ranges: Sequence[tuple[int, int]]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Give the rows with the column.

        Raises:
            DataError: If a sample is not in the files.
        """
        ids = table["sample_id"]
        if not len(table):
            empty = pq.read_schema(self.files[0]).field(self.column).type
            return table.append_column(self.column, pa.chunked_array([], empty))
        low, high = pc.min(ids).as_py(), pc.max(ids).as_py()
        near = zip(self.files, self.ranges, strict=True)
        files = [file for file, (first, last) in near if first <= high and low <= last]
        found = pq.read_table(
            files or list(self.files[:1]),
            columns=["sample_id", self.column],
            filters=[("sample_id", ">=", low), ("sample_id", "<=", high)],
        )
        rows = pc.index_in(ids.combine_chunks(), value_set=found["sample_id"].combine_chunks())
        if rows.null_count:
            raise DataError(
                f"{Path(self.files[0]).parent}: has no {self.column} of sample "
                f"{ids.filter(rows.is_null())[0].as_py()}; verify the prepared set, or make its "
                "teacher cache again"
            )
        return table.append_column(self.column, found[self.column].combine_chunks().take(rows))


def id_ranges(split: Split) -> list[tuple[int, int]]:
    """First and last sample id of each shard, from the statistics of its footer."""
    ranges = []
    for path in split.geometry:
        metadata = pq.read_metadata(path)
        ids = [metadata.row_group(i).column(0) for i in range(metadata.num_row_groups)]
        found = [column.statistics for column in ids if column.num_values]
        ranges.append((found[0].min, found[-1].max) if found else (0, -1))
    return ranges


def configure() -> None:
    """Set Ray Data up for this process: quiet, in order, blocks of 16 MiB."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # bars are off
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 16 * 1024 * 1024


def _materialize(files: Sequence[Path], columns: Sequence[str]) -> list[Any]:
    import ray

    configure()
    dataset = ray.data.read_parquet([str(file) for file in files]).select_columns(list(columns))
    return list(dataset.materialize().to_arrow_refs())
