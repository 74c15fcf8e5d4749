"""Parts of the categories of a prepared set, compared with its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.errors import DataError
from recon_ray.tasks.partseg.iou import PartTable


def read_part_table(prepared: PreparedSet, splits: Sequence[str]) -> PartTable:
    """Return the parts by the set's card, or without one by the labels of splits.

    Raises:
        DataError: If a shape has no category, or a part that its category has not.
    """
    card = prepared.manifest.get("card") or {}
    known: Mapping[str, Sequence[int]] = card.get("parts") or {}
    classes = prepared.classes
    found: list[set[int]] = [set() for _ in classes]
    for split in splits:
        rows = prepared.read(split, columns=["object_id", "label", "part_labels"])
        labels = rows["label"].to_numpy()
        parts = points_to_numpy(rows["part_labels"])
        for label in np.unique(labels):
            chosen = np.flatnonzero(labels == label)
            if not 0 <= label < len(classes):
                where = _shape(prepared, split, rows["object_id"][int(chosen[0])].as_py())
                raise DataError(
                    f"{where}: has the label {label}, but the set has {len(classes)} categories; "
                    "give each shape a category and prepare the set again"
                )
            found[label] |= {int(part) for part in np.unique(parts[chosen])}
            own = known.get(classes[label])
            if own is None:
                continue
            wrong = ~np.isin(parts[chosen], own).all(axis=1)
            if wrong.any():
                row = int(chosen[np.flatnonzero(wrong)[0]])
                part = next(int(part) for part in parts[row] if part not in own)
                where = _shape(prepared, split, rows["object_id"][row].as_py())
                raise DataError(
                    f"{where}: a point has the part {part}, which is none of {classes[label]}'s "
                    f"({', '.join(map(str, own))}); mend the labels and prepare the set again"
                )
    parts_of = (
        tuple(known.get(name, sorted(seen))) for name, seen in zip(classes, found, strict=True)
    )
    return PartTable(tuple(classes), tuple(parts_of))


def _shape(prepared: PreparedSet, split: str, object_id: str) -> str:
    return f"{prepared.path}, shape {object_id} of split {split!r}"
