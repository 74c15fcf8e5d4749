"""Reader of the shards of a split for the tasks of a stream, without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from recon_ray.data.format.files import AGAIN, read_parts, read_schema
from recon_ray.data.format.shards import ShardFile
from recon_ray.errors import DataError
from recon_ray.storage import Place

#: The column of a task's input: numbers of shards.
SHARD = "shard"
#: The column of error messages; null in all rows that could be read.
PROBLEM = "problem"
#: Rows of a table; as many as a row group of the shards that this package writes.
PART_ROWS = 64


@dataclass(frozen=True)
class ShardReader:
    """Reader of the rows of shards, which have one file of each kind.

    Args:
        files: Files of the first kind.
        columns: Columns of them.
        beside: Columns of other kinds, and their files.
        used: (S,) uint8 over sample ids, 1 where a row is left out.
        schema: Set by :meth:`reporting`.
    """

    files: Sequence[ShardFile]
    columns: Sequence[str]
    beside: Mapping[str, Sequence[ShardFile]] = field(default_factory=dict)
    used: np.ndarray | None = None
    schema: pa.Schema | None = None

    def reporting(self) -> ShardReader:
        """Return a reader that puts errors into rows, see :func:`without_problems`.

        For an exception in a task, Ray prints pages of tracebacks.

        Raises:
            DataError: If the files of the first shard are unreadable.
        """
        fields = list(read_schema(self.files[0], self.columns))
        for name, files in self.beside.items():
            fields += read_schema(files[0], [name])
        return replace(self, schema=pa.schema([*fields, pa.field(PROBLEM, pa.string())]))

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """Read shards one after the other, in parts of a few rows.

        Args:
            shards: Their numbers, in column :data:`SHARD`.

        Raises:
            DataError: If a file is unreadable, or the kinds do not hold the same samples.
        """
        for shard in shards[SHARD].to_pylist():
            rows = self._rows(shard)
            yield from rows if self.schema is None else _with_problems(rows, self.schema)

    def _rows(self, shard: int) -> Iterator[pa.Table]:
        parts = read_parts(self.files[shard], self.columns, PART_ROWS)
        for name, files in self.beside.items():
            parts = _with_column(parts, self.files[shard], name, files[shard])
        return map(self._unused, parts)

    def _unused(self, table: pa.Table) -> pa.Table:
        if self.used is None:
            return table
        ids = table["sample_id"].to_numpy()
        known = ids < len(self.used)
        fresh = ~known
        fresh[known] = self.used[ids[known]] == 0
        return table.filter(pa.array(fresh))


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
    parts: Iterator[pa.Table], path: Place, name: str, other: Place
) -> Iterator[pa.Table]:
    """Add a column of the file of another kind."""
    more = read_parts(other, ["sample_id", name], PART_ROWS)
    for part in parts:
        beside = next(more, None)
        if beside is None or not beside["sample_id"].equals(part["sample_id"]):
            raise DataError(f"{other}: its sample ids are not those of {path}; {AGAIN}")
        yield part.append_column(beside.schema.field(name), beside[name])
