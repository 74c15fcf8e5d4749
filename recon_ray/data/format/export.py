"""Export of a prepared set for readers of numbers instead of the bytes of tensors.

A tensor column becomes a plain fixed-size list of its numbers in row-major order, and its shape is
in the field's metadata: ``shape`` is ``[N, 3]`` in JSON. Everything else stays as it is; pictures
are plain lists already and are not written again.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recon_ray.data.format.files import read_json, read_table, write_json, write_table
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from recon_ray.data.format.prepared import PreparedSet
    from recon_ray.storage import Place

EXPORT = "_export.json"  # written last

logger = logging.getLogger(__name__)


def export_plain(prepared: PreparedSet, output: Place) -> dict[str, Any]:
    """Write the geometry, and the features, of a set with plain list columns, and read them back.

    An earlier export in the output is replaced.

    Returns:
        The record that is written beside the files: their set, rows and hashes.

    Raises:
        DataError: If the folder holds something else, a file is damaged, or the disk is full.
    """
    if read_json(output / EXPORT) is None and output.files():
        raise DataError(
            f"{output}: holds something else than an export; choose an empty or a new folder"
        )
    # Marks the folder from the beginning, so that an interrupted export can be repeated.
    write_json(output / EXPORT, {"set": str(prepared.path), "complete": False})
    files = [
        _export_file(prepared.path, path, output)
        for split in prepared.splits.values()
        for path in (*split.geometry, *split.features)
    ]
    record = {
        "set": str(prepared.path),
        "complete": True,
        "manifest_sha256": prepared.manifest_hash,
        "classes": prepared.classes,
        "rows": {name: split.rows for name, split in prepared.splits.items()},
        "files": files,
    }
    write_json(output / EXPORT, record)
    logger.info("export: %d files in %s", len(files), output)
    return record


def _export_file(root: Place, path: Place, output: Place) -> dict[str, Any]:
    table = plain_table(read_table(path, None))
    entry = write_table(output, path.below(root), table)
    copy = output / entry["file"]
    if not read_table(copy, None, sha256=entry["sha256"]).equals(table):
        raise DataError(
            f"{copy}: what was read back is not what was written; check the disk and export again"
        )
    return {**entry, "rows": len(table)}


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with plain fixed-size lists in place of its tensors, in the same memory."""
    fields, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        if isinstance(field.type, pa.FixedShapeTensorType):
            storage = field.type.storage_type
            shape = {"shape": json.dumps(list(field.type.shape))}
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], storage)
            field = pa.field(field.name, storage, nullable=field.nullable, metadata=shape)
        fields.append(field)
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields))
