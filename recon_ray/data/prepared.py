"""Open, read and verify a prepared set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recon_ray.data.schema import MANIFEST, SCHEMA_VERSION, geometry_schema, views_schema
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AGAIN = "prepare it again"
REBUILD = "delete it and run the prepare job again, which rebuilds it"


@dataclass(frozen=True)
class Split:
    """One split of a prepared set.

    Attributes:
        name: train, val, test or another name.
        rows: Samples in the files.
        first_sample_id: Its ids lie in [first_sample_id, first_sample_id + planned).
        planned: Samples that were planned; ids of those left out are missing from the files.
        geometry: Files of points and labels.
        views: Files of pictures, in the same order; empty if there are none.
        shard_rows: Rows of each file.
    """

    name: str
    rows: int
    first_sample_id: int
    planned: int
    geometry: list[Path]
    views: list[Path]
    shard_rows: list[int]

    def head(self, rows: int) -> Split:
        """The first files that hold at least so many rows; samples lie in them in random order."""
        count = int(np.searchsorted(np.cumsum(self.shard_rows), rows)) + 1
        kept = self.shard_rows[:count]
        return replace(
            self,
            rows=sum(kept),
            geometry=self.geometry[:count],
            views=self.views[:count],
            shard_rows=kept,
        )


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set whose files are all there.

    Attributes:
        path: Its folder.
        manifest: What ``_manifest.json`` holds.
        manifest_hash: SHA-256 of that file, which names the exact content.
        splits: Its splits by name.
    """

    path: Path
    manifest: dict[str, Any]
    manifest_hash: str
    splits: dict[str, Split]

    @classmethod
    def open(cls, path: Path | str) -> PreparedSet:
        """Open a set; reads the manifest and the footers of its files only.

        Args:
            path: Folder of the set.

        Raises:
            DataError: If the folder or its manifest is missing, the schema is of another version, a
                file is missing or holds another number of rows than the manifest says.
        """
        root = Path(path)
        manifest, digest = _read_manifest(root)
        try:
            entries = manifest["splits"].items()
            opened = cls(
                root, manifest, digest, {name: _open_split(root, name, e) for name, e in entries}
            )
            _ = opened.num_points, opened.classes, opened.has_views
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{root / MANIFEST}: is not a readable manifest ({type(error).__name__}: {error}); "
                f"{AGAIN}"
            ) from error
        return opened

    @property
    def num_points(self) -> int:
        """Points of every sample, N."""
        return int(self.manifest["num_points"])

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return list(self.manifest["classes"])

    @property
    def has_views(self) -> bool:
        """Whether the samples have pictures."""
        return self.manifest["views"] is not None

    def verify_hashes(self) -> None:
        """Compare the SHA-256 of every file with the manifest; reads the bytes, decodes nothing.

        Raises:
            DataError: If a file is missing or has another hash; the message names it.
        """
        for shard in self._shards():
            for kind in ("geometry", "views"):
                if shard[kind] is not None:
                    self._verify_hash(shard[kind])

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            DataError: If a file's hash, schema, number of rows or ids differ from the manifest; the
                message names the file.
        """
        schema = geometry_schema(
            self.num_points,
            self.manifest["points_dtype"],
            normals=self.manifest["has_normals"],
            colors=self.manifest["has_colors"],
        )
        for shard in self._shards():
            self._verify_file(shard, "geometry", schema)
            if shard["views"] is not None:
                self._verify_file(shard, "views", views_schema())

    def read(
        self, split: str, columns: Sequence[str] | None = None, *, views: bool = False
    ) -> pa.Table:
        """Read a whole split.

        Args:
            split: Name of the split.
            columns: Columns of the geometry files, None for all; ``sample_id`` is always there.
            views: Add the ``views`` column (lists of encoded pictures).

        Raises:
            DataError: If the split, a column or the pictures are not there, or the two kinds of
                files do not hold the same samples.
        """
        chosen = self.split(split)
        names = None if columns is None else list(dict.fromkeys(["sample_id", *columns]))
        if views and not self.has_views:
            raise DataError(
                f"{self.path}: has no views; prepare it with prepare.views of 1 or more"
            )
        tables = []
        for index, path in enumerate(chosen.geometry):
            table = _read_table(path, names)
            if views:
                pictures = _read_table(chosen.views[index], None)
                if not pictures["sample_id"].equals(table["sample_id"]):
                    raise DataError(
                        f"{chosen.views[index]}: its sample ids are not those of {path}; {AGAIN}"
                    )
                table = table.append_column("views", pictures["views"])
            tables.append(table)
        return pa.concat_tables(tables)

    def split(self, name: str) -> Split:
        """Give a split.

        Raises:
            DataError: If there is none of this name.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.path}: has no split {name!r}, only {', '.join(self.splits) or 'none'}"
            )
        return self.splits[name]

    def _shards(self) -> Iterator[dict[str, Any]]:
        for split in self.manifest["splits"].values():
            yield from split["shards"]

    def _verify_hash(self, record: dict[str, Any]) -> Path:
        path = self.path / record["file"]
        try:
            found = _sha256(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {REBUILD}") from error
        if found != record["sha256"]:
            raise DataError(
                f"{path}: is damaged or was changed (its SHA-256 is not the manifest's); {REBUILD}"
            )
        return path

    def _verify_file(self, shard: dict[str, Any], kind: str, schema: pa.Schema) -> None:
        path = self._verify_hash(shard[kind])
        table = _read_table(path, None)
        if not table.schema.equals(schema):
            raise DataError(f"{path}: its columns are not of schema {SCHEMA_VERSION}; {AGAIN}")
        ids = table["sample_id"].to_pylist()
        if len(ids) != shard["rows"]:
            raise DataError(f"{path}: holds {len(ids)} rows instead of {shard['rows']}; {AGAIN}")
        if ids and (ids[0], ids[-1]) != (shard["min_sample_id"], shard["max_sample_id"]):
            raise DataError(f"{path}: its sample ids are not the recorded ones; {AGAIN}")


def _read_manifest(root: Path) -> tuple[dict[str, Any], str]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of a prepared set")
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{root}: is no complete prepared set ({MANIFEST} is missing); run the prepare job"
        )
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a readable manifest; {AGAIN}") from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: has schema version {version}, but this package reads version "
            f"{SCHEMA_VERSION}; {AGAIN}"
        )
    return manifest, hashlib.sha256(content).hexdigest()


def _open_split(root: Path, name: str, entry: dict[str, Any]) -> Split:
    """Give one split of a manifest after looking at the footers of its files."""
    shards = entry["shards"]
    for shard in shards:
        for kind in ("geometry", "views"):
            if shard[kind] is not None:
                _check_rows(root / shard[kind]["file"], shard["rows"])
    return Split(
        name,
        entry["rows"],
        entry["first_sample_id"],
        entry["planned"],
        [root / shard["geometry"]["file"] for shard in shards],
        [root / shard["views"]["file"] for shard in shards if shard["views"] is not None],
        [shard["rows"] for shard in shards],
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_rows(path: Path, rows: int) -> None:
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; run the prepare job again to rebuild it")
    try:
        found = pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is not a readable Parquet file; {AGAIN}") from error
    if found != rows:
        raise DataError(f"{path}: holds {found} rows, but the manifest says {rows}; {AGAIN}")


def _read_table(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or [] if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path}: has no column {missing[0]!r}")
            return file.read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet; {AGAIN}") from error
