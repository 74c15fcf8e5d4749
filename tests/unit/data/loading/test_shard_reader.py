"""Shards read in parts: each row once, beside it what other kinds of files have of it."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading import shard_reader
from recon_ray.data.loading.shard_reader import ShardReader, without_problems
from recon_ray.errors import DataError

COLUMNS = ("sample_id", "points", "label")


@pytest.fixture
def copy(tiny_prepared, tmp_path) -> PreparedSet:
    """The tiny set, to be damaged; 24 training shapes in shards of 7, with pictures."""
    shutil.copytree(tiny_prepared.path, tmp_path / "set")
    return PreparedSet.open(tmp_path / "set")


def reader_of(prepared: PreparedSet, **options) -> ShardReader:
    split = prepared.splits["train"]
    return ShardReader(split.geometry, COLUMNS, {"views": split.views}, **options)


def shards(*numbers: int) -> pa.Table:
    return pa.table({"shard": list(numbers)})


@pytest.mark.parametrize("part_rows", [1, 3, 64])
def test_parts_of_any_size_hold_every_row_with_its_pictures(copy, monkeypatch, part_rows):
    monkeypatch.setattr(shard_reader, "PART_ROWS", part_rows)
    parts = list(reader_of(copy)(shards(0, 1, 2, 3)))
    assert max(map(len, parts)) == min(part_rows, 7)
    found = pa.concat_tables(parts)
    expected = copy.read("train", COLUMNS, views=True).select(found.column_names)
    assert found.cast(expected.schema).equals(expected)


def test_kinds_may_be_written_in_row_groups_of_different_sizes(copy):
    path = copy.splits["train"].views[0]
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2)
    found = pa.concat_tables(reader_of(copy)(shards(0)))
    assert found["views"].to_pylist() == table["views"].to_pylist()


def test_rows_that_an_epoch_has_used_are_left_out(copy):
    used = np.zeros(12, dtype=np.uint8)  # a row that is not in it was not used
    used[[0, 3, 8]] = 1
    whole = pa.concat_tables(reader_of(copy)(shards(0, 1)))
    rest = pa.concat_tables(reader_of(copy, used=used)(shards(0, 1)))
    kept = [i not in (0, 3, 8) for i in whole["sample_id"].to_pylist()]
    assert not all(kept)
    assert rest.equals(whole.filter(pa.array(kept)))


def test_what_cannot_be_read_is_named(copy):
    geometry, views = copy.splits["train"].geometry, copy.splits["train"].views
    pq.write_table(pq.read_table(views[0]).slice(1), views[0])
    with pytest.raises(DataError, match=f"{views[0]}: its sample ids are not those of "):
        list(reader_of(copy)(shards(0)))
    geometry[1].write_bytes(b"PAR1" + bytes(64))
    with pytest.raises(DataError, match=f"{geometry[1]}: cannot be read as Parquet; delete it"):
        list(reader_of(copy)(shards(1)))
    geometry[2].unlink()
    with pytest.raises(DataError, match=f"{geometry[2]}: the shard is missing"):
        list(reader_of(copy)(shards(2)))
    with pytest.raises(DataError, match=r"has no column 'part_labels'"):
        list(ShardReader(geometry[:1], ["part_labels"])(shards(0)))


def test_a_stream_hears_of_what_cannot_be_read_from_a_row(copy):
    reader = reader_of(copy).reporting()
    expected = copy.read("train", COLUMNS, views=True)
    found = pa.concat_tables(without_problems(reader(shards(0, 1, 2, 3))))
    assert found.select(expected.column_names).to_pylist() == expected.to_pylist()
    damaged = copy.splits["train"].views[1]
    damaged.write_bytes(b"PAR1" + bytes(64))
    blocks = pa.concat_tables(reader(shards(0, 1, 2)))  # of one schema, as Ray puts them together
    assert len(blocks) == 7 + 1 + 7
    with pytest.raises(DataError, match=f"{damaged}: cannot be read as Parquet; delete it"):
        list(without_problems([blocks.slice(0, 5), blocks.slice(5)]))
