"""Features of frozen teachers that were computed once, beside their prepared set.

A cache is a folder ``<set>/teachers/<key>/``: its ``_manifest.json`` (written last) holds the
identity of teacher, preprocessing and pictures, and ``key`` is the hash of it. Image features are
in ``<split>/part-*.parquet``, with the shards and the order of rows of the set; text features are
in ``text_bank.parquet``, or like those of images where there are many captions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from recon_ray.data.format.files import check_sha256, read_json, read_table
from recon_ray.data.format.prepared import PreparedSet, Verify
from recon_ray.data.format.schema import MANIFEST, points_to_numpy
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.format.stored_features import StoredFeatures, digest
from recon_ray.errors import ConfigError, DataError
from recon_ray.storage import Place
from recon_ray.teachers.prompts import PREFIXES, SUFFIXES

CACHES = "teachers"
CACHE_VERSION = 1
TEXT_BANK = "text_bank.parquet"
AGAIN = "delete that folder and run jobs/cache_teachers.py again"

Identity = Mapping[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache.

    Attributes:
        path: Its folder.
        manifest: Content of its ``_manifest.json``.
    """

    path: Place
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Place) -> TeacherCache:
        """Open a cache by its folder.

        Raises:
            DataError: If it has no readable manifest of this version.
        """
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict):
            raise DataError(
                f"{path}: is not a finished teacher cache ({MANIFEST} is missing or unreadable); "
                "run jobs/cache_teachers.py again, which finishes it"
            )
        version = manifest.get("version")
        if version != CACHE_VERSION or not isinstance(manifest.get("identity"), dict):
            raise DataError(
                f"{path}: is a teacher cache of version {version}, this package reads version "
                f"{CACHE_VERSION}; {AGAIN}"
            )
        return cls(path, manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """Teacher, preprocessing, pictures and choices."""
        return dict(self.manifest["identity"])

    def image_features(
        self, prepared: PreparedSet, split: str, *, verify: Verify
    ) -> StoredFeatures:
        """Find the image features of a split.

        Args:
            prepared: The set.
            split: Name of the split.
            verify: When the SHA-256 of the files is compared with the manifest.

        Raises:
            ConfigError: If the cache has no such split.
            DataError: If a file is missing, damaged, or not of the set's rows.
        """
        clean = self.identity["preprocessing"]["augment"] == "none"
        files, content = self._rows(prepared, split, verify=verify)
        return StoredFeatures(
            "image_features",
            files,
            self._shape,
            "view" if clean else "copy",
            {**self.identity["teacher"], "cache": self.path.name, "features_sha256": content},
        )

    def text_features(self, prepared: PreparedSet, split: str, *, verify: Verify) -> StoredFeatures:
        """Find the features of the captions of a split; see :meth:`image_features`."""
        files, _ = self._rows(prepared, split, verify=verify)
        teacher = self.identity["teacher"]
        return StoredFeatures("text_features", files, self._shape, "copy", teacher, itemsize=4)

    @property
    def _shape(self) -> tuple[int, int]:
        copies, dim = self.manifest["shape"]
        return int(copies), int(dim)

    def _rows(
        self, prepared: PreparedSet, split: str, *, verify: Verify
    ) -> tuple[tuple[ShardFile, ...], str]:
        """Return the files of a split and the hash of their content."""
        splits = self.manifest["splits"]
        if split not in splits:
            raise ConfigError(
                f"{self.path}: holds features of {', '.join(splits) or 'no split'}, not of "
                f"{split!r}; run jobs/cache_teachers.py again with cache.splits=[{split}]"
            )
        shards = splits[split]["shards"]
        if [shard["rows"] for shard in shards] != prepared.split(split).shard_rows.tolist():
            raise DataError(f"{self.path}: its shards are not those of {prepared.path}; {AGAIN}")
        there = self.path.files()
        files = tuple(self._file(shard, there, verify=verify) for shard in shards)
        return files, digest([shard["sha256"] for shard in shards])

    def text_bank(self, texts: Sequence[str]) -> Tensor:
        """Read the features of texts.

        Args:
            texts: C texts, which the bank has to hold in this order.

        Returns:
            (C, P, D) float32, P the prompts of a text (1 for captions).

        Raises:
            DataError: If the file is missing or damaged, or holds other texts.
        """
        table = self._read_bank()
        count, prompts, dim = self.manifest["shape"]
        if table["text"].to_pylist()[::prompts] != list(texts):
            raise DataError(f"{self.path / TEXT_BANK}: holds other texts than the set; {AGAIN}")
        features = torch.tensor(points_to_numpy(table["feature"]))
        return features.reshape(count, prompts, dim)

    def _file(
        self, record: Mapping[str, Any], files: Mapping[str, int], *, verify: Verify
    ) -> ShardFile:
        place = self.path / record["file"]
        if files.get(record["file"]) != record["bytes"]:
            raise DataError(
                f"{place}: is missing or incomplete; run jobs/cache_teachers.py again, which makes "
                "it anew"
            )
        file = ShardFile(str(place), record["bytes"], record["sha256"], verify == "read")
        if verify == "all":
            check_sha256(file, file.sha256)
        return file

    def _read_bank(self) -> pa.Table:
        file = self._file(self.manifest["bank"], self.path.files(), verify="read")
        return read_table(file, None)


@dataclass(frozen=True)
class StoredBank:
    """A text bank that is read instead of computed, with the same content."""

    cache: TeacherCache

    @property
    def dim(self) -> int:
        """Width of the features, D."""
        return int(self.cache.manifest["shape"][2])

    @property
    def identity(self) -> dict[str, str]:
        """Name, tag and hash of the teacher."""
        return dict(self.cache.identity["teacher"])

    def read(self, texts: Sequence[str]) -> Tensor:
        """Read the features (C, P, D) of texts; see :meth:`TeacherCache.text_bank`."""
        return self.cache.text_bank(texts)


# -- Identities ----------------------------------------------------------------------------------


def views_identity(prepared: PreparedSet) -> dict[str, str]:
    """Return the identity of a set's pictures alone: its points may change under a cache."""
    shards = {name: [f.sha256 for f in split.views] for name, split in prepared.splits.items()}
    return {"views_sha256": digest(shards)}


def captions_identity(teacher: Mapping[str, str], prepared: PreparedSet) -> Identity:
    """Return the identity of the features of a set's captions, shape by shape."""
    shards = {name: [f.sha256 for f in split.geometry] for name, split in prepared.splits.items()}
    content = {"geometry_sha256": digest(shards)}
    return {"kind": "captions", "teacher": dict(teacher), "set": content}


def text_identity(
    teacher: Mapping[str, str], texts: Sequence[str], *, use_prompts: bool
) -> Identity:
    """Return the identity of a text bank: teacher, texts in their order, prompts."""
    sentences = [PREFIXES, SUFFIXES] if use_prompts else None
    return {
        "kind": "text",
        "teacher": dict(teacher),
        "prompts_sha256": digest(sentences),
        "texts_sha256": digest(list(texts)),
    }


def cache_key(identity: Identity) -> str:
    """Return the name of a cache's folder: the teacher, readable, and a hash of everything."""
    name = re.sub(r"[^a-z0-9]+", "-", str(identity["teacher"]["name"]).lower()).strip("-")
    kind = "" if identity["kind"] == "image" else f"-{identity['kind']}"
    return f"{name}{kind}-{digest(identity)[:12]}"


def difference(found: Identity, wanted: Identity, prefix: str = "") -> str | None:
    """Return a phrase on the first wanted entry that differs, or None.

    Only the keys of ``wanted`` are compared: seed, copies and precision are a cache's own choice.
    """
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            inner = difference(other, value, f"{prefix}{key}.")
            if inner is not None:
                return inner
        elif other != value:
            return f"{prefix}{key} is {_short(other)} there, {_short(value)} is asked for"
    return None


def find_caches(prepared: PreparedSet, wanted: Identity) -> tuple[list[TeacherCache], str | None]:
    """Find the caches of a set that have an identity.

    Returns:
        The fitting ones; without any, the reason why the nearest does not fit, None without one.
    """
    fitting, reason = [], None
    for path in _caches(prepared.path / CACHES):
        try:
            cache = TeacherCache.open(path)
        except DataError as error:  # of no use, but no obstacle
            logger.warning("%s", error)
            continue
        if cache.identity.get("kind") != wanted["kind"]:
            continue
        wrong = difference(cache.identity, wanted)
        if wrong is None:
            fitting.append(cache)
        else:
            reason = f"{cache.path.name}: {wrong}"
    return fitting, None if fitting else reason


def _caches(folder: Place) -> list[Place]:
    """Return the folders with a manifest, by one listing of the first level."""
    return [place for place in folder.folders() if (place / MANIFEST).is_file()]


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
