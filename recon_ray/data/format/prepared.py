"""Prepared sets, opened, read and verified."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recon_ray.data.format.files import AGAIN, read_json, read_table, verify_hash
from recon_ray.data.format.schema import KINDS, MANIFEST, READABLE_VERSIONS, Layout
from recon_ray.data.format.shards import ShardFile, ShardFiles, joined_files, shards_of_json
from recon_ray.data.format.verification import verify_files, verify_hashes
from recon_ray.errors import DataError
from recon_ray.storage import Place

#: When the SHA-256 of files is compared: never, when a file is read, or of all files at once.
Verify: TypeAlias = Literal["open", "read", "all"]
EPISODES_RECORD = "_episodes.json"  # of a folder that holds few-shot episodes and no samples


@dataclass(frozen=True)
class Split:
    """One split of a prepared set.

    Attributes:
        name: train, val, test or another name.
        rows: Samples in the files.
        first_sample_id: Its ids lie in [first_sample_id, first_sample_id + planned).
        planned: Samples that were planned; ids of those left out are missing from the files.
        geometry: Files of points and labels.
        views: Files of pictures, in the same order; empty without pictures.
        shard_rows: (S,) int64, rows of each file.
        features: Files of the source's own teacher features, likewise.
        parts: The splits of a joined one, in order of sample id.
    """

    name: str
    rows: int
    first_sample_id: int
    planned: int
    geometry: Sequence[ShardFile]
    views: Sequence[ShardFile]
    shard_rows: np.ndarray
    features: Sequence[ShardFile] = ()
    parts: tuple[Split, ...] = ()

    @property
    def members(self) -> tuple[Split, ...]:
        """The splits of the set in this one: itself, unless it is a joined one."""
        return self.parts or (self,)

    def head(self, rows: int) -> Split:
        """Return the first files with at least ``rows`` rows, which lie in random order."""
        if self.parts:
            heads: list[Split] = []
            for part in self.parts:
                if (left := rows - sum(split.rows for split in heads)) > 0:
                    heads.append(part.head(left))
            return _joined(self.name, heads)
        count = int(np.searchsorted(np.cumsum(self.shard_rows), rows)) + 1
        lists = {kind: getattr(self, kind)[:count] for kind in (*KINDS, "shard_rows")}
        return replace(self, rows=int(lists["shard_rows"].sum()), **lists)


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set.

    Attributes:
        path: Its folder.
        manifest: What ``_manifest.json`` holds.
        manifest_hash: SHA-256 of that file, which names the exact content.
        splits: Its splits by name.
    """

    path: Place
    manifest: dict[str, Any]
    manifest_hash: str
    splits: dict[str, Split]

    @classmethod
    def open(
        cls, path: Place | os.PathLike[str] | str, *, version: int | None = None
    ) -> PreparedSet:
        """Open a set: read its manifest and nothing else, however many shards it has.

        Args:
            path: Folder or URI.
            version: Version of a set that was appended to; the newest by default.

        Raises:
            DataError: If the folder or its manifest is missing, the schema is of another version,
                or there is no such version of the set.
        """
        root = Place.of(path)
        manifest, digest = _read_manifest(root, version)
        try:
            entries = manifest["splits"].items()
            shards = _read_shards(root, manifest)
            splits = {name: _open_split(root, name, entry, shards) for name, entry in entries}
            opened = cls(root, manifest, digest, splits)
            _ = opened.layout, opened.classes
        except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{root / MANIFEST}: is not a readable manifest ({type(error).__name__}: {error}); "
                f"{AGAIN}"
            ) from error
        return opened

    @property
    def shards(self) -> pa.Table:
        """Its shard table; see :mod:`recon_ray.data.format.shards`."""
        return _read_shards(self.path, self.manifest)

    @property
    def version(self) -> int:
        """Its version: 1, and one more whenever shards were appended to it."""
        return int(self.manifest.get("version", 1))

    @property
    def num_points(self) -> int:
        """Points of every sample, N."""
        return int(self.manifest["num_points"])

    @property
    def layout(self) -> Layout:
        """Columns of its files."""
        return Layout.of_manifest(self.manifest)

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return list(self.manifest["classes"])

    @property
    def has_views(self) -> bool:
        """Return whether the samples have pictures."""
        return self.manifest["views"] is not None

    @property
    def has_features(self) -> bool:
        """Return whether the source shipped teacher features with the samples."""
        return self.manifest.get("features") is not None

    def verify_hashes(self) -> None:
        """Compare the SHA-256 of every file with the manifest, without decoding the files.

        Raises:
            DataError: If a file is missing or has another hash; the message names it.
        """
        verify_hashes(self.path, self.manifest, self.splits.values())

    def checked(self, verify: Verify) -> PreparedSet:
        """Return the set with the SHA-256 of its files compared: now, when they are read, or not.

        Raises:
            DataError: If a file is missing or has another hash.
        """
        if verify == "all":
            self.verify_hashes()
        if verify != "read":
            return self
        return replace(self, splits={name: _checking(s) for name, s in self.splits.items()})

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            DataError: If a file's hash, schema, number of rows or ids differ from the manifest, the
                kinds of files hold other samples, or the manifest's counts contradict each other;
                the message names the file.
        """
        verify_files(self.path, self.manifest, self.splits.values())

    def read(
        self,
        split: str | Split,
        columns: Sequence[str] | None = None,
        *,
        views: bool = False,
        features: bool = False,
    ) -> pa.Table:
        """Read a whole split.

        Args:
            split: Name of the split, or a joined one.
            columns: Columns of the geometry files, None for all; ``sample_id`` is always there.
            views: Add the ``views`` column (lists of encoded pictures).
            features: Add ``image_features`` and ``text_features``, as far as the set has them.

        Raises:
            DataError: If the split, a column, the pictures or the features are not there, or the
                kinds of files do not hold the same samples.
        """
        chosen = self.split(split) if isinstance(split, str) else split
        names = None if columns is None else list(dict.fromkeys(["sample_id", *columns]))
        return self._rows(chosen, names, views=views, features=features)

    def parts(self, split: Split, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read a split as :meth:`read` does, file by file."""
        for member in split.members:
            for number, path in enumerate(member.geometry):
                rows = member.shard_rows[number : number + 1]
                yield self.read(replace(member, geometry=[path], shard_rows=rows), columns)

    def _rows(
        self, split: Split, names: list[str] | None, *, views: bool, features: bool
    ) -> pa.Table:
        """Read a split for :meth:`read`; derived sets replace this."""
        if views and not self.has_views:
            raise DataError(
                f"{self.path}: has no views; prepare it with prepare.views of 1 or more"
            )
        if features and not self.has_features:
            raise DataError(f"{self.path}: its source shipped no features of a teacher")
        beside = [*([split.views] if views else []), *([split.features] if features else [])]
        tables = []
        for index, path in enumerate(split.geometry):
            table = read_table(path, names)
            if len(table) != split.shard_rows[index]:
                raise DataError(
                    f"{path}: holds {len(table)} rows, but the manifest has "
                    f"{split.shard_rows[index]}; {AGAIN}"
                )
            for files in beside:
                table = _append(table, path, files[index])
            tables.append(table)
        return pa.concat_tables(tables)

    def split(self, name: str) -> Split:
        """Return a split.

        Raises:
            DataError: If it does not exist.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.path}: has no split {name!r}, only {', '.join(self.splits) or 'none'}"
            )
        return self.splits[name]

    def join(self, names: Sequence[str]) -> Split:
        """Return several splits as one, named ``train+val``; a single one is that split itself.

        The order of the names changes only the name of the result.

        Raises:
            DataError: If a split does not exist.
        """
        chosen = [self.split(name) for name in dict.fromkeys(names)]
        return chosen[0] if len(chosen) == 1 else _joined("+".join(names), chosen)


def _joined(name: str, splits: Sequence[Split]) -> Split:
    """Return splits as one; its ids lie between the first and the last of theirs."""
    members = (part for split in splits for part in split.members)
    parts = tuple(sorted(members, key=lambda part: part.first_sample_id))
    first, last = parts[0], parts[-1]

    geometry, views, features = (
        joined_files([getattr(part, kind) for part in parts]) for kind in KINDS
    )
    return Split(
        name,
        sum(part.rows for part in parts),
        first.first_sample_id,
        last.first_sample_id + last.planned - first.first_sample_id,
        geometry,
        views,
        np.concatenate([part.shard_rows for part in parts]),
        features,
        parts,
    )


def _checking(split: Split) -> Split:
    files = {kind: getattr(split, kind) for kind in KINDS}
    checking: dict[str, Any] = {k: joined_files([f], check=True) for k, f in files.items() if f}
    return replace(split, **checking, parts=tuple(map(_checking, split.parts)))


def read_episodes(path: Place | os.PathLike[str] | str) -> pa.Table:
    """Read the few-shot episodes of a prepared set, or of a folder that holds only episodes.

    Returns:
        Rows of ``way``, ``shot``, ``fold``, ``split``, ``object_id`` and ``label``.

    Raises:
        DataError: If there are no episodes, or the file is not the recorded one.
    """
    root = Place.of(path)
    record = read_json(root / EPISODES_RECORD)
    if not isinstance(record, dict):
        manifest = read_json(root / MANIFEST)
        tables = manifest.get("tables", {}) if isinstance(manifest, dict) else {}
        record = tables.get("episodes")
    if record is None:
        raise DataError(
            f"{root}: holds no few-shot episodes; make them with jobs/prepare.py source=fewshot"
        )
    return read_table(verify_hash(root, record), None)


def _append(table: pa.Table, path: Place, other: Place) -> pa.Table:
    """Add the columns of the file of another kind to those of the geometry file."""
    more = read_table(other, None)
    if not more["sample_id"].equals(table["sample_id"]):
        raise DataError(f"{other}: its sample ids are not those of {path}; {AGAIN}")
    for name in more.column_names[1:]:
        table = table.append_column(name, more[name])
    return table


def _read_manifest(root: Place, version: int | None) -> tuple[dict[str, Any], str]:
    content = _read_file(root, MANIFEST)
    manifest = _parsed(root / MANIFEST, content)
    if version is not None and manifest.get("version", 1) != version:
        content = _read_file(root, manifest_of(version))
        manifest = _parsed(root / manifest_of(version), content)
    return manifest, hashlib.sha256(content).hexdigest()


def _read_file(root: Place, name: str) -> bytes:
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise DataError(_missing_manifest(root, root / name)) from error


def manifest_of(version: int) -> str:
    """Return the name of the manifest of one version of a set."""
    return MANIFEST.replace(".", f"-{version}.")


def _missing_manifest(root: Place, path: Place) -> str:
    if not root.is_dir():
        return f"{root}: no such folder; give the folder of a prepared set"
    if path.name != MANIFEST:
        return f"{root}: has no {path.name}, so no such version; leave data.version out"
    return f"{root}: is not a complete prepared set ({MANIFEST} is missing); run the prepare job"


def _parsed(path: Place, content: bytes) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(content)
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a readable manifest; {AGAIN}") from error
    if version not in READABLE_VERSIONS:
        *older, newest = map(str, READABLE_VERSIONS)
        raise DataError(
            f"{path}: has schema version {version}, but this package reads versions "
            f"{', '.join(older)} and {newest}; {AGAIN}"
        )
    return manifest


def _read_shards(root: Place, manifest: dict[str, Any]) -> pa.Table:
    """Return the shard table of a manifest of any version."""
    if "shards" not in manifest:
        return shards_of_json(manifest["splits"])
    parts = [
        read_table(root / entry["file"], None, sha256=entry["sha256"])
        for entry in manifest["shards"]
    ]
    shards = pa.concat_tables(parts)
    if pc.any(pc.match_substring_regex(shards["name"], r"/|^\.")).as_py():
        raise ValueError("the name of a shard is not that of a file")
    return shards


def _open_split(root: Place, name: str, entry: dict[str, Any], shards: pa.Table) -> Split:
    """Return one split of a manifest; of several versions its parts have ranges of ids."""
    own = shards.filter(pc.equal(shards["split"], name))
    ranges = entry.get("ranges") or [[len(own), entry["first_sample_id"], entry["planned"]]]
    parts, start = [], 0
    for count, first, planned in ranges:
        part = own.slice(start, count)
        start += count
        rows = part["rows"].to_numpy()
        geometry, views, features = (
            ShardFiles.of(root / kind / name, part, kind)
            if f"{kind}_bytes" in shards.column_names
            else ()
            for kind in KINDS
        )
        parts.append(Split(name, int(rows.sum()), first, planned, geometry, views, rows, features))
    whole = parts[0] if len(parts) == 1 else _joined(name, parts)
    if start != len(own) or whole.rows != entry["rows"]:
        raise DataError(
            f"{root / MANIFEST}: split {name} has {entry['rows']} rows, its shards "
            f"{whole.rows}; {AGAIN}"
        )
    return whole
