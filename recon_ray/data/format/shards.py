"""Shards of a prepared set as columns: a few dozen bytes a shard, whatever their number.

A manifest of version 3 has them in Parquet files beside it, a row a shard; in the older ones they
are lists in its JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recon_ray.data.format.schema import KINDS
from recon_ray.storage import Place

#: Columns of a shard table, besides ``<kind>_bytes`` and ``<kind>_sha256`` of each kind of files.
COLUMNS = {
    "split": pa.string(),
    "name": pa.string(),
    "rows": pa.int64(),
    "min_sample_id": pa.int64(),
    "max_sample_id": pa.int64(),
}


@dataclass(frozen=True)
class ShardFile(Place):
    """A file of a shard.

    Attributes:
        size: Its bytes; -1 if they are not recorded.
        sha256: Its SHA-256 in hexadecimal digits, empty if it is not recorded.
        check: Compare it whenever the file is read.
    """

    size: int = -1
    sha256: str = ""
    check: bool = False


class ShardFiles(Sequence[ShardFile]):
    """Files of one kind, in the order of the shards; an item is made when it is asked for.

    Args:
        table: Columns ``folder``, ``name``, ``size`` and ``sha256`` (binary).
        check: Compare the SHA-256 of a file whenever it is read.
    """

    def __init__(self, table: pa.Table, *, check: bool = False) -> None:
        self.table = table
        self.check = check

    @classmethod
    def of(cls, folder: Place, shards: pa.Table, kind: str) -> ShardFiles:
        """Return those of a kind in a folder, of a shard table."""
        folders = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(shards), np.int32)), pa.array([str(folder)], pa.string())
        )
        columns = [folders, shards["name"], shards[f"{kind}_bytes"], shards[f"{kind}_sha256"]]
        return cls(pa.table(columns, names=["folder", "name", "size", "sha256"]))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return int(pc.sum(self.table["size"]).as_py() or 0)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> ShardFile: ...

    @overload
    def __getitem__(self, index: slice) -> ShardFiles: ...

    def __getitem__(self, index: int | slice) -> ShardFile | ShardFiles:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return ShardFiles(self.table.slice(start, max(0, stop - start)), check=self.check)
            rows = pa.array(range(start, stop, step), pa.int64())
            return ShardFiles(self.table.take(rows), check=self.check)
        row = self.table.slice(range(len(self))[index], 1)
        folder, name, size, digest = (column[0].as_py() for column in row.columns)
        return ShardFile(str(Place(folder) / name), size, digest.hex(), self.check)

    def __iter__(self) -> Iterator[ShardFile]:
        for rows in self.table.to_batches(max_chunksize=4096):
            for row in rows.to_pylist():
                place = Place(row["folder"]) / row["name"]
                yield ShardFile(str(place), row["size"], row["sha256"].hex(), self.check)


def joined_files(
    parts: Sequence[Sequence[ShardFile]], *, check: bool = False
) -> Sequence[ShardFile]:
    """Return the files of several splits, which follow each other; empty ones have none."""
    found = [part for part in parts if isinstance(part, ShardFiles)]
    if len(found) < sum(len(part) > 0 for part in parts):
        return tuple(file for part in parts for file in part)
    if not found:
        return ()
    table = pa.concat_tables([part.table for part in found]).unify_dictionaries()
    return ShardFiles(table, check=check or any(part.check for part in found))


def shard_schema(kinds: Sequence[str]) -> pa.Schema:
    """Return the columns of the shard table of a set that has some kinds of files."""
    fields = [pa.field(name, kind) for name, kind in COLUMNS.items()]
    for kind in kinds:
        fields += [
            pa.field(f"{kind}_bytes", pa.int64()),
            pa.field(f"{kind}_sha256", pa.binary(32)),
        ]
    return pa.schema(fields)


def shards_of_json(splits: Mapping[str, Any]) -> pa.Table:
    """Return the shard table of a manifest of version 1 or 2.

    Raises:
        KeyError: If an entry is missing (also TypeError, ValueError: another kind of value).
    """
    entries = [(split, shard) for split, entry in splits.items() for shard in entry["shards"]]
    kinds = [kind for kind in KINDS if any(shard.get(kind) is not None for _, shard in entries)]
    columns: dict[str, list[Any]] = {name: [] for name in shard_schema(kinds).names}
    for split, shard in entries:
        name = shard[KINDS[0]]["file"].rpartition("/")[2]
        row = {"split": split, "name": name, **shard}
        for kind in kinds:
            file = shard[kind]
            if file["file"] != f"{kind}/{split}/{name}":
                raise ValueError(f"{file['file']} is not {kind}/{split}/{name}")
            row[f"{kind}_bytes"] = file["bytes"]
            row[f"{kind}_sha256"] = bytes.fromhex(file["sha256"])
        for column, values in columns.items():
            values.append(row[column])
    return pa.table(columns, schema=shard_schema(kinds))
