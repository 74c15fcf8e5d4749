"""Columns, types and sizes of the Parquet files."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon_ray.data.format.files import parquet_bytes, read_parts, read_schema, read_table
from recon_ray.data.format.schema import (
    Layout,
    packed,
    points_to_numpy,
    tensor_column,
    unpacked,
)
from recon_ray.errors import DataError


def _clouds(count: int, num_points: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, num_points, 3)).astype(dtype)


def _table(points: np.ndarray) -> pa.Table:
    count = len(points)
    columns = {
        "sample_id": np.arange(count),
        "object_id": [f"o{i}" for i in range(count)],
        "label": np.zeros(count, np.int32),
        "category": ["a"] * count,
        "caption": [""] * count,
        "points": tensor_column(points),
        "part_labels": tensor_column(
            np.arange(points[..., 0].size, dtype=np.uint8).reshape(count, -1)
        ),
    }
    layout = Layout(points.shape[1], points.dtype.name, part_labels=True)
    return pa.table(columns, schema=layout.schemas()["geometry"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_points_survive_a_round_trip_with_their_shape_and_type(dtype, tmp_path):
    points = _clouds(9, 17, dtype)
    path = tmp_path / "part.parquet"
    path.write_bytes(parquet_bytes(_table(points)))
    table = read_table(path, None)
    assert table.schema.equals(_table(points).schema)
    assert table.equals(_table(points))
    assert read_schema(path, table.column_names).equals(table.schema)
    back = points_to_numpy(table["points"])
    assert back.shape == (9, 17, 3)
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, points)
    assert pa.concat_tables(read_parts(path, table.column_names, 4)).equals(table)


def test_any_reader_of_parquet_gets_bytes_and_what_they_are():
    points = _clouds(3, 5)
    stored = pq.read_table(io.BytesIO(parquet_bytes(_table(points))))
    assert stored.schema.field("points").type == pa.binary(5 * 3 * 4)
    tensor = json.loads(stored.schema.field("points").metadata[b"tensor"])
    assert tensor == {"dtype": "float32", "shape": [5, 3]}
    rows = stored.to_pandas()["points"]
    back = [np.frombuffer(row, tensor["dtype"]).reshape(tensor["shape"]) for row in rows]
    np.testing.assert_array_equal(back, points)


def test_files_of_version_1_are_read_as_those_of_version_2(tmp_path):
    table = _table(_clouds(6, 7))
    nullable = pa.table({"sample_id": table["sample_id"], "points": table["points"]})
    for rows in (table, nullable):
        pq.write_table(rows, tmp_path / "old.parquet")  # lists of numbers
        (tmp_path / "new.parquet").write_bytes(parquet_bytes(rows))
        old, new = (read_table(tmp_path / f"{name}.parquet", None) for name in ("old", "new"))
        assert old.equals(rows)
        assert pa.concat_tables([old, new]).slice(len(rows)).equals(rows)
    pq.write_table(table, tmp_path / "old.parquet")
    assert read_schema(tmp_path / "old.parquet", ["points"]).equals(table.select(["points"]).schema)


@pytest.mark.parametrize("part", [slice(0, 0), slice(2, 5), slice(5, None)])
def test_slices_and_chunks_are_packed_without_their_neighbors(part):
    table = _table(_clouds(7, 3))
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    expected = table.take(pa.array(list(range(7))[part], pa.int64()))
    for whole in (table, chunked):
        some = whole.slice(*_start_and_length(part))
        stored = pq.read_table(io.BytesIO(parquet_bytes(some)))
        assert unpacked(stored).combine_chunks().equals(expected.combine_chunks())
        assert unpacked(packed(some).slice(1)).equals(some.slice(1))


def _start_and_length(part: slice) -> tuple[int, int]:
    start, stop, _ = part.indices(7)
    return start, stop - start


def test_nothing_is_copied_and_chunked_single_and_empty_columns_agree():
    table = _table(_clouds(5, 4))
    back = unpacked(packed(table))
    for name in ("points", "part_labels"):
        before, after = (points_to_numpy(one[name]) for one in (table, back))
        assert np.shares_memory(before, after)
    points = _clouds(6, 4)
    column = tensor_column(points)
    chunked = pa.chunked_array([column[:2], column[2:]])
    np.testing.assert_array_equal(points_to_numpy(chunked), points)
    np.testing.assert_array_equal(points_to_numpy(column), points)
    assert points_to_numpy(column[:0]).shape == (0, 4, 3)
    assert points_to_numpy(chunked[:0]).shape == (0, 4, 3)


def test_a_changed_byte_of_the_numbers_is_found_when_they_are_read(tmp_path):
    points = _clouds(4, 64)
    content = bytearray(parquet_bytes(_table(points)))
    at = bytes(content).index(points[2].tobytes())  # not compressed
    content[at + 100] ^= 1
    path = tmp_path / "part.parquet"
    path.write_bytes(content)
    assert read_table(path, ["label"])["label"].to_pylist() == [0] * 4
    with pytest.raises(DataError, match=r"part.parquet: cannot be read as Parquet; delete it"):
        read_table(path, ["points"])
    with pytest.raises(DataError, match=r"part.parquet: cannot be read as Parquet; delete it"):
        list(read_parts(path, ["points"], 2))


def test_files_are_about_as_large_as_the_numbers():
    points = _clouds(256, 512)
    table = _table(points).drop_columns(["part_labels"])  # which zstd makes small
    # The default writer (snappy, dictionary, lists) gives 1.10 of the size of the numbers.
    assert len(parquet_bytes(table)) < 1.01 * points.nbytes
    assert len(parquet_bytes(_table(points))) < 1.02 * points.nbytes
