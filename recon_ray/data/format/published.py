"""Comparison of a prepared set with the published one, beside whose numbers its own may stand."""

from __future__ import annotations

from collections.abc import Collection

from recon_ray.data.format.prepared import PreparedSet


def unlike_published(prepared: PreparedSet, names: Collection[str]) -> str:
    """Return what sets a prepared set apart from a published one, nothing if it is all of it.

    Args:
        prepared: The set.
        names: Names of the published set's cards.
    """
    rows = {name: split.rows for name, split in prepared.splits.items()}
    card = prepared.manifest.get("card") or {}
    if card.get("name") not in names:
        counted = ", ".join(f"{name} {count:,}" for name, count in rows.items())
        return f"stand-in: {card.get('title') or prepared.manifest['source']} ({counted})"
    partial = [
        f"{name} {rows.get(name, 0):,} of {count:,}"
        for name, count in card.get("counts", {}).items()
        if rows.get(name, 0) != count
    ]
    return f"part of the set: {', '.join(partial)}" if partial else ""
