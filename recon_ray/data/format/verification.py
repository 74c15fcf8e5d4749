"""Comparison of the files of a prepared set with its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recon_ray.data.format.files import AGAIN, check_rows, check_sha256, read_table, verify_hash
from recon_ray.data.format.schema import KINDS, MANIFEST, Layout
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from recon_ray.data.format.prepared import Split
    from recon_ray.data.format.shards import ShardFile
    from recon_ray.storage import Place

    Manifest = Mapping[str, Any]


def verify_hashes(root: Place, manifest: Manifest, splits: Iterable[Split]) -> None:
    """Check the SHA-256 of every file, see :meth:`PreparedSet.verify_hashes`."""
    for split in splits:
        for file in (file for kind in KINDS for file in getattr(split, kind)):
            check_sha256(file, file.sha256)
    for entry in manifest.get("tables", {}).values():
        verify_hash(root, entry)


def verify_files(root: Place, manifest: Manifest, splits: Iterable[Split]) -> None:
    """Check every file, and the counts of the manifest, see :meth:`PreparedSet.verify`."""
    schemas = Layout.of_manifest(manifest).schemas()
    for split in splits:
        for member in split.members:
            _verify_split(member, schemas)
    for entry in manifest.get("tables", {}).values():
        check_rows(verify_hash(root, entry), entry["rows"])
    _verify_counts(root / MANIFEST, manifest)


def _verify_split(split: Split, schemas: Mapping[str, pa.Schema]) -> None:
    first, end = split.first_sample_id, split.first_sample_id + split.planned
    for number, rows in enumerate(split.shard_rows.tolist()):
        files = {kind: getattr(split, kind)[number] for kind in schemas}
        ids, *others = [_verify_file(file, rows, schemas[kind]) for kind, file in files.items()]
        if any(not np.array_equal(found, ids) for found in others):
            raise DataError(f"{files['geometry']}: the files beside it hold other samples; {AGAIN}")
        if rows and (ids[0] < first or ids[-1] >= end or (np.diff(ids) <= 0).any()):
            raise DataError(
                f"{files['geometry']}: its sample ids are not the recorded ones; {AGAIN}"
            )
        first = int(ids[-1]) + 1 if rows else first


def _verify_file(file: ShardFile, rows: int, schema: pa.Schema) -> np.ndarray:
    """Verify one file and return its sample ids."""
    table = read_table(file, None, sha256=file.sha256)
    if not table.schema.equals(schema):
        raise DataError(f"{file}: its columns are not those of a prepared set; {AGAIN}")
    if len(table) != rows:
        raise DataError(f"{file}: holds {len(table)} rows instead of {rows}; {AGAIN}")
    return np.asarray(table["sample_id"])


def _verify_counts(path: Place, manifest: Manifest) -> None:
    """Compare the totals of the manifest with its splits, and these with their files."""
    splits, total = manifest["splits"], manifest["rows"]
    planned = sum(split["planned"] for split in splits.values())
    counts = {
        "splits": sum(split["rows"] for split in splits.values()),
        "class_histogram": sum(manifest["class_histogram"].values()),
        "planned samples less those left out": planned - manifest["quarantined"],
    }
    for what, found in counts.items():
        if found != total:
            raise DataError(f"{path}: counts {total} rows, its {what} add up to {found}; {AGAIN}")
