"""Content of ``_manifest.json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from recon_ray import __version__
from recon_ray.data.format.schema import KINDS, SCHEMA_VERSION
from recon_ray.data.sources.cards import as_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recon_ray.data.prepare.runners import Record
    from recon_ray.data.prepare.shard_plan import Plan


def make_manifest(
    plan: Plan, records: Sequence[Record], tables: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the manifest of a finished set.

    Args:
        plan: The plan.
        records: The records of its shards, in the order of its tasks.
        tables: Entries of the small tables beside the samples, by name.
    """
    listing, options, layout = plan.listing, plan.options, plan.layout
    histogram: Counter[str] = Counter(dict.fromkeys(listing.classes, 0))
    for record in records:
        histogram.update(record["labels"])
    views = {
        "format": options.image_format,
        "size": options.image_size,
        "per_sample": options.views,
        "style": options.view_style,
        "fit": options.image_fit,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "plan_hash": plan.hash,
        "source": plan.source_name,
        "source_settings": {k: v for k, v in plan.settings.items() if k.startswith("source.")},
        "card": None if listing.card is None else as_record(listing.card),
        "license": listing.license_note,
        "num_points": layout.num_points,
        "points_dtype": layout.dtype,
        "sampling": "all" if layout.valid_points else options.sampling,
        "has_normals": layout.normals,
        "has_colors": layout.colors,
        "has_part_labels": layout.part_labels,
        "has_valid_points": layout.valid_points,
        "source_up_axis": options.up_axis,
        "up_axis": "y",
        "normalization": "unit_sphere" if layout.dtype == "float16" else "none",
        "seed": options.seed,
        "classes": list(listing.classes),
        "rows": sum(record["rows"] for record in records),
        "quarantined": sum(len(record["quarantine"]) for record in records),
        "excluded": len(listing.excluded),
        "class_histogram": dict(histogram),
        "coordinates": _statistics([record["coordinates"] for record in records]),
        "views": views if options.views else None,
        "features": _features(plan),
        "tables": dict(tables),
        "splits": _splits(plan, records),
    }


def _features(plan: Plan) -> dict[str, Any] | None:
    if plan.listing.features is None:
        return None
    features = asdict(plan.listing.features).items()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in features}


def _splits(plan: Plan, records: Sequence[Record]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for task, record in zip(plan.tasks, records, strict=True):
        split = splits.setdefault(
            task.split,
            {"rows": 0, "planned": 0, "first_sample_id": task.first_sample_id, "shards": []},
        )
        split["rows"] += record["rows"]
        split["planned"] += record["planned"]
        kept = ("rows", "min_sample_id", "max_sample_id", *KINDS)
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
