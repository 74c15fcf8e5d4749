"""Preparation of a set from a source: sharded Parquet, resumable after any interruption.

Each shard is built by a pure function of its task, written beside its final place and renamed, and
then recorded; the manifest comes last. So an interrupted job loses only the shard in work, a folder
without manifest is not a prepared set, and the bytes do not depend on the parallelism.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_ray.data.format.files import (
    read_json,
    remove_temporaries,
    write_file,
    write_json,
    write_table,
)
from recon_ray.data.format.manifest import (
    SHARD_TABLE,
    ShardRecords,
    check_columns,
    make_manifest,
    merged_manifest,
)
from recon_ray.data.format.prepared import PreparedSet, manifest_of
from recon_ray.data.format.schema import KINDS, MANIFEST
from recon_ray.data.prepare.build_shard import RECORDS, build_shard, finished
from recon_ray.data.prepare.repairs import continue_plan, is_repaired
from recon_ray.data.prepare.runners import ShardProgress, run_serial
from recon_ray.data.prepare.shard_plan import ChosenTasks, differences, make_plan
from recon_ray.errors import DataError
from recon_ray.storage import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from recon_ray.data.prepare.runners import Record, Run
    from recon_ray.data.prepare.shard_plan import Plan, PrepareOptions, ShardTask
    from recon_ray.data.sources.base import Source

logger = logging.getLogger(__name__)

QUARANTINE = "_quarantine.jsonl"
PLAN = "plan.json"
FOLDERS = (*KINDS, RECORDS)
TOLERATED_ANYWAY = 3  # a handful of bad files must not stop a small set; never more than half of it
SHOWN = 10
UNSHARED = (
    "{root}: shard {shard} was built, but is not there; the output has to be a folder that all "
    "nodes share"
)


def prepare(
    source: Source,
    output: Place | os.PathLike[str] | str,
    options: PrepareOptions,
    *,
    run: Run = run_serial,
    append: bool = False,
) -> dict[str, Any]:
    """Build, or finish, a prepared set.

    Args:
        source: Lists and loads the samples.
        output: Folder of the set; made if needed. A set of the same plan in it is continued.
        options: How samples become rows.
        append: Append to a finished set in the output, as its next version; runs that were begun
            on an earlier version go on with that.
        run: Executes the shard tasks: ``run(build_shard, tasks)`` yields their records in any
            order.

    Returns:
        The manifest.

    Raises:
        ConfigError: If an option contradicts the source.
        DataError: If the folder holds a set of another plan, too many samples are unreadable, or
            a file cannot be written.
    """
    root = Place.of(output)
    if root.is_local and Path(root).exists() and not Path(root).is_dir():
        raise DataError(f"{root}: the output is a file; choose another folder")
    files = root.files()
    before = PreparedSet.open(root) if append else None
    plan = make_plan(source, str(root), options, after=before)
    if before is not None and before.manifest["plan_hash"] == plan.hash:
        logger.info("prepare: version %d of %s holds these samples", before.version, root)
        return before.manifest
    if before is not None:
        check_columns(before, plan)
        _check_new(before, plan)
    elif manifest_of(1) in files:
        raise DataError(
            f"{root}: shapes were appended to this set, which preparing it again would lose; set "
            "prepare.append=true, or choose another output"
        )
    plan = _adopt(root, plan, files)
    records = _finished(root, plan, files)
    todo = np.flatnonzero(~records.is_built)
    logger.info(
        "prepare %s: %d samples in %d shards, %d of them already built",
        plan.source_name,
        plan.num_samples,
        len(plan.tasks),
        len(plan.tasks) - len(todo),
    )
    if len(todo) and before is None:  # an incomplete set must not look complete
        (root / MANIFEST).unlink()
    _check_quarantine(root, plan, records)
    try:
        for record in _built(run, ChosenTasks(plan.tasks, todo)):
            records.add(record["number"], record)
            _check_quarantine(root, plan, records)
    finally:
        remove_temporaries(root, FOLDERS)  # of processes that were ended while they wrote
    if len(todo) and (lost := records.missing(root.files())) is not None:
        raise DataError(UNSHARED.format(root=root, shard=lost))
    return _finish(root, plan, records, before)


def _check_new(before: PreparedSet, plan: Plan) -> None:
    """Check that no sample is in the set already, as after a repair of a file that was left out.

    Raises:
        DataError: Naming the first one that is.
    """
    for split in before.splits.values():
        for table in before.parts(split, ["object_id"]):
            if len(known := plan.items.named(table["object_id"].to_pylist())):
                raise DataError(
                    f"{before.path}: {known[0].object_id!r} is in it already, in split "
                    f"{split.name!r}; append only new shapes, or prepare the whole set again"
                )


def _finished(root: Place, plan: Plan, files: Mapping[str, int]) -> ShardRecords:
    """Return the records of the shards that need not be built, by one listing of the output."""
    found, repaired = ShardRecords(plan), 0
    for file in (file for file in files if file.startswith(f"{RECORDS}/")):
        _, split, name = [*file.split("/"), "", ""][:3]
        number = plan.tasks.number_of(split, name.replace(".json", ".parquet"))
        if number is None:
            continue
        task = plan.tasks[number]
        record = finished(task, files)
        if record is not None and is_repaired(task, record):
            repaired += 1
        elif record is not None:
            found.add(number, record)
    if repaired:
        logger.info("files that were left out have changed: %d shards with them", repaired)
    return found


def _built(run: Run, todo: ChosenTasks) -> Iterator[Record]:
    """Build the shards, yield their records as they come, and stop the runner at the end."""
    size = todo.tasks.options.samples_per_shard
    progress = ShardProgress("prepare", shards=len(todo), units=len(todo) * size, unit="samples")
    records = run(build_shard, todo)
    try:
        for number, record in enumerate(records):
            if not number:  # at once, not after hours
                _check_shared(todo.tasks[record["number"]], record)
            progress.add(record["planned"])
            yield record
    finally:
        if hasattr(records, "close"):
            records.close()


def _check_shared(task: ShardTask, record: Record) -> None:
    """Check that the first shard, which another node may have built, is there.

    Raises:
        DataError: If it is not.
    """
    place = Place(task.root)
    if not (place / record["geometry"]["file"]).is_file():
        raise DataError(UNSHARED.format(root=task.root, shard=f"{task.split}/{task.name}"))


# The output folder


def _adopt(root: Place, plan: Plan, files: dict[str, int]) -> Plan:
    """Take over the output folder: reject another plan's, remove leftovers, write the plan.

    Args:
        root: The folder.
        plan: What is asked for.
        files: The folder's files and their bytes.

    Returns:
        The folder's plan if only files that were left out have changed since; else the given one.

    Raises:
        DataError: If the output holds a set of another plan.
    """
    version = plan.tasks.version
    file = _of_version(PLAN, version)
    found = read_json(root / file) if file in files else None
    prefix = plan.tasks.prefix
    records = [
        name
        for name in files
        if name.startswith(f"{RECORDS}/")
        and name.endswith(".json")
        and name.rpartition("/")[2].startswith(prefix)
    ]
    begun = bool(records) or (MANIFEST in files and version == 1)
    if begun and isinstance(found, dict):
        plan = continue_plan(plan, found, (root / name for name in records))
    if begun and (not isinstance(found, dict) or found.get("hash") != plan.hash):
        settings = found.get("settings", {}) if isinstance(found, dict) else {}
        reason = differences(settings, plan.settings) if settings else "its plan.json is unreadable"
        raise DataError(
            f"{root}: holds another prepared set ({reason}); choose another output or delete the "
            "folder"
        )
    for leftover in [name for name in files if _is_leftover(name, plan)]:
        (root / leftover).unlink()
        del files[leftover]
    remove_temporaries(root, FOLDERS)
    content = {"hash": plan.hash, "settings": dict(plan.settings), "repaired": dict(plan.repaired)}
    if content != found:
        write_json(root / file, content)
    return plan


def _is_leftover(file: str, plan: Plan) -> bool:
    """Return whether a file is a shard of an earlier plan."""
    kind, split, name = [*file.split("/"), "", ""][:3]
    is_shard = kind in KINDS and name.startswith(plan.tasks.prefix) and name.endswith(".parquet")
    return is_shard and plan.tasks.number_of(split, name) is None


def _of_version(name: str, version: int) -> str:
    """Return the name of a file of one version of a set; the first one's is the plain one."""
    stem, dot, suffix = name.partition(".")
    return name if version == 1 else f"{stem}-{version}{dot}{suffix}"


# The whole set


def _check_quarantine(root: Place, plan: Plan, records: ShardRecords) -> None:
    """Stop when too many samples are unreadable, leaving the reasons in the quarantine file."""
    total, fraction = plan.num_samples, plan.options.max_quarantine_fraction
    tolerated = int(fraction * total)
    if fraction > 0:
        tolerated = max(tolerated, min(TOLERATED_ANYWAY, total // 2))
    if records.quarantined <= tolerated:
        return
    entries = records.quarantine
    file = root / _of_version(QUARANTINE, plan.tasks.version)
    _write_quarantine(file, [*entries, *_excluded(plan)])
    raise DataError(
        f"{len(entries)} of {total} samples are unreadable, more than the tolerated {tolerated}, "
        f"the first being {entries[0]['reason']!r}; all reasons are in {file}: repair "
        "the files and run again, or raise prepare.max_quarantine_fraction"
    )


def _excluded(plan: Plan) -> list[dict[str, Any]]:
    """Return the quarantine entries of samples that the source left out by rule."""
    return [
        {"object_id": e.object_id, "file": e.file, "reason": e.reason, "planned": False}
        for e in plan.listing.excluded
    ]


def _write_quarantine(file: Place, entries: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    write_file(file, lines.encode())


def _warn(what: str, entries: list[dict[str, Any]], file: Place) -> None:
    for entry in entries[:SHOWN]:
        logger.warning("%s %s: %s", what, entry["object_id"], entry["reason"])
    if len(entries) > SHOWN:
        logger.warning("%s %d more: see %s", what, len(entries) - SHOWN, file)


def _finish(
    root: Place, plan: Plan, records: ShardRecords, before: PreparedSet | None
) -> dict[str, Any]:
    entries, excluded = records.quarantine, _excluded(plan)
    version = plan.tasks.version
    quarantine = root / _of_version(QUARANTINE, version)
    _warn("left out", entries, quarantine)
    _warn("left out by rule", excluded, quarantine)
    _write_quarantine(quarantine, [*entries, *excluded])
    tables = {
        name: {**write_table(root, f"{name}.parquet", table), "rows": len(table)}
        for name, table in plan.listing.tables.items()
    }
    shards = write_table(root, SHARD_TABLE.format(version=version), records.table())
    manifest = make_manifest(plan, records, tables, [shards])
    if before is not None:
        manifest = merged_manifest(before, manifest)
        if "shards" not in before.manifest:  # of an earlier schema
            table = write_table(root, SHARD_TABLE.format(version=1), before.shards)
            manifest["shards"] = [table, shards]
        write_file(root / manifest_of(before.version), (root / MANIFEST).read_bytes())
    write_json(root / MANIFEST, manifest)
    logger.info("prepare: %d samples, %d left out, in %s", manifest["rows"], len(entries), root)
    return manifest
