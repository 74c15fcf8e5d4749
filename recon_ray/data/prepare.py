"""Turn a source into a prepared set: sharded Parquet that can be interrupted and verified.

Each shard is built by a pure function of its task, written beside its final place and renamed, and
then recorded; the manifest comes last. So an interrupted job loses the shard in work and nothing
else, a folder without manifest is no data set, and the bytes do not depend on the parallelism.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import metadata
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recon_ray.data.meshes import (
    GREY,
    Shape,
    SurfacePoints,
    sample_generator,
    sample_points,
    to_y_up,
)
from recon_ray.data.plan import Plan, PrepareOptions, ShardTask, differences, make_plan
from recon_ray.data.render import encode_image, render_views
from recon_ray.data.schema import (
    MANIFEST,
    SCHEMA_VERSION,
    geometry_schema,
    tensor_column,
    views_schema,
    write_options,
)
from recon_ray.data.sources.base import Item, Listing, Sample, Source
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Record = dict[str, Any]
    Run = Callable[[Callable[[ShardTask], Record], Sequence[ShardTask]], Iterable[Record]]

__all__ = [
    "Item",
    "Listing",
    "PrepareOptions",
    "Sample",
    "ShardTask",
    "Source",
    "build_shard",
    "prepare",
    "run_processes",
    "run_serial",
]

logger = logging.getLogger(__name__)

QUARANTINE = "_quarantine.jsonl"
PLAN = "plan.json"
RECORDS = "_records"
TEMPORARY = ".tmp-"
TOLERATED_ANYWAY = 3  # a handful of bad files must not stop a small set; never more than half of it
PROGRESS_SECONDS = 5.0


def prepare(
    source: Source,
    output: Path | str,
    options: PrepareOptions,
    *,
    run: Run | None = None,
) -> dict[str, Any]:
    """Build, or finish, a prepared set.

    Args:
        source: What lists and loads the samples.
        output: Folder of the set; made if needed. A set of the same plan in it is continued.
        options: How samples become rows.
        run: Executes the shard tasks: ``run(build_shard, tasks)`` yields their records in any
            order. Default: one after the other in this process.

    Returns:
        The manifest.

    Raises:
        DataError: If the folder holds a set of another plan, too many samples are unreadable, or
            a file cannot be written.
    """
    root = Path(output)
    plan = make_plan(source, str(root), options)
    _adopt(root, plan)
    records = {task.key: record for task in plan.tasks if (record := _finished(task))}
    todo = [task for task in plan.tasks if task.key not in records]
    logger.info(
        "prepare %s: %d samples in %d shards, %d of them already built",
        plan.source_name,
        plan.num_samples,
        len(plan.tasks),
        len(records),
    )
    if todo:
        with contextlib.suppress(FileNotFoundError):  # an incomplete set must not look complete
            (root / MANIFEST).unlink()
    progress = _Progress(len(todo))
    _check_quarantine(root, plan, records, options)
    try:
        for record in (run or run_serial)(build_shard, todo):
            records[record["key"]] = record
            progress.add(record)
            _check_quarantine(root, plan, records, options)
    finally:
        _remove_temporaries(root)  # of processes that were ended while they wrote
    ordered = [records[task.key] for task in plan.tasks]
    return _finish(root, plan, ordered, options)


def run_serial(
    build: Callable[[ShardTask], Record], tasks: Sequence[ShardTask]
) -> Iterator[Record]:
    """Build the shards one after the other in this process."""
    for task in tasks:
        yield build(task)


def run_processes(num_processes: int) -> Run:
    """Give a runner that builds shards in several processes of this machine.

    Args:
        num_processes: How many at once.
    """

    def run(build: Callable[[ShardTask], Record], tasks: Sequence[ShardTask]) -> Iterator[Record]:
        if num_processes <= 1 or len(tasks) <= 1:
            yield from run_serial(build, tasks)
            return
        # Spawned, not forked: Arrow's and Embree's threads do not survive a fork.
        workers = min(num_processes, len(tasks))
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            futures = [pool.submit(build, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except KeyboardInterrupt:
                _end(pool)  # a shard may take minutes; it is built again
                raise
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that built a shard was killed, probably for lack of memory; lower "
                    "prepare.samples_per_shard or the number of workers and run again"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return run


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool at once; what they were writing is removed by the caller."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _end_with_parent() -> None:
    """Let a worker end when the job is killed; it would wait for further tasks for ever.

    A Ctrl-C in the terminal reaches the workers too: the parent alone decides what follows.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# One shard


@dataclass(frozen=True)
class _Row:
    item: Item
    sample_id: int
    caption: str
    drawn: SurfacePoints
    views: tuple[bytes, ...]


def build_shard(task: ShardTask) -> Record:
    """Build one shard, write its files and its record.

    Args:
        task: What to build; nothing else decides the bytes.

    Returns:
        The record: counts, hashes, statistics, and the samples that were left out with reasons.

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
            left_out.append(_quarantined(item, sample_id, str(error)))
    options = task.options
    schema = geometry_schema(
        options.num_points, options.points_dtype, normals=options.normals, colors=options.colors
    )
    geometry = _geometry_table(rows, options, schema)
    record: Record = {
        "key": task.key,
        "split": task.split,
        "planned": len(task.items),
        "rows": len(rows),
        "min_sample_id": rows[0].sample_id if rows else None,
        "max_sample_id": rows[-1].sample_id if rows else None,
        "geometry": _write_table(task, "geometry", geometry),
        "views": _write_table(task, "views", _views_table(rows)) if options.views else None,
        "labels": dict(sorted(Counter(row.item.category for row in rows).items())),
        "coordinates": _coordinate_sums(rows),
        "quarantine": left_out,
    }
    _write_json(_record_path(task), record)
    return record


def _quarantined(item: Item, sample_id: int, reason: str) -> dict[str, Any]:
    return {
        "object_id": item.object_id,
        "split": item.split,
        "sample_id": sample_id,
        "file": item.file,
        "reason": reason,
    }


def _load_row(task: ShardTask, item: Item, sample_id: int) -> _Row:
    options = task.options
    sample = task.source.load(item, options.image_size if options.views else None)
    shape = to_y_up(sample.shape, options.up_axis)
    generator = sample_generator(options.seed, item.object_id)
    name = item.file or item.object_id
    drawn = sample_points(shape, options.num_points, generator, name)
    if options.normals and drawn.normals is None:
        raise DataError(f"{name}: has no normals; set prepare.normals = false")
    points = _unit_sphere(drawn.points) if options.points_dtype == "float16" else drawn.points
    with np.errstate(over="ignore"):  # overflow is reported as the next line's sentence
        points = points.astype(options.points_dtype)
    if not np.isfinite(points).all():
        raise DataError(f"{name}: coordinates exceed the range of {options.points_dtype}")
    drawn = replace(drawn, points=points)
    caption = item.caption if sample.caption is None else sample.caption
    return _Row(item, sample_id, caption, drawn, _pictures(shape, sample, options))


def _unit_sphere(points: np.ndarray) -> np.ndarray:
    centered = points - points.mean(axis=0)
    return centered / max(float(np.linalg.norm(centered, axis=1).max()), 1e-30)


def _pictures(shape: Shape, sample: Sample, options: PrepareOptions) -> tuple[bytes, ...]:
    if not options.views:
        return ()
    images = sample.images or render_views(shape, options.views, options.image_size)
    return tuple(encode_image(image, options.image_format) for image in images)


def _geometry_table(rows: list[_Row], options: PrepareOptions, schema: pa.Schema) -> pa.Table:
    size = (len(rows), options.num_points, 3)
    columns: dict[str, Any] = {
        "sample_id": pa.array([row.sample_id for row in rows], pa.int64()),
        "object_id": pa.array([row.item.object_id for row in rows], pa.string()),
        "label": pa.array([row.item.label for row in rows], pa.int32()),
        "category": pa.array([row.item.category for row in rows], pa.string()),
        "caption": pa.array([row.caption for row in rows], pa.string()),
    }
    stacked = np.empty(size, options.points_dtype)
    for index, row in enumerate(rows):
        stacked[index] = row.drawn.points
    columns["points"] = tensor_column(stacked)
    if options.normals:
        normals = [row.drawn.normals for row in rows]
        columns["normals"] = tensor_column(np.array(normals, options.points_dtype).reshape(size))
    if options.colors:
        gray = np.full(size[1:], GREY, np.uint8)
        colors = [gray if row.drawn.colors is None else row.drawn.colors for row in rows]
        columns["colors"] = tensor_column(np.array(colors, np.uint8).reshape(size))
    return pa.table(columns, schema=schema)


def _views_table(rows: list[_Row]) -> pa.Table:
    columns = {
        "sample_id": [row.sample_id for row in rows],
        "views": [list(row.views) for row in rows],
    }
    return pa.table(columns, schema=views_schema())


def _coordinate_sums(rows: list[_Row]) -> dict[str, Any]:
    """Give what the set's statistics are added up from: count, sums, squares, extremes."""
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


# Files


def _write_table(task: ShardTask, kind: str, table: pa.Table) -> dict[str, Any]:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **write_options(table.schema))
    content = sink.getvalue()
    file = f"{kind}/{task.split}/{task.name}"
    _write_file(Path(task.root) / file, memoryview(content))
    return {
        "file": file,
        "bytes": content.size,
        "sha256": hashlib.sha256(memoryview(content)).hexdigest(),
    }


def _write_json(path: Path, value: object) -> None:
    _write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def _write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is either whole or absent.

    Raises:
        DataError: If the disk is full or the folder cannot be written to.
    """
    # Not named *.parquet: what a killed process leaves behind must not look like a shard.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free space there or choose "
            "another output, then run again: finished shards are kept"
        ) from error
    except BaseException:  # Ctrl-C
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _record_path(task: ShardTask) -> Path:
    return Path(task.root) / RECORDS / task.split / f"{Path(task.name).stem}.json"


def _read_json(path: Path) -> Any:  # noqa: ANN401 - what JSON holds is checked where it is used
    """Read JSON; None if the file is missing or damaged, which means it has to be made again."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _finished(task: ShardTask) -> Record | None:
    """Give the record of a shard that is already there, None if it has to be built."""
    record = _read_json(_record_path(task))
    if not isinstance(record, dict) or record.get("key") != task.key:
        return None
    for part in (record["geometry"], record["views"]):
        if part is None:
            continue
        path = Path(task.root) / part["file"]
        if not path.is_file() or path.stat().st_size != part["bytes"]:
            return None
    return record


def _adopt(root: Path, plan: Plan) -> None:
    """Take over the output folder: refuse another plan's, remove leftovers, write the plan."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: the output is a file; choose another folder")
    found = _read_json(root / PLAN)
    begun = any((root / RECORDS).rglob("*.json")) or (root / MANIFEST).exists()
    if begun and (not isinstance(found, dict) or found.get("hash") != plan.hash):
        settings = found.get("settings", {}) if isinstance(found, dict) else {}
        reason = differences(settings, plan.settings) if settings else "its plan.json is unreadable"
        raise DataError(
            f"{root}: holds another prepared set ({reason}); choose another output or delete the "
            "folder"
        )
    _remove_leftovers(root, plan)
    content = {"hash": plan.hash, "settings": dict(plan.settings), "shards": _shard_list(plan)}
    _write_json(root / PLAN, content)


def _shard_list(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "shard": f"{task.split}/{task.name}",
            "first_sample_id": task.first_sample_id,
            "object_ids": [item.object_id for item in task.items],
        }
        for task in plan.tasks
    ]


def _remove_leftovers(root: Path, plan: Plan) -> None:
    """Delete temporaries of dead processes, and shards that the plan does not have."""
    planned = {(task.split, task.name) for task in plan.tasks}
    for kind in ("geometry", "views"):
        for path in (root / kind).glob("*/part-*.parquet"):
            if (path.parent.name, path.name) not in planned:
                path.unlink()
    _remove_temporaries(root)


def _remove_temporaries(root: Path) -> None:
    for path in root.rglob(f"{TEMPORARY}*"):
        owner = path.name.removeprefix(TEMPORARY).split("-")[0]
        if not (owner.isdigit() and _alive(int(owner))):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # an earlier process of this number: this one has not begun to write
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# The whole set


class _Progress:
    """Logs how far the job is, every few seconds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.shards = 0
        self.samples = 0
        self.start = self.last = time.monotonic()

    def add(self, record: Record) -> None:
        self.shards += 1
        self.samples += record["rows"]
        now = time.monotonic()
        if now - self.last < PROGRESS_SECONDS and self.shards < self.total:
            return
        self.last = now
        rate = self.samples / max(now - self.start, 1e-9)
        logger.info("prepare: %d/%d shards, %.0f samples/s", self.shards, self.total, rate)


def _check_quarantine(
    root: Path, plan: Plan, records: dict[str, Record], options: PrepareOptions
) -> None:
    """Stop when too many samples are unreadable, leaving the reasons in the quarantine file."""
    entries = _quarantine(plan, records)
    total = plan.num_samples
    tolerated = int(options.max_quarantine_fraction * total)
    if options.max_quarantine_fraction > 0:
        tolerated = max(tolerated, min(TOLERATED_ANYWAY, total // 2))
    if len(entries) <= tolerated:
        return
    _write_quarantine(root, entries)
    raise DataError(
        f"{len(entries)} of {total} samples are unreadable, more than the tolerated {tolerated}, "
        f"the first being {entries[0]['reason']!r}; all reasons are in {root / QUARANTINE}: repair "
        "the files or raise prepare.max_quarantine_fraction"
    )


def _quarantine(plan: Plan, records: dict[str, Record]) -> list[dict[str, Any]]:
    known = [records[task.key] for task in plan.tasks if task.key in records]
    return [entry for record in known for entry in record["quarantine"]]


def _write_quarantine(root: Path, entries: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    _write_file(root / QUARANTINE, lines.encode())


def _finish(
    root: Path, plan: Plan, records: list[Record], options: PrepareOptions
) -> dict[str, Any]:
    entries = [entry for record in records for entry in record["quarantine"]]
    for entry in entries[:10]:
        logger.warning("left out %s: %s", entry["object_id"], entry["reason"])
    if len(entries) > 10:
        logger.warning("left out %d more: see %s", len(entries) - 10, root / QUARANTINE)
    _write_quarantine(root, entries)
    manifest = _manifest(plan, records, options)
    _write_json(root / MANIFEST, manifest)
    logger.info("prepare: %d samples, %d left out, in %s", manifest["rows"], len(entries), root)
    return manifest


def _manifest(plan: Plan, records: list[Record], options: PrepareOptions) -> dict[str, Any]:
    histogram: Counter[str] = Counter(dict.fromkeys(plan.classes, 0))
    for record in records:
        histogram.update(record["labels"])
    normalization = "unit_sphere" if options.points_dtype == "float16" else "none"
    views = {
        "format": options.image_format,
        "size": options.image_size,
        "per_sample": options.views,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": _package_version(),
        "plan_hash": plan.hash,
        "source": plan.source_name,
        "source_settings": {k: v for k, v in plan.settings.items() if k.startswith("source.")},
        "license": plan.license_note,
        "num_points": options.num_points,
        "points_dtype": options.points_dtype,
        "has_normals": options.normals,
        "has_colors": options.colors,
        "source_up_axis": options.up_axis,
        "up_axis": "y",
        "normalization": normalization,
        "seed": options.seed,
        "classes": list(plan.classes),
        "rows": sum(record["rows"] for record in records),
        "quarantined": sum(len(record["quarantine"]) for record in records),
        "class_histogram": dict(histogram),
        "coordinates": _statistics([record["coordinates"] for record in records]),
        "views": views if options.views else None,
        "splits": _manifest_splits(plan, records),
    }


def _manifest_splits(plan: Plan, records: list[Record]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for task, record in zip(plan.tasks, records, strict=True):
        split = splits.setdefault(
            task.split,
            {"rows": 0, "planned": 0, "first_sample_id": task.first_sample_id, "shards": []},
        )
        split["rows"] += record["rows"]
        split["planned"] += record["planned"]
        kept = ("rows", "min_sample_id", "max_sample_id", "geometry", "views")
        split["shards"].append({key: record[key] for key in kept})
    return splits


def _statistics(parts: list[dict[str, Any]]) -> dict[str, float | None]:
    parts = [part for part in parts if part["count"]]
    count = sum(part["count"] for part in parts)
    if not count:
        return {"min": None, "max": None, "mean": None, "std": None}
    mean = sum(part["sum"] for part in parts) / count
    variance = sum(part["squares"] for part in parts) / count - mean**2
    return {
        "min": min(part["min"] for part in parts),
        "max": max(part["max"] for part in parts),
        "mean": mean,
        "std": max(variance, 0.0) ** 0.5,
    }


def _package_version() -> str:
    try:
        return metadata.version("recon-ray")
    except metadata.PackageNotFoundError:
        return "unknown"
