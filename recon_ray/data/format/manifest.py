"""Content of ``_manifest.json`` and of the shard table beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recon_ray import __version__
from recon_ray.data.format.schema import SCHEMA_VERSION
from recon_ray.data.format.shards import shard_schema
from recon_ray.data.sources.cards import as_record
from recon_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recon_ray.data.format.prepared import PreparedSet
    from recon_ray.data.prepare.runners import Record
    from recon_ray.data.prepare.shard_plan import Plan

#: Name of the shard table of a version of a set.
SHARD_TABLE = "_shards-{version}.parquet"
STATISTICS = ("count", "sum", "squares", "min", "max")


class ShardRecords:
    """Records of the shards of a plan as columns: some 200 bytes a shard.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        count, self.kinds = len(plan.tasks), list(plan.layout.schemas())
        self.is_built = np.zeros(count, bool)
        self._ids = np.zeros((count, 2), np.int64)  # of the first and the last row
        self._rows = np.zeros(count, np.int64)
        self._bytes = np.zeros((count, len(self.kinds)), np.int64)
        self._hashes = np.zeros((count, len(self.kinds), 32), np.uint8)
        self._coordinates = np.full((count, len(STATISTICS)), np.nan)
        self._labels: dict[str, Counter[str]] = {split: Counter() for split in plan.tasks.order}
        self._quarantine: dict[int, list[dict[str, Any]]] = {}
        self.quarantined = 0

    def add(self, number: int, record: Record) -> None:
        """Add the record of a shard."""
        self.is_built[number] = True
        self._rows[number] = record["rows"]
        if record["rows"]:
            self._ids[number] = record["min_sample_id"], record["max_sample_id"]
        for place, kind in enumerate(self.kinds):
            self._bytes[number, place] = record[kind]["bytes"]
            self._hashes[number, place] = np.frombuffer(bytes.fromhex(record[kind]["sha256"]), "u1")
        found = [record["coordinates"][name] for name in STATISTICS]
        self._coordinates[number] = [np.nan if value is None else value for value in found]
        self._labels[record["split"]].update(record["labels"])
        if record["quarantine"]:
            self._quarantine[number] = record["quarantine"]
            self.quarantined += len(record["quarantine"])

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """Samples that were left out, in the order of the shards."""
        return [entry for _, entries in sorted(self._quarantine.items()) for entry in entries]

    def table(self) -> pa.Table:
        """Return the shard table; see :mod:`recon_ray.data.format.shards`."""
        names = list(self.plan.tasks.names())
        empty = self._rows == 0
        columns: dict[str, Any] = {
            "split": [split for split, _ in names],
            "name": [name for _, name in names],
            "rows": self._rows,
            "min_sample_id": pa.array(self._ids[:, 0], mask=empty),
            "max_sample_id": pa.array(self._ids[:, 1], mask=empty),
        }
        for place, kind in enumerate(self.kinds):
            content = pa.py_buffer(np.ascontiguousarray(self._hashes[:, place]))
            columns[f"{kind}_bytes"] = self._bytes[:, place]
            columns[f"{kind}_sha256"] = pa.Array.from_buffers(
                pa.binary(32), len(names), [None, content]
            )
        return pa.table(columns, schema=shard_schema(self.kinds))

    def missing(self, files: Mapping[str, int]) -> str | None:
        """Return the first shard of which a listing has no file, or one of other bytes."""
        for number, (split, name) in enumerate(self.plan.tasks.names()):
            for place, kind in enumerate(self.kinds):
                if files.get(f"{kind}/{split}/{name}") != self._bytes[number, place]:
                    return f"{split}/{name}"
        return None

    def splits(self) -> dict[str, Any]:
        """Return the entries of the splits in a manifest."""
        entries, start, first_id = {}, 0, self.plan.tasks.first_id
        for split, rows in self.plan.tasks.order.items():
            own = slice(start, start + self.plan.tasks.counts[split])
            entries[split] = {
                "rows": int(self._rows[own].sum()),
                "planned": len(rows),
                "first_sample_id": first_id,
                "num_shards": own.stop - own.start,
                "bytes": int(self._bytes[own].sum()),
                "class_histogram": dict(sorted(self._labels[split].items())),
            }
            start, first_id = own.stop, first_id + len(rows)
        return entries

    def coordinates(self) -> dict[str, float | None]:
        """Return the statistics of all coordinates."""
        found = self._coordinates[self._coordinates[:, 0] > 0]
        if not len(found):
            return {"min": None, "max": None, "mean": None, "std": None}
        count, total, squares = (float(column.sum()) for column in found[:, :3].T)
        mean = total / count
        return {
            "min": float(found[:, 3].min()),
            "max": float(found[:, 4].max()),
            "mean": mean,
            "std": max(squares / count - mean**2, 0.0) ** 0.5,
        }


def make_manifest(
    plan: Plan,
    records: ShardRecords,
    tables: Mapping[str, Mapping[str, Any]],
    shards: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the manifest of a finished set.

    Args:
        plan: The plan.
        records: The records of all of its shards.
        tables: Entries of the small tables beside the samples, by name.
        shards: Entries of the files of the shard table.
    """
    listing, options = plan.listing, plan.options
    splits = records.splits()
    histogram: Counter[str] = Counter(dict.fromkeys(listing.classes, 0))
    for entry in splits.values():
        histogram.update(entry["class_histogram"])
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "version": plan.tasks.version,
        "plan_hash": plan.hash,
        "source": plan.source_name,
        "source_settings": {k: v for k, v in plan.settings.items() if k.startswith("source.")},
        "card": None if listing.card is None else as_record(listing.card),
        "license": listing.license_note,
        **_columns(plan),
        "sampling": "all" if plan.layout.valid_points else options.sampling,
        "source_up_axis": options.up_axis,
        "seed": options.seed,
        "classes": list(listing.classes),
        "rows": sum(entry["rows"] for entry in splits.values()),
        "quarantined": records.quarantined,
        "excluded": len(listing.excluded),
        "class_histogram": dict(histogram),
        "coordinates": records.coordinates(),
        "tables": dict(tables),
        "splits": splits,
        "shards": [dict(entry) for entry in shards],
    }


def _columns(plan: Plan) -> dict[str, Any]:
    """Return the facts of the columns, which all shards of a set share."""
    options, layout = plan.options, plan.layout
    views = {
        "format": options.image_format,
        "size": options.image_size,
        "per_sample": options.views,
        "style": options.view_style,
        "fit": options.image_fit,
    }
    return {
        "num_points": layout.num_points,
        "points_dtype": layout.dtype,
        "has_normals": layout.normals,
        "has_colors": layout.colors,
        "has_part_labels": layout.part_labels,
        "has_valid_points": layout.valid_points,
        "up_axis": "y",
        "normalization": "unit_sphere" if layout.dtype == "float16" else "none",
        "views": views if options.views else None,
        "features": _features(plan),
    }


def check_columns(before: PreparedSet, plan: Plan) -> None:
    """Refuse to append shards of other columns to a set, or small tables.

    Raises:
        ConfigError: Naming what differs.
    """
    for key, value in _columns(plan).items():
        if (found := before.manifest.get(key)) != value:
            raise ConfigError(
                f"prepare.append=true: {before.path} has {key}={found}, what would be appended has "
                f"{value}; prepare it with the options of the set"
            )
    if plan.listing.tables or before.manifest.get("tables"):
        raise ConfigError(
            f"prepare.append=true: {before.path} has tables that name every sample, which cannot "
            "be appended to; prepare the whole set again"
        )


def merged_manifest(before: PreparedSet, added: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a set to which shards were appended.

    Args:
        before: The set without them.
        added: The manifest of the appended shards alone.
    """
    old = before.manifest
    splits = {
        name: _merged_split(before, added, name) for name in (*old["splits"], *added["splits"])
    }
    shards = old.get("shards", []) + added["shards"]
    return {
        **old,
        **{
            key: added[key] for key in ("schema_version", "package_version", "version", "plan_hash")
        },
        "card": None,  # it is no longer the published set
        "classes": added["classes"],
        **{key: old.get(key, 0) + added[key] for key in ("rows", "quarantined", "excluded")},
        "class_histogram": _added(old["class_histogram"], added["class_histogram"]),
        "coordinates": _merged_coordinates(old, added),
        "splits": splits,
        "shards": shards,
        "sources": [*old.get("sources", [old["source"]]), added["source"]],
    }


def _merged_split(before: PreparedSet, added: dict[str, Any], name: str) -> dict[str, Any]:
    old, new = before.manifest["splits"].get(name), added["splits"].get(name)
    ranges = []
    if old is not None:
        members = before.splits[name].members
        ranges = [[len(m.shard_rows), m.first_sample_id, m.planned] for m in members]
    if new is not None:
        ranges.append([new["num_shards"], new["first_sample_id"], new["planned"]])
    parts = [part for part in (old, new) if part is not None]
    total = {key: sum(part.get(key, 0) for part in parts) for key in ("rows", "planned", "bytes")}
    return {
        "first_sample_id": ranges[0][1],
        **total,
        "num_shards": sum(count for count, _, _ in ranges),
        "class_histogram": _added(*(part.get("class_histogram", {}) for part in parts)),
        "ranges": ranges,
    }


def _added(*parts: Mapping[str, int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def _merged_coordinates(old: dict[str, Any], new: dict[str, Any]) -> dict[str, float | None]:
    parts = [(one["rows"], one["coordinates"]) for one in (old, new) if one["rows"]]
    count = sum(rows for rows, _ in parts)
    if not count:
        return {"min": None, "max": None, "mean": None, "std": None}
    mean = sum(rows * part["mean"] for rows, part in parts) / count
    squares = sum(rows * (part["std"] ** 2 + part["mean"] ** 2) for rows, part in parts) / count
    return {
        "min": min(part["min"] for _, part in parts),
        "max": max(part["max"] for _, part in parts),
        "mean": mean,
        "std": max(squares - mean**2, 0.0) ** 0.5,
    }


def _features(plan: Plan) -> dict[str, Any] | None:
    if plan.listing.features is None:
        return None
    features = asdict(plan.listing.features).items()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in features}
