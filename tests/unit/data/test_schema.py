"""Columns, types and sizes of the Parquet files."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon_ray.data.schema import (
    Layout,
    geometry_schema,
    points_to_numpy,
    tensor_column,
    write_options,
)


def _write(points: np.ndarray) -> bytes:
    count = len(points)
    schema = geometry_schema(Layout(points.shape[1], points.dtype.name))
    table = pa.table(
        {
            "sample_id": np.arange(count),
            "object_id": [f"o{i}" for i in range(count)],
            "label": np.zeros(count, np.int32),
            "category": ["a"] * count,
            "caption": [""] * count,
            "points": tensor_column(points),
        },
        schema=schema,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, **write_options(schema))
    return sink.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_points_survive_a_round_trip_with_their_shape_and_type(dtype):
    points = np.random.default_rng(0).normal(size=(9, 17, 3)).astype(dtype)
    table = pq.read_table(io.BytesIO(_write(points)))
    assert isinstance(table.schema.field("points").type, pa.FixedShapeTensorType)
    back = points_to_numpy(table["points"])
    assert back.shape == (9, 17, 3)
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, points)


def test_pandas_reads_the_same_values():
    points = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    frame = pq.read_table(io.BytesIO(_write(points))).to_pandas()
    back = np.stack(frame["points"].to_list()).reshape(3, 5, 3)
    np.testing.assert_array_equal(back, points)


def test_chunked_single_and_empty_columns_agree():
    points = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    column = tensor_column(points)
    chunked = pa.chunked_array([column[:2], column[2:]])
    np.testing.assert_array_equal(points_to_numpy(chunked), points)
    np.testing.assert_array_equal(points_to_numpy(column), points)
    assert points_to_numpy(column[:0]).shape == (0, 4, 3)
    assert points_to_numpy(chunked[:0]).shape == (0, 4, 3)


def test_files_are_well_below_the_size_of_the_raw_numbers():
    # Surface-like clouds; the default writer (snappy, dictionary) gives 1.10 of the raw size.
    points = np.random.default_rng(0).normal(size=(256, 512, 3))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    points = points.astype(np.float32)
    assert len(_write(points)) < 0.9 * points.nbytes
