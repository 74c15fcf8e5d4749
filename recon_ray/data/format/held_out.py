"""Prepared sets with a part of the training split held out for validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.errors import DataError

#: Seed of the choice, so that every run of a search holds out the same shapes.
SEED = 0


@dataclass(frozen=True)
class HeldOutSet(PreparedSet):
    """The same files with one split divided in two.

    Attributes:
        divided: The split that is divided.
        held: Name of the part that is held out.
        held_ids: Its sample ids.
    """

    divided: str = ""
    held: str = ""
    held_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def _rows(
        self, split: Split, names: list[str] | None, *, views: bool, features: bool
    ) -> pa.Table:
        table = super()._rows(split, names, views=views, features=features)
        if split.name not in (self.divided, self.held):
            return table
        is_held = np.isin(table["sample_id"].to_numpy(), self.held_ids)
        rows = is_held if split.name == self.held else ~is_held
        return table.take(pa.array(np.flatnonzero(rows)))


def hold_out(prepared: PreparedSet, split: str, name: str, fraction: float) -> HeldOutSet:
    """Divide a split: the same part of every class is held out, chosen by a fixed seed.

    Args:
        prepared: The set.
        split: The split that is divided.
        name: Name of the part that is held out.
        fraction: That part; a class of two or more shapes gives at least one and keeps one.

    Raises:
        DataError: If there is no such split, or no class has two shapes in it.
    """
    whole = prepared.split(split)
    rows = prepared.read(whole, ["label"])
    ids, labels = rows["sample_id"].to_numpy(), rows["label"].to_numpy()
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        own = np.sort(ids[labels == label])
        random = np.random.default_rng([SEED, int(label) + 1])
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        chosen.append(random.permutation(own)[:count])
    held = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))
    if not len(held):
        raise DataError(f"{prepared.path}: no class has two shapes in {split!r} to hold one out")
    splits = {
        **prepared.splits,
        split: replace(whole, rows=whole.rows - len(held)),
        name: replace(whole, name=name, rows=len(held)),
    }
    return HeldOutSet(
        prepared.path, prepared.manifest, prepared.manifest_hash, splits, split, name, held
    )
