"""Parquet columns and writer options of a prepared set (schema version 1).

A set has files of up to three kinds with the same rows in the same order: ``geometry``, ``views``
(encoded pictures) and ``features`` (what a source's own teacher gave).

Points are ``arrow.fixed_shape_tensor`` columns, which keep their (N, 3) shape in every reader that
knows the canonical extension type. Dictionary encoding is on for strings only: on float data it
makes the files larger than the raw numbers; byte-stream-split and zstd-1 make them 15 % smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
MANIFEST = "_manifest.json"  # its presence makes a folder a complete set
ROW_GROUP_SIZE = 64
STRING_COLUMNS = ("object_id", "category", "caption")
POINT_DTYPES = ("float32", "float16")
KINDS = ("geometry", "views", "features")  # folders of files with the same rows in one order


@dataclass(frozen=True)
class Layout:
    """Which columns the files of a set have.

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
        """Give the columns of every kind of files: ``geometry`` and perhaps the others."""
        schemas = {"geometry": geometry_schema(self)}
        if self.views:
            schemas["views"] = views_schema()
        if self.image_features or self.text_features:
            schemas["features"] = features_schema(self)
        return schemas


def geometry_schema(layout: Layout) -> pa.Schema:
    """Give the columns of the ``geometry`` files."""
    tensors = {"points": tensor_type(layout.dtype, (layout.num_points, 3))}
    if layout.normals:
        tensors["normals"] = tensors["points"]
    if layout.colors:
        tensors["colors"] = tensor_type("uint8", (layout.num_points, 3))
    if layout.part_labels:
        tensors["part_labels"] = tensor_type("uint8", (layout.num_points,))
    scalars = {
        "sample_id": pa.int64(),
        "object_id": pa.string(),
        "label": pa.int32(),
        "category": pa.string(),
        "caption": pa.string(),
    }
    counts = {"valid_points": pa.int32()} if layout.valid_points else {}
    return _required({**scalars, **tensors, **counts})


def features_schema(layout: Layout) -> pa.Schema:
    """Give the columns of the ``features`` files: the id and what the source's teacher gave."""
    shapes = {"image_features": layout.image_features, "text_features": layout.text_features}
    tensors = {name: tensor_type("float16", s) for name, s in shapes.items() if s is not None}
    return _required({"sample_id": pa.int64(), **tensors})


def views_schema() -> pa.Schema:
    """Give the columns of the ``views`` files: the id and the encoded pictures of each sample."""
    return _required({"sample_id": pa.int64(), "views": pa.list_(pa.binary())})


def tensor_type(dtype: str, shape: tuple[int, ...]) -> pa.DataType:
    """Give the Arrow type of a column whose rows are tensors of one shape.

    Args:
        dtype: Name of the element type: float32, float16 or uint8.
        shape: Shape of a row.
    """
    return pa.fixed_shape_tensor(pa.type_for_alias(dtype), shape)


def _required(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


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
        values: (B, ...) array, (B, N, 3) for points.
    """
    shape = values.shape[1:]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    kind = pa.fixed_shape_tensor(flat.type, shape)
    return pa.ExtensionArray.from_storage(kind, storage)


def points_to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Give a fixed-shape tensor column as one array.

    Args:
        column: A column of tensors, (N, 3) for points, in one chunk or several.

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
