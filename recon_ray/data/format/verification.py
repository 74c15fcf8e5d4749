"""Comparison of the files of a prepared set with its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recon_ray.data.format.files import AGAIN, check_rows, read_table, verify_hash
from recon_ray.data.format.schema import MANIFEST, Layout
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

    Manifest = Mapping[str, Any]


def verify_hashes(root: Path, manifest: Manifest) -> None:
    """Check the SHA-256 of every file, see :meth:`PreparedSet.verify_hashes`."""
    kinds = Layout.of_manifest(manifest).schemas()
    files = (shard[kind] for shard in _shards(manifest) for kind in kinds)
    for entry in (*files, *manifest.get("tables", {}).values()):
        verify_hash(root, entry)


def verify_files(root: Path, manifest: Manifest) -> None:
    """Check every file, and the counts of the manifest, see :meth:`PreparedSet.verify`."""
    schemas = Layout.of_manifest(manifest).schemas()
    for shard in _shards(manifest):
        ids = [_verify_file(root, shard, kind, schema) for kind, schema in schemas.items()]
        if any(not found.equals(ids[0]) for found in ids):
            raise DataError(
                f"{root / shard['geometry']['file']}: the files beside it hold other samples; "
                f"{AGAIN}"
            )
    for entry in manifest.get("tables", {}).values():
        check_rows(verify_hash(root, entry), entry["rows"])
    _verify_counts(root / MANIFEST, manifest)


def _shards(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for split in manifest["splits"].values():
        yield from split["shards"]


def _verify_file(
    root: Path, shard: dict[str, Any], kind: str, schema: pa.Schema
) -> pa.ChunkedArray:
    """Verify one file and return its sample ids."""
    path = verify_hash(root, shard[kind])
    table = read_table(path, None)
    if not table.schema.equals(schema):
        raise DataError(f"{path}: its columns are not those of a prepared set; {AGAIN}")
    ids = table["sample_id"]
    if len(ids) != shard["rows"]:
        raise DataError(f"{path}: holds {len(ids)} rows instead of {shard['rows']}; {AGAIN}")
    ends = (ids[0].as_py(), ids[-1].as_py()) if len(ids) else (None, None)
    if ends != (shard["min_sample_id"], shard["max_sample_id"]):
        raise DataError(f"{path}: its sample ids are not the recorded ones; {AGAIN}")
    return ids


def _verify_counts(path: Path, manifest: Manifest) -> None:
    """Compare the totals of the manifest with its splits, and these with their files."""
    splits, total = manifest["splits"], manifest["rows"]
    for name, split in splits.items():
        found = sum(shard["rows"] for shard in split["shards"])
        if found != split["rows"]:
            raise DataError(
                f"{path}: split {name} has {split['rows']} rows, its files {found}; {AGAIN}"
            )
    planned = sum(split["planned"] for split in splits.values())
    counts = {
        "splits": sum(split["rows"] for split in splits.values()),
        "class_histogram": sum(manifest["class_histogram"].values()),
        "planned samples less those left out": planned - manifest["quarantined"],
    }
    for what, found in counts.items():
        if found != total:
            raise DataError(f"{path}: counts {total} rows, its {what} add up to {found}; {AGAIN}")
