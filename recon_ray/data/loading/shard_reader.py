"""The shards of a split, read as the tasks of a stream read them; knows no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from recon_ray.data.format.files import AGAIN, read_parts, read_schema
from recon_ray.errors import DataError

#: The column of a task's input: numbers of shards.
SHARD = "shard"
#: The column that says what could not be read; null in all rows that could.
PROBLEM = "problem"
#: Rows of a table; as many as a row group of the shards that this package writes.
PART_ROWS = 64


@dataclass(frozen=True)
class ShardReader:
    """Gives the rows of shards, whose files are as many of each kind.

    Args:
        files: Files of the first kind.
        columns: Columns of them.
        beside: Columns of other kinds, and the files that they lie in.
        used: (S,) uint8 over sample ids, 1 where a row is left out.
        schema: Set by :meth:`reporting`.
    """

    files: Sequence[Path]
    columns: Sequence[str]
    beside: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    used: np.ndarray | None = None
    schema: pa.Schema | None = None

    def reporting(self) -> ShardReader:
        """Return a reader that says in a row what it cannot read, see :func:`without_problems`.

        What is raised in a task instead, Ray answers with pages of tracebacks.

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
    """Return what a reporting reader has read.

    Raises:
        DataError: What it could not read.
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
    parts: Iterator[pa.Table], path: Path, name: str, other: Path
) -> Iterator[pa.Table]:
    """Add a column of the file of another kind."""
    more = read_parts(other, ["sample_id", name], PART_ROWS)
    for part in parts:
        beside = next(more, None)
        if beside is None or not beside["sample_id"].equals(part["sample_id"]):
            raise DataError(f"{other}: its sample ids are not those of {path}; {AGAIN}")
        yield part.append_column(beside.schema.field(name), beside[name])
