"""Parquet columns and writer options of a prepared set.

A set has files of up to three kinds with the same rows in the same order: ``geometry``, ``views``
(encoded pictures) and ``features`` (teacher features that the source shipped).

In memory, points and other arrays are ``arrow.fixed_shape_tensor`` columns. In a file a row of one
is its bytes: Parquet has no other fixed-size type, and lists are decoded number by number. Floats
are not compressed, which would make the files a sixth smaller, but reading slower than anything
else in a stream; pages have checksums. ``jobs/benchmark.py ingest`` compares the two ways.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 3
#: Version 1 has lists of numbers where version 2 has bytes; both list their shards in the manifest,
#: version 3 in a Parquet file beside it.
READABLE_VERSIONS = (1, 2, SCHEMA_VERSION)
MANIFEST = "_manifest.json"  # its presence makes a folder a complete set
ROW_GROUP_SIZE = 64
STRING_COLUMNS = ("object_id", "category", "caption")
POINT_DTYPES = ("float32", "float16")
KINDS = ("geometry", "views", "features")  # folders of files with the same rows in one order
#: Metadata of a field of bytes that are tensors: ``{"dtype": "float32", "shape": [N, 3]}``.
TENSOR = b"tensor"


@dataclass(frozen=True)
class Layout:
    """Columns of the files of a set.

    Attributes:
        num_points: N, the points of every sample.
        dtype: float32 or float16, the type of ``points`` and ``normals``.
        normals: Unit normals (N, 3).
        colors: Colors (N, 3), uint8 sRGB.
        part_labels: Part of every point (N,), uint8.
        valid_points: How many of the N points are real; the others repeat them.
        views: There are files of encoded pictures.
        image_features: (V, D) of the image features that the source shipped, None without them.
        text_features: (T, D) likewise.
    """

    num_points: int
    dtype: str = "float32"
    normals: bool = False
    colors: bool = False
    part_labels: bool = False
    valid_points: bool = False
    views: bool = False
    image_features: tuple[int, int] | None = None
    text_features: tuple[int, int] | None = None

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Layout:
        """Read from a manifest; those of older sets lack the newer columns."""
        features = manifest.get("features") or {}
        shapes = [None if (s := features.get(k)) is None else tuple(s) for k in ("image", "text")]
        return cls(
            int(manifest["num_points"]),
            manifest["points_dtype"],
            normals=manifest["has_normals"],
            colors=manifest["has_colors"],
            part_labels=manifest.get("has_part_labels", False),
            valid_points=manifest.get("has_valid_points", False),
            views=manifest["views"] is not None,
            image_features=shapes[0],
            text_features=shapes[1],
        )

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the columns of every kind of files: ``geometry`` and perhaps the others."""
        points = tensor_type(self.dtype, (self.num_points, 3))
        geometry = {
            "object_id": pa.string(),
            "label": pa.int32(),
            "category": pa.string(),
            "caption": pa.string(),
            "points": points,
            "normals": points if self.normals else None,
            "colors": tensor_type("uint8", (self.num_points, 3)) if self.colors else None,
            "part_labels": tensor_type("uint8", (self.num_points,)) if self.part_labels else None,
            "valid_points": pa.int32() if self.valid_points else None,
        }
        views = {"views": pa.list_(pa.binary()) if self.views else None}
        shapes = {"image_features": self.image_features, "text_features": self.text_features}
        features = {name: s and tensor_type("float16", s) for name, s in shapes.items()}
        schemas = {}
        for kind, columns in zip(KINDS, (geometry, views, features), strict=True):
            fields = [pa.field(name, t, nullable=False) for name, t in columns.items() if t]
            if fields:
                schemas[kind] = pa.schema([pa.field("sample_id", pa.int64(), False), *fields])
        return schemas


def tensor_type(dtype: str, shape: tuple[int, ...]) -> pa.DataType:
    """Return the Arrow type of rows that are float32, float16 or uint8 tensors of one shape."""
    return pa.fixed_shape_tensor(pa.type_for_alias(dtype), shape)


def write_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of ``pyarrow.parquet.write_table`` for a packed schema."""
    floats = [field.name for field in schema if _is_float_tensor(field)]
    others = [name for name in schema.names if name not in floats]  # tables of tensors are flat
    uncompressed = dict.fromkeys(floats, "none")
    return {
        "compression": {**uncompressed, **dict.fromkeys(others, "zstd")} if floats else "zstd",
        "compression_level": dict.fromkeys(others, 1) if floats else 1,
        "use_dictionary": [name for name in STRING_COLUMNS if name in schema.names],
        "row_group_size": ROW_GROUP_SIZE,
        "write_page_checksum": True,
    }


def packed(table: pa.Table) -> pa.Table:
    """Return a table as it is written: bytes in place of tensors, in the same memory."""
    return _converted(table, _packed_field, _packed_chunk)


def unpacked(table: pa.Table) -> pa.Table:
    """Return a table as it was before :func:`packed`, in the same memory."""
    return _converted(table, unpacked_field, _unpacked_chunk)


def unpacked_field(field: pa.Field) -> pa.Field:
    """Return a field of tensors for a field of their bytes; other fields unchanged."""
    stored = (field.metadata or {}).get(TENSOR)
    if stored is None:
        return field
    tensor = json.loads(stored)
    kind = tensor_type(tensor["dtype"], tuple(tensor["shape"]))
    return pa.field(field.name, kind, nullable=field.nullable)


def _packed_field(field: pa.Field) -> pa.Field:
    if not isinstance(field.type, pa.FixedShapeTensorType):
        return field
    numbers, shape = field.type.value_type, list(field.type.shape)
    width = numbers.bit_width // 8 * math.prod(shape)
    stored = json.dumps({"dtype": np.dtype(numbers.to_pandas_dtype()).name, "shape": shape})
    return pa.field(
        field.name, pa.binary(width), nullable=field.nullable, metadata={TENSOR: stored}
    )


def _is_float_tensor(field: pa.Field) -> bool:
    tensor = unpacked_field(field).type
    return isinstance(tensor, pa.FixedShapeTensorType) and pa.types.is_floating(tensor.value_type)


def _converted(
    table: pa.Table,
    convert_field: Callable[[pa.Field], pa.Field],
    convert: Callable[[pa.Array, pa.DataType], pa.Array],
) -> pa.Table:
    """Return a table whose columns of another type are converted, chunk by chunk."""
    fields = [convert_field(field) for field in table.schema]
    columns = [
        column
        if field.type == column.type
        else pa.chunked_array([convert(chunk, field.type) for chunk in column.chunks], field.type)
        for field, column in zip(fields, table.columns, strict=True)
    ]
    return pa.table(columns, schema=pa.schema(fields, table.schema.metadata))


def _packed_chunk(chunk: pa.FixedShapeTensorArray, kind: pa.DataType) -> pa.Array:
    numbers = chunk.storage.flatten()
    start = numbers.offset * (numbers.type.bit_width // 8)
    content = numbers.buffers()[1].slice(start, len(chunk) * kind.byte_width)
    return pa.Array.from_buffers(kind, len(chunk), [None, content])


def _unpacked_chunk(chunk: pa.FixedSizeBinaryArray, kind: pa.FixedShapeTensorType) -> pa.Array:
    size = chunk.type.byte_width
    content = chunk.buffers()[1].slice(chunk.offset * size, len(chunk) * size)
    count = len(chunk) * kind.storage_type.list_size
    numbers = pa.Array.from_buffers(kind.value_type, count, [None, content])
    storage = pa.FixedSizeListArray.from_arrays(numbers, kind.storage_type.list_size)
    return pa.ExtensionArray.from_storage(kind, storage)


def tensor_column(values: np.ndarray) -> pa.FixedShapeTensorArray:
    """Wrap a (B, ...) array, (B, N, 3) for points, as a fixed-shape tensor column."""
    shape = values.shape[1:]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), storage)


def points_to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a fixed-shape tensor column as one array, (B, N, 3) for points, in the stored type.

    It may be a read-only view of Arrow's memory: copy to write.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [chunk.to_numpy_ndarray() for chunk in chunks if len(chunk)]
    if not arrays:
        return np.empty((0, *column.type.shape), column.type.value_type.to_pandas_dtype())
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
