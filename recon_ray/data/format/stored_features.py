"""Features of frozen teachers beside a prepared set, as columns of Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.shards import ShardFile, joined_files
from recon_ray.data.loading.batches import Draw
from recon_ray.errors import ConfigError


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a split's samples that are read instead of computed.

    Attributes:
        column: ``image_features`` or ``text_features``.
        files: Files with ``sample_id`` and the column, in the order of the split's shards.
        shape: (K, D), features of a sample and their width.
        draw: How an epoch takes one of the K.
        identity: Name, tag and hash of the teacher, for the run's records.
        itemsize: Bytes of a number.
    """

    column: str
    files: Sequence[ShardFile]
    shape: tuple[int, int]
    draw: Draw
    identity: Mapping[str, str]
    itemsize: int = 2

    @property
    def dim(self) -> int:
        """Width of the features, D."""
        return self.shape[1]

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of a sample's features in memory."""
        return self.itemsize * self.shape[0] * self.shape[1]

    def read(self) -> pa.Table:
        """Read ``sample_id`` and the column of the whole split.

        Raises:
            DataError: If a file is unreadable.
        """
        return pa.concat_tables([read_table(f, ["sample_id", self.column]) for f in self.files])


def source_features(prepared: PreparedSet, column: str, split: str) -> StoredFeatures:
    """Return the ``image_features`` or ``text_features`` that the source of a set shipped.

    Raises:
        ConfigError: If the set has none.
    """
    kind = column.removesuffix("_features")
    features = prepared.manifest.get("features")
    if not features or not features.get(kind):
        raise ConfigError(
            f"teacher.{kind}.name=source: {prepared.path} has no {kind} features of its source; "
            "name a teacher, or null for none"
        )
    count, dim = features[kind]
    files = prepared.split(split).features
    digests = [file.sha256 for file in files]
    return StoredFeatures(
        column,
        files,
        (int(count), int(dim)),
        "row",
        {"name": "source", "tag": str(features["teacher"]), "sha256": digest(digests)},
    )


def joined_features(parts: Sequence[StoredFeatures]) -> StoredFeatures:
    """Return one teacher's features of several splits, in order, as those of the joined split."""
    if len(parts) == 1:
        return parts[0]
    contents = digest([dict(part.identity) for part in parts])
    return replace(
        parts[0],
        files=joined_files([part.files for part in parts]),
        identity={**parts[0].identity, "features_sha256": contents},
    )


def digest(value: object) -> str:
    """Hash a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
