"""The parts of a table of features: which shapes each is made of, and whether it is there.

A part is written whole or not at all and carries the key of what it was computed from, so that an
interrupted job, or one whose weights have changed, computes only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recon_ray.data.format.files import read_parts
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.format.stored_features import digest
from recon_ray.data.prepare.sampling import cloud_of_file
from recon_ray.errors import DataError
from recon_ray.runs.storage import open_filesystem
from recon_ray.tasks.feature_extraction import PointChoice

#: Where a part says what it was computed from, in the metadata of the file.
KEY = b"recon_ray.key"
#: Name of the split of single files.
FILES = "files"
#: Single files of one part.
FILES_A_PART = 256
#: Columns of a part beside the features, as in the prepared set.
COLUMNS = ("sample_id", "object_id", "label", "category")


class Rows(NamedTuple):
    """Some shapes.

    Attributes:
        columns: Values of :data:`COLUMNS`.
        points: (B, N, 3) float32 stored clouds.
    """

    columns: dict[str, list[Any]]
    points: Tensor


@dataclass(frozen=True)
class ShardRows:
    """The first rows of a file of a prepared set.

    Attributes:
        path: The file.
        count: How many.
    """

    path: str
    count: int

    def batches(self, batch_size: int) -> Iterator[Rows]:
        """Read them, up to so many at once.

        Raises:
            DataError: If the file cannot be read.
        """
        left = self.count
        for part in read_parts(Path(self.path), [*COLUMNS, "points"], batch_size):
            rows = part.slice(0, left)
            left -= len(rows)
            points = points_to_numpy(rows["points"]).astype(np.float32)
            yield Rows(rows.select(COLUMNS).to_pydict(), torch.from_numpy(points))
            if not left:
                return


@dataclass(frozen=True)
class FileRows:
    """Single files, each a shape without class.

    Attributes:
        paths: The files.
        first: Sample id of the first.
        up_axis: Axis that points up in them.
        num_points: Points that are sampled on a mesh.
        seed: Seed of that.
    """

    paths: tuple[str, ...]
    first: int
    up_axis: str
    num_points: int
    seed: int

    @property
    def count(self) -> int:
        """How many."""
        return len(self.paths)

    def batches(self, batch_size: int) -> Iterator[Rows]:
        """Read one after the other: their clouds differ in size.

        Raises:
            DataError: If one cannot be read.
        """
        del batch_size
        for number, path in enumerate(self.paths, start=self.first):
            cloud = cloud_of_file(
                Path(path), up_axis=self.up_axis, num_points=self.num_points, seed=self.seed
            )
            values = (number, path, -1, "")
            columns = {name: [value] for name, value in zip(COLUMNS, values, strict=True)}
            yield Rows(columns, torch.from_numpy(np.array(cloud, dtype=np.float32))[None])


@dataclass(frozen=True)
class EmbedTask:
    """All that one part needs besides the model; picklable.

    Attributes:
        folder: Folder or URI of all parts.
        file: The part below it, ``<split>/part-....parquet``.
        key: Names weights, shapes and points; a file with another key is not this part.
        split: What the column ``split`` says.
        rows: The shapes.
        choice: Which of their points are read.
    """

    folder: str
    file: str
    key: str
    split: str
    rows: ShardRows | FileRows
    choice: PointChoice

    def is_finished(self) -> bool:
        """Return whether the part is there already."""
        filesystem, root = open_filesystem(self.folder)
        try:
            with filesystem.open_input_file(f"{root}/{self.file}") as file:
                found = pq.read_metadata(file)
        except (OSError, pa.ArrowInvalid):
            return False
        has_key = (found.metadata or {}).get(KEY) == self.key.encode()
        return has_key and found.num_rows == self.rows.count


def set_tasks(
    folder: str,
    prepared: PreparedSet,
    splits: Sequence[str],
    choice: PointChoice,
    *,
    model: str,
    limit: int | None = None,
) -> list[EmbedTask]:
    """Assign the shards of a set to parts.

    Args:
        folder: Folder or URI of all parts.
        prepared: The set.
        splits: Names of its splits.
        choice: Which points are read.
        model: Hash of the model, see :func:`recon_ray.tasks.embed.encode.model_hash`.
        limit: Use the first rows of each split only.
    """
    tasks = []
    for name in dict.fromkeys(splits):
        split = prepared.split(name)
        left = split.rows if limit is None else limit
        for path, rows in zip(split.geometry, split.shard_rows, strict=True):
            count = min(rows, left)
            left -= count
            if count:
                content = [prepared.manifest_hash, name, path.name, count]
                key = digest([model, asdict(choice), content])
                file = f"{name}/{path.name}"
                tasks.append(
                    EmbedTask(folder, file, key, name, ShardRows(str(path), count), choice)
                )
    return tasks


def file_tasks(
    folder: str,
    files: Sequence[Path],
    choice: PointChoice,
    *,
    model: str,
    up_axis: str,
    seed: int,
) -> list[EmbedTask]:
    """Assign single files to parts; arguments as :func:`set_tasks` and :class:`FileRows`.

    Raises:
        DataError: If one is not there.
    """
    tasks = []
    for number, first in enumerate(range(0, len(files), FILES_A_PART)):
        chosen = files[first : first + FILES_A_PART]
        paths = tuple(str(path.absolute()) for path in chosen)
        rows = FileRows(paths, first, up_axis, choice.num_points, seed)
        content = [asdict(rows), [_stamp(path) for path in chosen]]
        key = digest([model, asdict(choice), content])
        tasks.append(
            EmbedTask(folder, f"{FILES}/part-{number:05d}.parquet", key, FILES, rows, choice)
        )
    return tasks


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a mesh or a cloud"
        ) from error
    return found.st_size, found.st_mtime_ns
