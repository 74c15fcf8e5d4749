"""The parts of a table of features: the shapes of each, and the key of what it is computed from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recon_ray.data.format.files import read_parts
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.format.stored_features import digest
from recon_ray.data.prepare.sampling import cloud_of_file
from recon_ray.errors import DataError
from recon_ray.storage import Place
from recon_ray.tasks.feature_extraction import PointChoice
from recon_ray.tasks.shard_encoding import EncodeTask

#: Name of the key in the metadata of a part's file.
KEY = b"recon_ray.key"
#: Name of the split of single files.
FILES = "files"
#: Single files of one part.
FILES_A_PART = 256
#: Columns of a part beside the features, as in the prepared set.
COLUMNS = ("sample_id", "object_id", "label", "category")

#: Some shapes: values of :data:`COLUMNS`, and (B, N, 3) float32 stored clouds.
Rows: TypeAlias = tuple[Mapping[str, list[Any]], Tensor]


@dataclass(frozen=True)
class EmbedTask(EncodeTask):
    """One part of the table.

    Attributes:
        split: Value of the column ``split``.
        choice: Choice of the points.
    """

    split: str
    choice: PointChoice

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Rows]:
        """Read the shapes in batches.

        Raises:
            DataError: If a file cannot be read.
        """

    def is_finished(self, files: Mapping[str, int]) -> bool:
        """Return whether the file is there with this key and all rows."""
        if self.file not in files:
            return False
        try:
            with (Place(self.root) / self.file).open() as file:
                found = pq.read_metadata(file)
        except (OSError, pa.ArrowInvalid):
            return False
        has_key = (found.metadata or {}).get(KEY) == self.key.encode()
        return has_key and found.num_rows == self.units


@dataclass(frozen=True)
class SetPart(EmbedTask):
    """The first rows of a file of a prepared set, ``path``."""

    path: ShardFile

    def batches(self, batch_size: int) -> Iterator[Rows]:
        """Read the rows in batches; see :meth:`EmbedTask.batches`."""
        left = self.units
        for part in read_parts(self.path, [*COLUMNS, "points"], batch_size):
            rows = part.slice(0, left)
            left -= len(rows)
            points = points_to_numpy(rows["points"]).astype(np.float32)
            yield rows.select(COLUMNS).to_pydict(), torch.from_numpy(points)
            if not left:
                return


@dataclass(frozen=True)
class FilesPart(EmbedTask):
    """Single files, each a shape without class.

    Attributes:
        paths: The files.
        first: Sample id of the first.
        up_axis: Axis that points up in them.
        seed: Seed of the points that are sampled on a mesh.
    """

    paths: tuple[str, ...]
    first: int
    up_axis: str
    seed: int

    def batches(self, batch_size: int) -> Iterator[Rows]:
        """Read one file after the other, as clouds differ in size; see :class:`EmbedTask`."""
        del batch_size
        num_points, seed = self.choice.num_points, self.seed
        for number, path in enumerate(self.paths, start=self.first):
            cloud = cloud_of_file(
                Path(path), up_axis=self.up_axis, num_points=num_points, seed=seed
            )
            values: tuple[list[Any], ...] = ([number], [path], [-1], [""])
            points = torch.from_numpy(np.array(cloud, dtype=np.float32))[None]
            yield dict(zip(COLUMNS, values, strict=True)), points


def set_parts(
    root: str,
    prepared: PreparedSet,
    splits: Sequence[str],
    choice: PointChoice,
    *,
    model: str,
    limit: int | None = None,
) -> list[EmbedTask]:
    """Assign the shards of a set to parts.

    Args:
        root: Folder or URI of all parts.
        prepared: The set.
        splits: Names of its splits.
        choice: Choice of the points.
        model: Hash of the model, see :func:`recon_ray.tasks.embed.encode.model_hash`.
        limit: Use the first rows of each split only.
    """
    tasks: list[EmbedTask] = []
    for name in dict.fromkeys(splits):
        split = prepared.split(name)
        left = split.rows if limit is None else limit
        for path, rows in zip(split.geometry, split.shard_rows.tolist(), strict=True):
            count = min(rows, left)
            left -= count
            if count:
                content = [prepared.manifest_hash, name, path.name, count]
                key = digest([model, asdict(choice), content])
                file = f"{name}/{path.name}"
                tasks.append(SetPart(root, file, key, count, name, choice, path))
    return tasks


def file_parts(
    root: str, files: Sequence[Path], choice: PointChoice, *, model: str, up_axis: str, seed: int
) -> list[EmbedTask]:
    """Assign single files to parts; arguments as :func:`set_parts` and :class:`FilesPart`.

    Raises:
        DataError: If one is not there.
    """
    tasks: list[EmbedTask] = []
    for first in range(0, len(files), FILES_A_PART):
        chosen = files[first : first + FILES_A_PART]
        rows: dict[str, Any] = {
            "paths": tuple(str(path.absolute()) for path in chosen),
            "first": first,
            "up_axis": up_axis,
            "seed": seed,
        }
        content = [{**rows, "num_points": choice.num_points}, [_stamp(path) for path in chosen]]
        key = digest([model, asdict(choice), content])
        file = f"{FILES}/part-{first // FILES_A_PART:05d}.parquet"
        tasks.append(FilesPart(root, file, key, len(chosen), FILES, choice, **rows))
    return tasks


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a mesh or a cloud"
        ) from error
    return found.st_size, found.st_mtime_ns
