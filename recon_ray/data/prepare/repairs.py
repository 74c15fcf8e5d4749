"""Files that were left out of a set and repaired afterwards: read again, within the same plan."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon_ray.data.format.files import read_json
from recon_ray.data.prepare.shard_plan import with_sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from recon_ray.data.prepare.runners import Record
    from recon_ray.data.prepare.shard_plan import Plan, ShardTask
    from recon_ray.data.sources.base import Item, Source
    from recon_ray.storage import Place

logger = logging.getLogger(__name__)

CHANGED = -2  # a size that neither a file nor a missing one has


def file_stamp(source: Source, item: Item) -> list[list[int] | None]:
    """Return size and time of change (ns) of a sample's file and pictures; None if missing."""
    folder = getattr(source, "folder", None)  # sources that compute their samples have none
    return [] if folder is None else [_stamp(folder, name) for name in (item.file, *item.images)]


def _stamp(folder: Path, name: str) -> list[int] | None:
    for path in (folder / name, folder / name.partition("#")[0]):  # a row in a file
        try:
            found = path.stat()
        except OSError:
            continue
        return [found.st_size, found.st_mtime_ns]
    return None


def is_repaired(task: ShardTask, record: Record) -> bool:
    """Return whether a file that a finished shard left out has changed since."""
    if not record["quarantine"]:
        return False
    items = {item.object_id: item for item in task.items}
    return any(
        entry.get("stamp") != file_stamp(task.source, items[entry["object_id"]])
        for entry in record["quarantine"]
    )


def continue_plan(plan: Plan, found: Mapping[str, Any], records: Iterable[Place]) -> Plan:
    """Return the plan of a folder's ``plan.json``, if only files that were left out changed.

    Returns:
        The plan with the sizes that those files had; their shards keep their keys. Any other
        change gives another hash than the folder's.
    """
    repaired = found.get("repaired", {})
    if found.get("hash") == plan.hash and not repaired:
        return plan
    left_out = _left_out(records)
    sizes = {}
    named = plan.items.named({*left_out, *repaired})
    for item in named:
        if item.object_id in left_out:
            sizes[item.object_id] = left_out[item.object_id]
        else:
            planned, built = repaired[item.object_id]
            sizes[item.object_id] = planned if item.size_bytes == built else CHANGED
    return with_sizes(plan, sizes) if sizes else plan


def _left_out(records: Iterable[Place]) -> dict[str, int]:
    """Return the planned size of every sample that the finished shards left out."""
    found = map(read_json, records)
    entries = [e for r in found if isinstance(r, dict) for e in r.get("quarantine", ())]
    return {e["object_id"]: e["size_bytes"] for e in entries if "size_bytes" in e}
