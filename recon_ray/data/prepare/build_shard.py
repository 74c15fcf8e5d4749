"""Construction of one shard: a pure function of its task, written to files and recorded."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recon_ray.data.format.files import is_text, read_json, write_json, write_table
from recon_ray.data.format.schema import KINDS, tensor_column
from recon_ray.data.prepare.render import encode_image, load_image, render_views
from recon_ray.data.prepare.repairs import file_stamp
from recon_ray.data.prepare.sampling import SurfacePoints, pad_points, sample_points
from recon_ray.data.readers.meshes import GREY, Shape, sample_generator, to_y_up
from recon_ray.errors import DataError
from recon_ray.storage import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recon_ray.data.format.schema import Layout
    from recon_ray.data.prepare.runners import Record
    from recon_ray.data.prepare.sampling import Sampling
    from recon_ray.data.prepare.shard_plan import PrepareOptions, ShardTask
    from recon_ray.data.sources.base import Item, Sample

logger = logging.getLogger(__name__)

RECORDS = "_records"


@dataclass(frozen=True)
class _Row:
    item: Item
    sample_id: int
    caption: str
    drawn: SurfacePoints
    views: tuple[bytes, ...]
    features: dict[str, np.ndarray]


def build_shard(task: ShardTask) -> Record:
    """Build one shard, write its files and its record.

    Args:
        task: The shard; its bytes depend on nothing else.

    Returns:
        The record: counts, hashes, statistics, and the left-out samples with reasons.

    Raises:
        DataError: If a file cannot be written.
    """
    rows: list[_Row] = []
    left_out: list[dict[str, Any]] = []
    for offset, item in enumerate(task.items):
        sample_id = task.first_sample_id + offset
        try:
            rows.append(_load_row(task, item, sample_id))
        except DataError as error:
            left_out.append(
                {
                    "object_id": item.object_id,
                    "split": item.split,
                    "sample_id": sample_id,
                    "file": item.file,
                    "reason": str(error),
                    "planned": True,
                    "size_bytes": item.size_bytes,
                    "stamp": file_stamp(task.source, item),
                }
            )
    record: Record = {
        "key": task.key,
        "number": task.number,
        "split": task.split,
        "planned": len(task.items),
        "rows": len(rows),
        "min_sample_id": rows[0].sample_id if rows else None,
        "max_sample_id": rows[-1].sample_id if rows else None,
        **_write_tables(task, rows),
        "labels": dict(sorted(Counter(row.item.category for row in rows).items())),
        "coordinates": _coordinate_sums(rows),
        "quarantine": left_out,
    }
    write_json(_record_place(task), record)
    return record


def finished(task: ShardTask, files: Mapping[str, int]) -> Record | None:
    """Return the record of a finished shard, None if it has to be built.

    Args:
        task: The shard.
        files: The files of the output and their bytes.
    """
    record = read_json(_record_place(task))
    if not isinstance(record, dict) or record.get("key") != task.key:
        return None
    parts = filter(None, map(record.get, KINDS))
    return record if all(files.get(part["file"]) == part["bytes"] for part in parts) else None


def _record_place(task: ShardTask) -> Place:
    return Place(task.root) / RECORDS / task.split / f"{Path(task.name).stem}.json"


# Rows


def _load_row(task: ShardTask, item: Item, sample_id: int) -> _Row:
    options = task.options
    name = item.file or item.object_id
    sample, images = _load(task, item, name)
    shape = to_y_up(sample.shape, options.up_axis or "y")
    drawn = _stored(_drawn(task, item, shape), task.layout, name)
    caption = item.caption if sample.caption is None else sample.caption
    if not is_text(caption):
        raise DataError(f"{name}: its caption {caption[:40]!a} is not text that UTF-8 can hold")
    features = _features(sample, task.layout, name)
    return _Row(item, sample_id, caption, drawn, _views(shape, images, options, name), features)


def _load(task: ShardTask, item: Item, name: str) -> tuple[Sample, list[np.ndarray]]:
    """Load a sample of the source and, for a set with views, its own pictures.

    Raises:
        DataError: If that fails in any way: one file in a million that breaks a reader must not
            stop the others, and is listed with the reader's exception.
    """
    try:
        sample = task.source.load(item)
        names = item.images if task.options.views else ()
        folder = Path(getattr(task.source, "folder", ""))
        size, fit = task.options.image_size, task.options.image_fit
        return sample, [load_image(folder / image, size, fit=fit) for image in names]
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        logger.debug("%s: cannot be loaded", name, exc_info=True)
        raise DataError(f"{name}: cannot be loaded ({reason})") from error


def _drawn(task: ShardTask, item: Item, shape: Shape) -> SurfacePoints:
    layout, name = task.layout, item.file or item.object_id
    if layout.normals and shape.normals is None and not shape.is_mesh:
        raise DataError(f"{name}: has no normals; set prepare.normals = false")
    if layout.part_labels and shape.part_labels is None:
        raise DataError(f"{name}: has no part labels")
    if layout.valid_points:
        return pad_points(shape, layout.num_points, name)
    generator = sample_generator(task.options.seed, item.object_id)
    sampling: Sampling = "fps" if task.options.sampling == "fps" else "random"
    return sample_points(shape, layout.num_points, generator, name, sampling=sampling)


def _stored(drawn: SurfacePoints, layout: Layout, name: str) -> SurfacePoints:
    """Convert the points to the stored type.

    Raises:
        DataError: If they exceed its range.
    """
    points = _unit_sphere(drawn) if layout.dtype == "float16" else drawn.points
    with np.errstate(over="ignore"):  # reported below
        points = points.astype(layout.dtype)
    if not np.isfinite(points).all():
        raise DataError(f"{name}: coordinates exceed the range of {layout.dtype}")
    return replace(drawn, points=points)


def _unit_sphere(drawn: SurfacePoints) -> np.ndarray:
    """Center and scale by the real points; the others repeat them."""
    real = drawn.points[: drawn.valid]
    centered = drawn.points - real.mean(axis=0)
    return centered / max(float(np.linalg.norm(centered, axis=1).max()), 1e-30)


def _views(
    shape: Shape, images: list[np.ndarray], options: PrepareOptions, name: str
) -> tuple[bytes, ...]:
    if options.views and not images:
        if options.view_style == "shaded" and not shape.is_mesh:
            raise DataError(f"{name}: has no faces to shade; set prepare.view_style = auto")
        images = render_views(shape, options.views, options.image_size, style=options.view_style)
    return tuple(encode_image(image, options.image_format) for image in images)


def _features(sample: Sample, layout: Layout, name: str) -> dict[str, np.ndarray]:
    """Return the source's teacher features as float16, filled up with zeros.

    Raises:
        DataError: If they are missing, too many, of another width or not finite.
    """
    features = {}
    for column in ("image_features", "text_features"):
        shape, found = getattr(layout, column), getattr(sample, column)
        if shape is None:
            continue
        if found is None or found.ndim != 2 or len(found) > shape[0] or found.shape[1] != shape[1]:
            size = "none" if found is None else f"shape {found.shape}"
            raise DataError(f"{name}: {column} are {size}; expected up to {shape[0]} x {shape[1]}")
        features[column] = np.zeros(shape, np.float16)
        with np.errstate(over="ignore"):
            features[column][: len(found)] = found
        if not np.isfinite(features[column]).all():
            raise DataError(f"{name}: {column} are not finite numbers of the range of float16")
    return features


# Tables


def _write_tables(task: ShardTask, rows: list[_Row]) -> dict[str, Any]:
    """Write the files of every kind of the set; return their entries, None for other kinds."""
    columns = _geometry_columns(rows, task.layout)
    columns |= {"sample_id": [row.sample_id for row in rows], "views": [row.views for row in rows]}
    for name in ("image_features", "text_features"):
        if (shape := getattr(task.layout, name)) is not None:
            columns[name] = _stacked([row.features[name] for row in rows], "float16", shape)
    written: dict[str, Any] = dict.fromkeys(KINDS)
    for kind, schema in task.layout.schemas().items():
        table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        written[kind] = write_table(task.root, f"{kind}/{task.split}/{task.name}", table)
    return written


def _geometry_columns(rows: list[_Row], layout: Layout) -> dict[str, Any]:
    size = (layout.num_points, 3)
    drawn = [row.drawn for row in rows]
    columns: dict[str, Any] = {
        "object_id": [row.item.object_id for row in rows],
        "label": [row.item.label for row in rows],
        "category": [row.item.category for row in rows],
        "caption": [row.caption for row in rows],
        "points": _stacked([d.points for d in drawn], layout.dtype, size),
    }
    if layout.normals:
        columns["normals"] = _stacked([d.normals for d in drawn], layout.dtype, size)
    if layout.colors:
        gray = np.full(size, GREY, np.uint8)
        colors = [gray if d.colors is None else d.colors for d in drawn]
        columns["colors"] = _stacked(colors, "uint8", size)
    if layout.part_labels:
        columns["part_labels"] = _stacked([d.part_labels for d in drawn], "uint8", size[:1])
    if layout.valid_points:
        columns["valid_points"] = [d.valid for d in drawn]
    return columns


def _stacked(arrays: list[Any], dtype: str, shape: tuple[int, ...]) -> pa.FixedShapeTensorArray:
    stacked = np.empty((len(arrays), *shape), dtype)
    for index, array in enumerate(arrays):
        stacked[index] = array
    return tensor_column(stacked)


def _coordinate_sums(rows: list[_Row]) -> dict[str, Any]:
    """Return the count, sum, squares and extremes from which the set's statistics are added up."""
    if not rows:
        return {"count": 0, "sum": 0.0, "squares": 0.0, "min": None, "max": None}
    clouds = [row.drawn.points for row in rows]
    return {
        "count": sum(points.size for points in clouds),
        "sum": sum(float(points.sum(dtype=np.float64)) for points in clouds),
        "squares": sum(float((points.astype(np.float64) ** 2).sum()) for points in clouds),
        "min": min(float(points.min()) for points in clouds),
        "max": max(float(points.max()) for points in clouds),
    }
