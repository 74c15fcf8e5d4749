"""Parquet columns and writer options of a prepared set (schema version 1).

Points are ``arrow.fixed_shape_tensor`` columns, which keep their (N, 3) shape in every reader that
knows the canonical extension type. Dictionary encoding is on for strings only: on float data it
makes the files larger than the raw numbers; byte-stream-split and zstd-1 make them 15 % smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
MANIFEST = "_manifest.json"  # its presence makes a folder a complete set
ROW_GROUP_SIZE = 64
STRING_COLUMNS = ("object_id", "category", "caption")
POINT_DTYPES = ("float32", "float16")


def point_type(num_points: int, dtype: str = "float32") -> pa.DataType:
    """Give the Arrow type of an (N, 3) column.

    Args:
        num_points: N, the points of every sample.
        dtype: Name of the element type: float32, float16 or uint8.
    """
    return pa.fixed_shape_tensor(pa.type_for_alias(dtype), (num_points, 3))


def geometry_schema(
    num_points: int, dtype: str = "float32", *, normals: bool = False, colors: bool = False
) -> pa.Schema:
    """Give the columns of the ``geometry`` files.

    Args:
        num_points: N, the points of every sample.
        dtype: float32 or float16, the type of ``points`` and ``normals``.
        normals: Add unit normals (N, 3).
        colors: Add colors (N, 3), uint8 sRGB.
    """
    fields = [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("points", point_type(num_points, dtype), nullable=False),
    ]
    if normals:
        fields.append(pa.field("normals", point_type(num_points, dtype), nullable=False))
    if colors:
        fields.append(pa.field("colors", point_type(num_points, "uint8"), nullable=False))
    return pa.schema(fields)


def views_schema() -> pa.Schema:
    """Give the columns of the ``views`` files: the id and the encoded pictures of each sample."""
    return pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("views", pa.list_(pa.binary()), nullable=False),
        ]
    )


def write_options(schema: pa.Schema) -> dict[str, Any]:
    """Give the options of ``pyarrow.parquet.write_table`` for one of the schemas above."""
    floats = [
        f"{field.name}.list.element"
        for field in schema
        if isinstance(field.type, pa.FixedShapeTensorType)
        and pa.types.is_floating(field.type.value_type)
    ]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name in STRING_COLUMNS if name in schema.names],
        "use_byte_stream_split": floats,
        "row_group_size": ROW_GROUP_SIZE,
    }


def tensor_column(values: np.ndarray) -> pa.FixedShapeTensorArray:
    """Wrap an array as a fixed-shape tensor column.

    Args:
        values: (B, N, 3) array.
    """
    shape = values.shape[1:]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    kind = pa.fixed_shape_tensor(flat.type, shape)
    return pa.ExtensionArray.from_storage(kind, storage)


def points_to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Give a fixed-shape tensor column as one array.

    Args:
        column: A column of (N, 3) tensors, in one chunk or several.

    Returns:
        (B, N, 3) in the stored type; may be a read-only view of Arrow's memory: copy to write.
    """
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 1:
            column = column.chunk(0)
        elif column.num_chunks == 0 or len(column) == 0:
            shape = tuple(column.type.shape)
            return np.empty((0, *shape), column.type.value_type.to_pandas_dtype())
        else:
            return np.concatenate(
                [chunk.to_numpy_ndarray() for chunk in column.chunks if len(chunk)]
            )
    if len(column) == 0:
        return np.empty((0, *column.type.shape), column.type.value_type.to_pandas_dtype())
    return column.to_numpy_ndarray()
