"""Samples of a source as columns, which take a tenth of the memory of as many objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recon_ray.data.format.files import is_text
from recon_ray.data.sources.base import Item
from recon_ray.errors import DataError

#: Columns in the order of the attributes of an item.
SCHEMA = pa.schema(
    {
        "object_id": pa.large_string(),
        "split": pa.dictionary(pa.int32(), pa.string()),
        "category": pa.dictionary(pa.int32(), pa.string()),
        "label": pa.int32(),
        # Bytes: an odd file name, or half a surrogate pair in a caption, is no UTF-8, and is
        # refused when its sample is read, alone.
        "caption": pa.large_binary(),
        "file": pa.large_binary(),
        "images": pa.large_list(pa.large_binary()),
        "size_bytes": pa.int64(),
    }
)
#: Items that are Python objects at once.
AT_ONCE = 4096


class Items(Sequence[Item]):
    """Items in the columns of :data:`SCHEMA`; an item is made when it is asked for.

    Args:
        table: The columns.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """Return items as columns; of a generator only a few are objects at once.

        Raises:
            DataError: If a name is not UTF-8 text.
        """
        if isinstance(items, Items):
            return items
        left, parts = iter(items), [SCHEMA.empty_table()]
        while chosen := list(islice(left, AT_ONCE)):
            _check_names(chosen, left)
            columns = {name: [getattr(item, name) for item in chosen] for name in SCHEMA.names}
            parts.append(pa.table({k: _column(k, v) for k, v in columns.items()}, schema=SCHEMA))
        return cls(pa.concat_tables(parts).unify_dictionaries().combine_chunks())

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Items: ...

    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        return next(iter(Items(self.table.slice(range(len(self))[index], 1))))

    def __iter__(self) -> Iterator[Item]:
        for rows in self.table.to_batches(max_chunksize=AT_ONCE):
            for row in rows.to_pylist():
                texts = {name: _text(row[name]) for name in ("caption", "file")}
                yield Item(**{**row, **texts, "images": tuple(map(_text, row["images"]))})

    def take(self, rows: np.ndarray) -> Items:
        """Return the items of some rows."""
        return Items(self.table.take(pa.array(rows, pa.int64())))

    def splits(self) -> dict[str, np.ndarray]:
        """Return the rows of every split."""
        codes = self.table["split"].combine_chunks()
        numbers = np.asarray(codes.indices)
        names = codes.dictionary.to_pylist()
        rows = {name: np.flatnonzero(numbers == code) for code, name in enumerate(names)}
        return {name: found for name, found in rows.items() if len(found)}

    def by_object_id(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows in the order of their object ids."""
        ids = self.table["object_id"].take(pa.array(rows, pa.int64()))
        return rows[np.asarray(pc.sort_indices(ids))]

    def repeated(self) -> tuple[Item, Item] | None:
        """Return two items of one object id, if there are any."""
        ids = self.table["object_id"]
        if pc.count_distinct(ids).as_py() == len(ids):
            return None
        order = np.asarray(pc.sort_indices(ids))
        sorted_ids = ids.take(pa.array(order))
        same = pc.equal(sorted_ids[:-1], sorted_ids[1:])
        at = int(np.flatnonzero(np.asarray(same))[0])
        first, second = sorted(order[at : at + 2].tolist())
        return self[first], self[second]

    def digest(self, classes: Sequence[str]) -> str:
        """Return the hash of all items in the order of their ids, and of the classes.

        It is that of the JSON ``{"classes": [...], "items": [{...}, ...]}`` with sorted keys.
        """
        found = hashlib.sha256(f'{{"classes": {json.dumps(list(classes))}, "items": ['.encode())
        ordered = self.by_object_id(np.arange(len(self)))
        for start in range(0, len(ordered), AT_ONCE):
            chosen = self.take(ordered[start : start + AT_ONCE])
            text = ", ".join(json.dumps(asdict(item), sort_keys=True) for item in chosen)
            found.update(f"{', ' if start else ''}{text}".encode())
        found.update(b"]}")
        return found.hexdigest()

    def relabeled(self, labels: np.ndarray) -> Items:
        """Return the items with ``labels[label]`` for each label; -1 stays."""
        found = self.table["label"].to_numpy()
        changed = np.append(labels, np.int32(-1))[found].astype(np.int32)
        place = SCHEMA.get_field_index("label")
        return Items(self.table.set_column(place, SCHEMA.field(place), pa.array(changed)))

    def named(self, object_ids: Iterable[str]) -> Items:
        """Return the items of some object ids."""
        names = pa.array(list(object_ids), pa.large_string())
        return Items(self.table.filter(pc.is_in(self.table["object_id"], value_set=names)))

    def with_sizes(self, sizes: Mapping[str, int]) -> tuple[Items, dict[str, tuple[int, int]]]:
        """Return the items with other sizes by object id, and ``{id: (size, size before)}``."""
        if not sizes:
            return self, {}
        known = pc.is_in(
            self.table["object_id"], value_set=pa.array(list(sizes), pa.large_string())
        )
        values = self.table["size_bytes"].to_numpy().copy()
        changed = {}
        for row in np.flatnonzero(np.asarray(known)):
            name, before = self.table["object_id"][row].as_py(), int(values[row])
            values[row] = sizes[name]
            if sizes[name] != before:
                changed[name] = (sizes[name], before)
        place = SCHEMA.get_field_index("size_bytes")
        table = self.table.set_column(place, SCHEMA.field(place), pa.array(values, pa.int64()))
        return Items(table), changed


def _check_names(chosen: Sequence[Item], left: Iterator[Item]) -> None:
    unwritable = [item for item in chosen if not is_text(item.object_id + item.category)]
    if not unwritable:
        return
    unwritable += [item for item in left if not is_text(item.object_id + item.category)]
    name = unwritable[0].file or unwritable[0].object_id
    more = f" and {len(unwritable) - 1} more" if len(unwritable) > 1 else ""
    raise DataError(
        f"{name!a}{more}: the name is not UTF-8 text, which the prepared set needs; rename it, "
        "for example with convmv -f latin1 -t utf8 -r --notest <folder>"
    )


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    kind = SCHEMA.field(name).type
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode()
    if kind == pa.large_binary():
        values = [_bytes(value) for value in values]
    elif pa.types.is_large_list(kind):
        values = [[_bytes(value) for value in row] for row in values]
    return pa.array(values, kind)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(content: bytes) -> str:
    return content.decode(errors="surrogatepass")
