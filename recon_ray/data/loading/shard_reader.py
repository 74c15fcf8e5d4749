"""Reader of the shards of a split for the tasks of a stream, without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from recon_ray.data.format.files import AGAIN, Where, read_parts, read_schema
from recon_ray.data.format.schema import points_to_numpy, tensor_column
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.loading.shard_cache import ShardCache
from recon_ray.data.loading.stream_order import ALIGNED, Read
from recon_ray.errors import DataError
from recon_ray.storage import Place

#: The column of error messages; null in all rows that could be read.
PROBLEM = "problem"
#: Rows of a table; as many as a row group of the shards that this package writes.
PART_ROWS = ALIGNED


class ShardRead(NamedTuple):
    """Rows of one shard, and its files: all that a task has to know of it.

    Attributes:
        files: Its file of each kind.
        rows: Numbers of the rows in the shard, ascending.
    """

    files: tuple[ShardFile, ...]
    rows: range | np.ndarray


@dataclass(frozen=True)
class SplitFiles:
    """Files of a split of the kinds that are read together, in one order.

    Args:
        kinds: Files of each kind.
    """

    kinds: tuple[Sequence[ShardFile], ...]

    def __len__(self) -> int:
        return len(self.kinds[0])

    def of(self, read: Read, *, is_first: bool = True) -> ShardRead:
        """Return what is read with the files that it is read from.

        Args:
            read: What is read.
            is_first: Whether the run reads the shard for the first time; later no hash is compared.
        """
        files = (files[read.shard] for files in self.kinds)
        return ShardRead(
            tuple(f if is_first else replace(f, check=False) for f in files), read.rows
        )


@dataclass(frozen=True)
class ShardReader:
    """Reader of the rows of shards, which have one file of each kind; small and picklable.

    Args:
        columns: Columns of the files of the first kind.
        beside: Column that is read from the files of each other kind.
        cache: Copies of the files on this node, if any.
        schema: Set by :meth:`reporting`.
    """

    columns: Sequence[str]
    beside: Sequence[str] = ()
    cache: ShardCache | None = None
    schema: pa.Schema | None = field(default=None, repr=False)

    def reporting(self, files: Sequence[ShardFile]) -> ShardReader:
        """Return a reader that puts errors into rows, see :func:`without_problems`.

        For an exception in a task, Ray prints pages of tracebacks.

        Args:
            files: Files of one shard, of which the schema is read.

        Raises:
            DataError: If they are unreadable.
        """
        fields = list(read_schema(files[0], self.columns))
        for name, file in zip(self.beside, files[1:], strict=True):
            fields += read_schema(file, [name])
        return replace(self, schema=pa.schema([*fields, pa.field(PROBLEM, pa.string())]))

    def __call__(self, reads: Iterable[ShardRead]) -> Iterator[pa.Table]:
        """Read rows of shards, one shard after the other, in parts of a few rows.

        Raises:
            DataError: If a file is unreadable or has other rows than it should, or the kinds do
                not hold the same samples.
        """
        for read in reads:
            rows = self._rows(read)
            yield from rows if self.schema is None else _with_problems(rows, self.schema)

    def _rows(self, read: ShardRead) -> Iterator[pa.Table]:
        first = int(read.rows[0]) // PART_ROWS
        parts = self._parts(read.files[0], self.columns, first)
        for name, file in zip(self.beside, read.files[1:], strict=True):
            more = self._parts(file, ["sample_id", name], first)
            parts = _with_column(parts, more, name, read.files[0], file)
        wanted, row, taken = np.asarray(read.rows), first * PART_ROWS, 0
        for part in parts:
            end = int(np.searchsorted(wanted, row + len(part)))
            if end - taken == len(part):
                yield part
            elif end > taken:
                yield take_rows(part, wanted[taken:end] - row)
            row, taken = row + len(part), end
            if taken == len(wanted):
                return
        raise DataError(f"{read.files[0]}: has fewer rows than the manifest of its set; {AGAIN}")

    def _parts(self, file: ShardFile, columns: Sequence[str], first: int) -> Iterator[pa.Table]:
        """Read a file, or the copy of it on this node."""
        copy: Where = file if self.cache is None else self.cache.copy_of(file)
        parts = read_parts(copy, columns, PART_ROWS, first=first)
        try:
            head = next(parts, None)
        except DataError as error:
            if copy is file or not isinstance(error.__cause__, FileNotFoundError):
                raise
            parts = read_parts(file, columns, PART_ROWS, first=first)  # evicted meanwhile
            head = next(parts, None)
        if head is not None:
            yield head
        yield from parts


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Copy ascending rows of a table; Arrow itself takes tensors number by number."""
    start, parts = 0, []
    for batch in table.to_batches():
        low, high = np.searchsorted(rows, (start, start + len(batch)))
        local, start = rows[low:high] - start, start + len(batch)
        if not len(local):
            continue
        columns = [
            tensor_column(points_to_numpy(column)[local])
            if isinstance(column.type, pa.FixedShapeTensorType)
            else column.take(pa.array(local))
            for column in batch.columns
        ]
        parts.append(pa.RecordBatch.from_arrays(columns, schema=batch.schema))
    return pa.Table.from_batches(parts, table.schema)


def without_problems(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables of a reporting reader without their column of errors.

    Raises:
        DataError: With the first error in them.
    """
    for table in tables:
        problems = table[PROBLEM].drop_null()
        if len(problems):
            raise DataError(problems[0].as_py())
        yield table.drop_columns([PROBLEM])


def _with_problems(rows: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    try:
        for table in rows:
            yield table.append_column(schema.field(PROBLEM), pa.nulls(len(table), pa.string()))
    except DataError as error:
        values = [pa.nulls(1, column.type) for column in schema][:-1]
        yield pa.Table.from_arrays([*values, pa.array([str(error)])], schema=schema)


def _with_column(
    parts: Iterator[pa.Table], more: Iterator[pa.Table], name: str, path: Place, other: Place
) -> Iterator[pa.Table]:
    """Add a column of the file of another kind."""
    for part in parts:
        beside = next(more, None)
        if beside is None or not beside["sample_id"].equals(part["sample_id"]):
            raise DataError(f"{other}: its sample ids are not those of {path}; {AGAIN}")
        yield part.append_column(beside.schema.field(name), beside[name])
