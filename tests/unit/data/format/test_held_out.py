"""A part of every class is held out of the training split, the same in every run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from recon_ray.data.format.held_out import hold_out
from recon_ray.data.format.prepared import PreparedSet


def labels(prepared: PreparedSet, split: str) -> Counter[int]:
    return Counter(prepared.read(split, ["label"])["label"].to_pylist())


def ids(prepared: PreparedSet, split: str) -> list[int]:
    return prepared.read(split, ["points"])["sample_id"].to_pylist()


@pytest.mark.parametrize(("fraction", "held"), [(0.25, 2), (0.01, 1), (0.99, 7)])
def test_classes_give_the_same_part(tiny_prepared: PreparedSet, fraction: float, held: int) -> None:
    divided = hold_out(tiny_prepared, "train", "val", fraction)
    assert labels(divided, "val") == {0: held, 1: held, 2: held}
    assert labels(divided, "train") == {0: 8 - held, 1: 8 - held, 2: 8 - held}
    assert {name: split.rows for name, split in divided.splits.items()} == {
        "train": 24 - 3 * held, "val": 3 * held, "test": 12,
    }  # fmt: skip
    both = ids(divided, "train") + ids(divided, "val")
    assert sorted(both) == sorted(ids(tiny_prepared, "train"))
    assert ids(divided, "test") == ids(tiny_prepared, "test")
    assert ids(hold_out(tiny_prepared, "train", "val", fraction), "val") == ids(divided, "val")


def test_rows_stay_what_they_are(tiny_prepared: PreparedSet) -> None:
    divided = hold_out(tiny_prepared, "train", "val", 0.25)
    whole = tiny_prepared.read("train", ["points", "label"])
    at = {number: row for row, number in enumerate(whole["sample_id"].to_pylist())}
    held = divided.read("val", ["points", "label"], views=True)
    assert "views" in held.column_names
    for row, number in enumerate(held["sample_id"].to_pylist()):
        assert held["label"][row] == whole["label"][at[number]]
        np.testing.assert_array_equal(
            held["points"].slice(row, 1).combine_chunks().to_numpy_ndarray(),
            whole["points"].slice(at[number], 1).combine_chunks().to_numpy_ndarray(),
        )
