"""Hashes of stored clouds, by which equal ones are found in whatever order their points are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.schema import points_to_numpy

#: Shapes of a split that are hashed, the first ones: about a second for 10,000 of 8,192 points.
MOST_COMPARED = 100_000
#: Points that are hashed at once.
BLOCK = 1 << 17
#: Odd numbers that mix bits (splitmix64, and 64 bits of three square roots).
AXES = (0x6A09E667F3BCC909, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B)
MIXERS = ((32, 0xBF58476D1CE4E5B9), (29, 0x94D049BB133111EB))


@dataclass(frozen=True)
class SplitHashes:
    """Hashes of the clouds of a split.

    Attributes:
        name: Its name.
        rows: Shapes that are read of it, whether they are hashed or not.
        hashes: (B,) uint64.
        object_ids: (B,) text.
    """

    name: str
    rows: int
    hashes: np.ndarray
    object_ids: np.ndarray

    @property
    def is_part(self) -> bool:
        """Return whether some shapes are not hashed."""
        return len(self.hashes) < self.rows


def hash_split(prepared: PreparedSet, split: Split, limit: int | None = None) -> SplitHashes:
    """Hash the clouds of a split, file by file, or the first ones.

    Args:
        prepared: The set.
        split: The split.
        limit: Shapes that are read of it.

    Raises:
        DataError: If a file is damaged.
    """
    columns = ["object_id", "points"]
    if prepared.layout.valid_points:
        columns.append("valid_points")
    rows = min(split.rows, limit or split.rows)
    hashes, names, left = [np.zeros(0, np.uint64)], [np.zeros(0, object)], min(rows, MOST_COMPARED)
    for table in prepared.parts(split, columns) if left else ():
        part = table.slice(0, left)
        valid = part["valid_points"].to_numpy() if len(columns) > 2 else None
        hashes.append(cloud_hashes(points_to_numpy(part["points"]), valid))
        names.append(np.array(part["object_id"].to_pylist(), object))
        left -= len(part)
        if not left:
            break
    return SplitHashes(split.name, rows, np.concatenate(hashes), np.concatenate(names))


def cloud_hashes(points: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Return a hash of the coordinates of each cloud, the same for any order of its points.

    Args:
        points: (B, N, 3) of float32 or float16.
        valid: (B,) points that are a cloud's own, the first ones; all by default.

    Returns:
        (B,) uint64.
    """
    count = points.shape[1]
    rows = max(1, BLOCK // max(1, count))
    found = [np.zeros(0, np.uint64)]
    for start in range(0, len(points), rows):
        mixed = _mixed(points[start : start + rows])  # (b, N)
        if valid is not None:
            mixed *= np.arange(count) < valid[start : start + rows, None]
        found.append(mixed.sum(axis=1, dtype=np.uint64))
    return np.concatenate(found)


def _mixed(points: np.ndarray) -> np.ndarray:
    """Return 64 bits of each of (B, N, 3) points."""
    points = points + points.dtype.type(0)  # -0 is 0
    bits = points.view(f"u{points.itemsize}")
    mixed = np.zeros(points.shape[:-1], np.uint64)
    for place, factor in enumerate(AXES):
        mixed += np.multiply(bits[..., place], np.uint64(factor), dtype=np.uint64)
    for shift, factor in MIXERS:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(32)
    return mixed
