"""The shapes of a job that draws them: some of a prepared set, or single files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.prepare.sampling import cloud_of_file
from recon_ray.errors import ConfigError
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.config_checks import check_split, find_set
from recon_ray.tasks.visualize.config import ShownDataSection, VisualizeConfig


@dataclass(frozen=True)
class ChosenShape:
    """A shape as the input of a model.

    Attributes:
        object_id: Its id in the prepared set, or the file.
        name: The last part of that, fit for the name of a file.
        category: Its class, empty if it has none.
        key: Key of its random numbers: the id of the sample, or the number of the file.
        points: (N, 3) float32.
    """

    object_id: str
    name: str
    category: str
    key: int
    points: Tensor

    @property
    def title(self) -> str:
        """Class, and on a second line the shape."""
        return f"{self.category}\n{self.object_id}" if self.category else self.object_id


def choose_shapes(config: VisualizeConfig) -> list[ChosenShape]:
    """Load the shapes that the configuration names, those of the set first.

    Raises:
        ConfigError: If the set, the split or a shape of it is not there.
        DataError: If the set or a file is damaged.
    """
    seed = config.run.seed
    shapes = []
    if config.data.path is not None:
        prepared = find_set("data.path", config.data.path)
        shapes += shapes_of_set(prepared, config.data, config.shapes, seed)
    for number, path in enumerate(config.files):
        cloud = cloud_of_file(
            path, up_axis=config.up_axis, num_points=config.data.num_points, seed=seed
        )
        points = _bring(cloud, config.data, SampleGenerator(seed, torch.tensor([number])))
        shapes.append(ChosenShape(path.name, _file_name(path.stem), "", number, points))
    return shapes


def shapes_of_set(
    prepared: PreparedSet, data: ShownDataSection, wanted: int | Sequence[str], seed: int
) -> list[ChosenShape]:
    """Load some shapes of a split: a number from as many classes as possible, or object ids.

    Raises:
        ConfigError: If the split or a shape is not there.
        DataError: If a file is damaged.
    """
    check_split(prepared, "data.split", data.split)
    index = prepared.read(data.split, columns=["object_id", "label"])
    if not len(index):
        raise ConfigError(f"data.split={data.split}: it is empty in {prepared.path}")
    rows = _some(index, wanted) if isinstance(wanted, int) else _named(index, wanted, prepared)
    shapes = []
    for row in rows:
        record = _read_row(prepared, data.split, row)
        cloud = points_to_numpy(record["points"])[0].astype(np.float32)
        if "valid_points" in record.column_names:
            cloud = cloud[: record["valid_points"][0].as_py()]
        key, object_id, category = (
            record[name][0].as_py() for name in ("sample_id", "object_id", "category")
        )
        points = _bring(cloud, data, SampleGenerator(seed, torch.tensor([key])))
        name = _file_name(object_id.rstrip("/").rsplit("/", 1)[-1])
        shapes.append(ChosenShape(object_id, name, category, key, points))
    return shapes


def _some(index: pa.Table, count: int) -> list[int]:
    """Return rows of as many classes as possible, the first of each and then others in order."""
    _, first = np.unique(index["label"].to_numpy(), return_index=True)
    rest = np.setdiff1d(np.arange(len(index)), first)
    return [int(row) for row in np.concatenate([first, rest])[:count]]


def _named(index: pa.Table, names: Sequence[str], prepared: PreparedSet) -> list[int]:
    row_of = {name: row for row, name in enumerate(index["object_id"].to_pylist())}
    for name in names:
        if name not in row_of:
            near = get_close_matches(name, row_of, n=1, cutoff=0.5)
            example = near[0] if near else next(iter(row_of))
            hint = f"did you mean {example}?" if near else f"its ids look like {example}"
            raise ConfigError(f"shapes: {prepared.path} has no shape {name} in this split; {hint}")
    return [row_of[name] for name in names]


def _read_row(prepared: PreparedSet, split: str, row: int) -> pa.Table:
    """Read one row of a split; a large set is not read for a few shapes."""
    chosen = prepared.split(split)
    ends = np.cumsum(chosen.shard_rows)
    shard = int(np.searchsorted(ends, row, side="right"))
    columns = ["sample_id", "object_id", "category", "points"]
    if prepared.layout.valid_points:
        columns.append("valid_points")
    table = read_table(chosen.geometry[shard], columns)
    return table.slice(row - int(ends[shard]) + int(chosen.shard_rows[shard]), 1)


def _bring(cloud: np.ndarray, data: ShownDataSection, source: SampleGenerator) -> Tensor:
    """Choose points and normalize them as in training: (n, 3) to (N, 3)."""
    points = torch.from_numpy(np.array(cloud, dtype=np.float32))[None]
    if points.shape[1] > data.num_points:
        points = transforms.random_subset(points, data.num_points, source)
    return (transforms.normalize(points) if data.normalize else points)[0]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:60] or "shape"
