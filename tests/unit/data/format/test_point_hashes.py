"""Hashes of clouds: equal for equal points in any order, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from recon_ray.data.format import point_hashes
from recon_ray.data.format.held_out import hold_out
from recon_ray.data.format.point_hashes import cloud_hashes, hash_split
from recon_ray.data.format.prepared import PreparedSet


def clouds(count: int = 6, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 50, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_order_of_the_points_does_not_matter_and_each_number_does(dtype: str) -> None:
    points = clouds(dtype=dtype)
    found = cloud_hashes(points)
    assert len({*found.tolist()}) == 6
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(cloud_hashes(points[:, order]), found)
    assert not np.isin(cloud_hashes(points[..., [1, 0, 2]]), found).any()
    for point, axis in ((0, 0), (17, 1), (49, 2)):
        moved = points.copy()
        moved[:, point, axis] = np.nextafter(moved[:, point, axis], np.array(9, dtype))
        assert not np.isin(cloud_hashes(moved), found).any()


def test_zeros_of_both_signs_are_equal_and_blocks_do_not_matter(monkeypatch) -> None:
    points = clouds()
    points[:, 3] = 0.0
    found = cloud_hashes(points)
    points[:, 3] = -0.0
    monkeypatch.setattr(point_hashes, "BLOCK", 120)  # two clouds
    assert np.array_equal(cloud_hashes(points), found)


def test_repeated_points_of_a_padded_cloud_do_not_count() -> None:
    points = clouds()
    padded = points.copy()
    padded[:, 40:] = padded[:, :10]
    valid = np.full(6, 40)
    assert np.array_equal(cloud_hashes(padded, valid), cloud_hashes(points, valid))
    assert not np.isin(cloud_hashes(padded), cloud_hashes(points)).any()


def test_splits_are_hashed_file_by_file(tiny_prepared: PreparedSet, monkeypatch) -> None:
    whole = hash_split(tiny_prepared, tiny_prepared.split("train"))
    assert (len(whole.hashes), whole.rows, whole.is_part) == (24, 24, False)
    ids = tiny_prepared.read("train", ["object_id"])["object_id"].to_pylist()
    assert whole.object_ids.tolist() == ids
    joined = hash_split(tiny_prepared, tiny_prepared.join(["train", "test"]))
    assert np.array_equal(joined.hashes[:24], whole.hashes)
    divided = hold_out(tiny_prepared, "train", "val", 0.25)
    parts = [hash_split(divided, divided.split(name)).hashes for name in ("train", "val")]
    assert sorted(np.concatenate(parts)) == sorted(whole.hashes)
    limited = hash_split(tiny_prepared, tiny_prepared.split("train"), 9)
    assert (limited.hashes.tolist(), limited.is_part) == (whole.hashes[:9].tolist(), False)
    monkeypatch.setattr(point_hashes, "MOST_COMPARED", 10)
    part = hash_split(tiny_prepared, tiny_prepared.split("train"))
    assert (len(part.hashes), part.is_part) == (10, True)
