"""Preparation of a set from a source: sharded Parquet, resumable after any interruption.

Each shard is built by a pure function of its task, written beside its final place and renamed, and
then recorded; the manifest comes last. So an interrupted job loses only the shard in work, a folder
without manifest is not a prepared set, and the bytes do not depend on the parallelism.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon_ray.data.format.files import (
    read_json,
    remove_temporaries,
    write_file,
    write_json,
    write_table,
)
from recon_ray.data.format.manifest import make_manifest
from recon_ray.data.format.schema import KINDS, MANIFEST
from recon_ray.data.prepare.build_shard import RECORDS, build_shard, finished
from recon_ray.data.prepare.repairs import continue_plan, is_repaired
from recon_ray.data.prepare.runners import ShardProgress, run_serial
from recon_ray.data.prepare.shard_plan import differences, make_plan
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from recon_ray.data.prepare.runners import Record, Run
    from recon_ray.data.prepare.shard_plan import Plan, PrepareOptions, ShardTask
    from recon_ray.data.sources.base import Source

logger = logging.getLogger(__name__)

QUARANTINE = "_quarantine.jsonl"
PLAN = "plan.json"
FOLDERS = (*KINDS, RECORDS)
TOLERATED_ANYWAY = 3  # a handful of bad files must not stop a small set; never more than half of it
SHOWN = 10


def prepare(
    source: Source, output: Path | str, options: PrepareOptions, *, run: Run = run_serial
) -> dict[str, Any]:
    """Build, or finish, a prepared set.

    Args:
        source: Lists and loads the samples.
        output: Folder of the set; made if needed. A set of the same plan in it is continued.
        options: How samples become rows.
        run: Executes the shard tasks: ``run(build_shard, tasks)`` yields their records in any
            order.

    Returns:
        The manifest.

    Raises:
        ConfigError: If an option contradicts the source.
        DataError: If the folder holds a set of another plan, too many samples are unreadable, or
            a file cannot be written.
    """
    root = Path(output)
    plan = _adopt(root, make_plan(source, str(root), options))
    records = _finished(plan)
    todo = [task for task in plan.tasks if task.key not in records]
    logger.info(
        "prepare %s: %d samples in %d shards, %d of them already built",
        plan.source_name,
        plan.num_samples,
        len(plan.tasks),
        len(records),
    )
    if todo:  # an incomplete set must not look complete
        (root / MANIFEST).unlink(missing_ok=True)
    _check_quarantine(root, plan, records)
    try:
        for record in _built(run, todo):
            records[record["key"]] = record
            _check_quarantine(root, plan, records)
    finally:
        remove_temporaries(root, FOLDERS)  # of processes that were ended while they wrote
    return _finish(root, plan, [records[task.key] for task in plan.tasks])


def _finished(plan: Plan) -> dict[str, Record]:
    """Return the records of the shards that need not be built."""
    found = [(task, record) for task in plan.tasks if (record := finished(task))]
    kept = {task.key: record for task, record in found if not is_repaired(task, record)}
    if len(kept) < len(found):
        count = len(found) - len(kept)
        logger.info("files that were left out have changed: %d shards with them", count)
    return kept


def _built(run: Run, todo: Sequence[ShardTask]) -> Iterator[Record]:
    """Build the shards, yield their records as they come, and stop the runner at the end."""
    samples = sum(len(task.items) for task in todo)
    progress = ShardProgress("prepare", shards=len(todo), units=samples, unit="samples")
    tasks = {task.key: task for task in todo}
    records = run(build_shard, todo)
    try:
        for record in records:
            task = tasks[record["key"]]
            if not finished(task):
                raise DataError(
                    f"{task.root}: shard {task.split}/{task.name} was built, but is not there; the "
                    "output has to be a folder that all nodes share"
                )
            progress.add(record["planned"])
            yield record
    finally:
        if hasattr(records, "close"):
            records.close()


# The output folder


def _adopt(root: Path, plan: Plan) -> Plan:
    """Take over the output folder: reject another plan's, remove leftovers, write the plan.

    Returns:
        The folder's plan if only files that were left out have changed since; else the given one.

    Raises:
        DataError: If the output is a file or holds a set of another plan.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: the output is a file; choose another folder")
    found = read_json(root / PLAN)
    begun = any((root / RECORDS).rglob("*.json")) or (root / MANIFEST).exists()
    if begun and isinstance(found, dict):
        plan = continue_plan(plan, found, root / RECORDS)
    if begun and (not isinstance(found, dict) or found.get("hash") != plan.hash):
        settings = found.get("settings", {}) if isinstance(found, dict) else {}
        reason = differences(settings, plan.settings) if settings else "its plan.json is unreadable"
        raise DataError(
            f"{root}: holds another prepared set ({reason}); choose another output or delete the "
            "folder"
        )
    planned = {(task.split, task.name) for task in plan.tasks}
    for path in (path for kind in KINDS for path in (root / kind).glob("*/part-*.parquet")):
        if (path.parent.name, path.name) not in planned:
            path.unlink()
    remove_temporaries(root, FOLDERS)
    shards = [
        {
            "shard": f"{task.split}/{task.name}",
            "first_sample_id": task.first_sample_id,
            "object_ids": [item.object_id for item in task.items],
        }
        for task in plan.tasks
    ]
    settings, repaired = dict(plan.settings), dict(plan.repaired)
    content = {"hash": plan.hash, "settings": settings, "shards": shards, "repaired": repaired}
    write_json(root / PLAN, content)
    return plan


# The whole set


def _check_quarantine(root: Path, plan: Plan, records: dict[str, Record]) -> None:
    """Stop when too many samples are unreadable, leaving the reasons in the quarantine file."""
    known = [records[task.key] for task in plan.tasks if task.key in records]
    entries = [entry for record in known for entry in record["quarantine"]]
    total, fraction = plan.num_samples, plan.options.max_quarantine_fraction
    tolerated = int(fraction * total)
    if fraction > 0:
        tolerated = max(tolerated, min(TOLERATED_ANYWAY, total // 2))
    if len(entries) <= tolerated:
        return
    _write_quarantine(root, [*entries, *_excluded(plan)])
    raise DataError(
        f"{len(entries)} of {total} samples are unreadable, more than the tolerated {tolerated}, "
        f"the first being {entries[0]['reason']!r}; all reasons are in {root / QUARANTINE}: repair "
        "the files and run again, or raise prepare.max_quarantine_fraction"
    )


def _excluded(plan: Plan) -> list[dict[str, Any]]:
    """Return the quarantine entries of samples that the source left out by rule."""
    return [
        {"object_id": e.object_id, "file": e.file, "reason": e.reason, "planned": False}
        for e in plan.listing.excluded
    ]


def _write_quarantine(root: Path, entries: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    write_file(root / QUARANTINE, lines.encode())


def _warn(what: str, entries: list[dict[str, Any]], file: Path) -> None:
    for entry in entries[:SHOWN]:
        logger.warning("%s %s: %s", what, entry["object_id"], entry["reason"])
    if len(entries) > SHOWN:
        logger.warning("%s %d more: see %s", what, len(entries) - SHOWN, file)


def _finish(root: Path, plan: Plan, records: list[Record]) -> dict[str, Any]:
    entries = [entry for record in records for entry in record["quarantine"]]
    excluded = _excluded(plan)
    _warn("left out", entries, root / QUARANTINE)
    _warn("left out by rule", excluded, root / QUARANTINE)
    _write_quarantine(root, [*entries, *excluded])
    tables = {
        name: {**write_table(root, f"{name}.parquet", table), "rows": len(table)}
        for name, table in plan.listing.tables.items()
    }
    manifest = make_manifest(plan, records, tables)
    write_json(root / MANIFEST, manifest)
    logger.info("prepare: %d samples, %d left out, in %s", manifest["rows"], len(entries), root)
    return manifest
