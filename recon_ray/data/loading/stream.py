"""Ray Data over prepared sets: blocks in the object store, or a stream that is read each epoch.

This and ``cluster`` are the only places that import Ray, here inside functions.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.shards import ShardFile, ShardFiles
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.data.loading.ray_log import quiet_ray_data
from recon_ray.data.loading.shard_reader import SHARD, ShardReader, without_problems
from recon_ray.errors import DataError

if TYPE_CHECKING:
    import ray

#: Part of the object store that decoded blocks may fill before ``auto`` turns to streaming.
STORE_FRACTION = 0.6
#: Bytes on disk of the shards that a task reads (every task costs some 30 ms), but fewer
#: where that would leave a CPU of the cluster fewer tasks than this.
TASK_BYTES, TASKS_A_CPU = 1 << 27, 4


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


def _files(splits: Sequence[Split], kind: Literal["geometry", "views"]) -> list[ShardFile]:
    """Files of splits, each once and in order of sample id, as a block may hold several."""
    members = [member for split in splits for member in split.members]
    members.sort(key=lambda split: split.first_sample_id)
    return list(dict.fromkeys(file for member in members for file in getattr(member, kind)))


def decoded_bytes(
    prepared: PreparedSet, split: Split, *, views: bool, features: Sequence[StoredFeatures] = ()
) -> int:
    """Bytes that a split takes in memory: points and features exactly, images as on disk."""
    itemsize = np.dtype(prepared.manifest.get("points_dtype", "float32")).itemsize
    stored = sum(one.bytes_per_sample for one in features)
    size = split.rows * (prepared.num_points * 3 * itemsize + 64 + stored)
    return size + (split.views.total_bytes if views and isinstance(split.views, ShardFiles) else 0)


def fits_object_store(size: int) -> bool:
    """Return whether that many bytes fit the object store of every node."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = min((resources.get("object_store_memory", 0.0) for resources in alive), default=-1.0)
    return size <= STORE_FRACTION * room


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
    beside: dict[str, Sequence[ShardFile]] = {one.column: one.files for one in features}
    if views:
        beside["views"] = split.views
    reader = ShardReader(split.geometry, columns, beside, used).reporting()
    return _read(reader, order_seed=seed)


def reordered(dataset: ray.data.Dataset, *, seed: int) -> ray.data.Dataset:
    """Return the blocks of a dataset in another order each epoch."""
    import ray

    return dataset.randomize_block_order(seed=ray.data.RandomSeedConfig(seed=seed))


def tables_of(shard: ray.data.DataIterator) -> Iterator[pa.Table]:
    """The rows of a worker's shard as Arrow tables, read ahead.

    Raises:
        DataError: If a file is unreadable.
    """
    # Whole blocks: smaller batches would be copied together from their pieces.
    yield from without_problems(
        shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    )


def configure() -> None:
    """Set Ray Data up for this process: quiet, in order, blocks of 16 MiB."""
    import ray

    quiet_ray_data()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 16 * 1024 * 1024


def _read(reader: ShardReader, *, order_seed: int | None = None) -> ray.data.Dataset:
    """Lazy dataset over shards, in their order or, with a seed, in another one each epoch.

    Ray's own reader of Parquet starts 32 processes before every epoch, which read the footers of
    all files; here it is known what they hold.
    """
    import ray

    configure()
    count = len(reader.files)
    dataset = ray.data.from_arrow([pa.table({SHARD: [number]}) for number in range(count)])
    if order_seed is not None:
        dataset = reordered(dataset, seed=order_seed)  # of shards, which tasks take as they come
    kinds = (reader.files, *reader.beside.values())
    size = max(1, sum(files[0].size for files in kinds))
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    together = min(TASK_BYTES // size, count // (TASKS_A_CPU * cpus))
    return dataset.map_batches(reader, batch_format="pyarrow", batch_size=max(1, together))


def _materialize(files: Sequence[ShardFile], columns: Sequence[str]) -> list[Any]:
    """Read files into the object store.

    Raises:
        DataError: If one is unreadable.
    """
    try:
        return list(_read(ShardReader(files, columns)).materialize().to_arrow_refs())
    except DataError as error:  # the task's, whose text Ray has added to
        own = getattr(error, "cause", error)
        raise DataError(str(own).partition("\n")[0]) from error
