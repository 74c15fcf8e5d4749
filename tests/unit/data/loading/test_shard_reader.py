"""Shards read in parts: each row once, beside it what other kinds of files have of it."""

from __future__ import annotations

import pickle
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading import shard_reader
from recon_ray.data.loading.shard_cache import ShardCache
from recon_ray.data.loading.shard_reader import (
    ShardRead,
    ShardReader,
    SplitFiles,
    without_problems,
)
from recon_ray.data.loading.stream_order import Read
from recon_ray.errors import DataError

COLUMNS = ("sample_id", "points", "label")


@pytest.fixture
def copy(tiny_prepared, tmp_path) -> PreparedSet:
    """The tiny set, to be damaged; 24 training shapes in shards of 7, with pictures."""
    shutil.copytree(tiny_prepared.path, tmp_path / "set")
    return PreparedSet.open(tmp_path / "set")


def reader_of(prepared: PreparedSet, **options) -> ShardReader:
    return ShardReader(COLUMNS, ("views",), **options)


def reads(prepared: PreparedSet, *shards: int, rows: object = None) -> list[ShardRead]:
    """What is read of shards: all rows, or some."""
    split = prepared.splits["train"]
    files = SplitFiles((split.geometry, split.views))
    return [files.of(Read(n, range(split.shard_rows[n]) if rows is None else rows)) for n in shards]


@pytest.mark.parametrize("part_rows", [1, 3, 64])
def test_parts_of_any_size_hold_every_row_with_its_pictures(copy, monkeypatch, part_rows):
    monkeypatch.setattr(shard_reader, "PART_ROWS", part_rows)
    parts = list(reader_of(copy)(reads(copy, 0, 1, 2, 3)))
    assert max(map(len, parts)) == min(part_rows, 7)
    found = pa.concat_tables(parts)
    expected = copy.read("train", COLUMNS, views=True).select(found.column_names)
    assert found.cast(expected.schema).equals(expected)


@pytest.mark.parametrize("group", [1, 2, 3, 64])
@pytest.mark.parametrize("rows", [range(3, 7), range(2, 3), np.array([0, 5]), np.array([4, 6])])
def test_some_rows_are_read_whatever_the_row_groups(copy, monkeypatch, group, rows):
    monkeypatch.setattr(shard_reader, "PART_ROWS", 2)
    split = copy.splits["train"]
    expected = copy.read("train", COLUMNS, views=True).slice(7, 7).take(np.asarray(rows))
    for path, size in ((split.geometry[1], group), (split.views[1], 2)):
        pq.write_table(pq.read_table(path), path, row_group_size=size)
    found = pa.concat_tables(reader_of(copy)(reads(copy, 1, rows=rows)))
    assert found.select(expected.column_names).to_pylist() == expected.to_pylist()


def test_kinds_may_be_written_in_row_groups_of_different_sizes(copy):
    path = copy.splits["train"].views[0]
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2)
    found = pa.concat_tables(reader_of(copy)(reads(copy, 0)))
    assert found["views"].to_pylist() == table["views"].to_pylist()


def test_a_cache_is_read_in_place_of_the_files_and_may_lose_a_copy(copy, tmp_path, monkeypatch):
    cache = ShardCache(tmp_path / "cache", 10**6)
    expected = pa.concat_tables(reader_of(copy)(reads(copy, 0)))
    assert pa.concat_tables(reader_of(copy, cache=cache)(reads(copy, 0))).equals(expected)
    path = copy.splits["train"].geometry[0]
    content = path.read_bytes()
    path.write_bytes(b"not read")
    assert pa.concat_tables(reader_of(copy, cache=cache)(reads(copy, 0))).equals(expected)
    path.write_bytes(content)
    monkeypatch.setattr(ShardCache, "copy_of", lambda cache, file: tmp_path / "evicted")
    assert pa.concat_tables(reader_of(copy, cache=cache)(reads(copy, 0))).equals(expected)


def test_what_cannot_be_read_is_named(copy):
    geometry, views = copy.splits["train"].geometry, copy.splits["train"].views
    pq.write_table(pq.read_table(views[0]).slice(1), views[0])
    with pytest.raises(DataError, match=f"{views[0]}: its sample ids are not those of "):
        list(reader_of(copy)(reads(copy, 0)))
    with pytest.raises(DataError, match=f"{geometry[3]}: has fewer rows than the manifest"):
        list(reader_of(copy)(reads(copy, 3, rows=range(8))))
    geometry[1].write_bytes(b"PAR1" + bytes(64))
    with pytest.raises(DataError, match=f"{geometry[1]}: cannot be read as Parquet; delete it"):
        list(reader_of(copy)(reads(copy, 1)))
    geometry[2].unlink()
    with pytest.raises(DataError, match=f"{geometry[2]}: the shard is missing"):
        list(reader_of(copy)(reads(copy, 2)))
    with pytest.raises(DataError, match=r"has no column 'part_labels'"):
        list(ShardReader(["part_labels"])([ShardRead((geometry[3],), range(1))]))


def test_a_stream_hears_of_what_cannot_be_read_from_a_row(copy):
    (first,) = reads(copy, 0)
    reader = reader_of(copy).reporting(first.files)
    assert len(pickle.dumps(partial(reader, [first] * 5))) < 10_000
    expected = copy.read("train", COLUMNS, views=True)
    found = pa.concat_tables(without_problems(reader(reads(copy, 0, 1, 2, 3))))
    assert found.select(expected.column_names).to_pylist() == expected.to_pylist()
    damaged = copy.splits["train"].views[1]
    damaged.write_bytes(b"PAR1" + bytes(64))
    blocks = pa.concat_tables(reader(reads(copy, 0, 1, 2)))  # of one schema, as Ray puts them
    assert len(blocks) == 7 + 1 + 7
    with pytest.raises(DataError, match=f"{damaged}: cannot be read as Parquet; delete it"):
        list(without_problems([blocks.slice(0, 5), blocks.slice(5)]))
