"""Ray Data over prepared sets: blocks in the object store, or a stream that is read each epoch.

This and ``cluster`` are the only places that import Ray, here inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recon_ray.data.batches import IndexedTable
from recon_ray.data.prepared import PreparedSet, Split
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
    """

    split: Split
    geometry: list[Any]
    views: list[Any] | None

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
        return IndexedTable(geometry, views)

    def _of_split(self, tables: Sequence[pa.Table], rows: int) -> list[pa.Table]:
        """Slices of the tables that hold the split's first rows, in order of sample id."""
        low, high = self.split.first_sample_id, self.split.first_sample_id + self.split.planned
        slices, found = [], 0
        for table in sorted((t for t in tables if len(t)), key=lambda t: t["sample_id"][0].as_py()):
            start, end = np.searchsorted(table["sample_id"].to_numpy(), [low, high])
            slices.append(table.slice(start, min(end - start, rows - found)))
            found += len(slices[-1])
        if found != rows:
            raise DataError(
                f"split {self.split.name!r}: {found} of {rows} rows were read; verify the "
                "prepared set"
            )
        return [table for table in slices if len(table)]


def put_blocks(
    splits: Sequence[Split], columns: Sequence[str], *, with_views: Container[str]
) -> dict[str, SplitBlocks]:
    """Read splits once through Ray Data and keep their decoded blocks in the object store.

    Args:
        splits: Splits of a prepared set.
        columns: Geometry columns.
        with_views: Names of the splits whose images are read too.
    """
    if not splits:
        return {}
    splits = sorted(splits, key=lambda split: split.first_sample_id)  # a block may hold several
    geometry = _materialize([file for split in splits for file in split.geometry], columns)
    pictured = [split for split in splits if split.name in with_views]
    files = [file for split in pictured for file in split.views]
    views = _materialize(files, ("sample_id", "views")) if files else None
    return {
        split.name: SplitBlocks(split, geometry, views if split in pictured else None)
        for split in splits
    }


def decoded_bytes(prepared: PreparedSet, split: Split, *, views: bool) -> int:
    """Bytes that a split takes in memory: points exactly, images as they are on disk."""
    itemsize = np.dtype(prepared.manifest.get("points_dtype", "float32")).itemsize
    size = split.rows * (prepared.num_points * 3 * itemsize + 64)
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
    seed: int,
    used: np.ndarray | None = None,
) -> ray.data.Dataset:
    """Lazy dataset over a split, with the files in another order each epoch.

    Args:
        split: The split of a prepared set.
        columns: Geometry columns.
        views: Whether the images are attached to the rows.
        seed: Seed of the order of files.
        used: (S,) uint8 over sample ids, 1 where the unfinished epoch has used the sample.
    """
    import ray

    _configure()
    dataset = ray.data.read_parquet(
        [str(file) for file in split.geometry],
        shuffle=ray.data.FileShuffleConfig(seed=seed),
    ).select_columns(list(columns))
    if used is not None and used.any():
        dataset = dataset.map_batches(_Unused(used), batch_format="pyarrow", batch_size=None)
    if views:
        attach = _AttachViews([str(file) for file in split.views])
        dataset = dataset.map_batches(attach, batch_format="pyarrow", batch_size=64)
    return dataset


def tables_of(shard: ray.data.DataIterator) -> Iterator[pa.Table]:
    """The rows of a worker's shard as Arrow tables, read ahead."""
    yield from shard.iter_batches(batch_size=256, batch_format="pyarrow", prefetch_batches=2)


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
class _AttachViews:
    """Adds the images of rows that come in order of sample id within their shard."""

    files: Sequence[str]

    def __call__(self, table: pa.Table) -> pa.Table:
        ids = table["sample_id"]
        low, high = pc.min(ids).as_py(), pc.max(ids).as_py()
        found = pq.read_table(
            list(self.files), filters=[("sample_id", ">=", low), ("sample_id", "<=", high)]
        )
        rows = pc.index_in(ids.combine_chunks(), value_set=found["sample_id"].combine_chunks())
        return table.append_column("views", found["views"].take(rows))


def _configure() -> None:
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # bars are off
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 16 * 1024 * 1024


def _materialize(files: Sequence[Path], columns: Sequence[str]) -> list[Any]:
    import ray

    _configure()
    dataset = ray.data.read_parquet([str(file) for file in files]).select_columns(list(columns))
    return list(dataset.materialize().to_arrow_refs())
