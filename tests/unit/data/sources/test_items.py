"""Items in columns: each is what a list of them holds, and so is their hash."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest

from recon_ray.data.sources import items as items_module
from recon_ray.data.sources.base import Item
from recon_ray.data.sources.items import Items
from recon_ray.errors import DataError

CLASSES = ("chair", "mug", "Würfel")
NAMES = ("b/1", "a/é", "a/\U0001f600", "a/\uffee", "a/e", "Z", "ab/0", "", 'q"\\\n', "a/2", "a/10")
ITEMS = [
    Item(
        name,
        ("train", "test", "extra")[index % 3],
        CLASSES[index % 3 - 1] if index else "",
        index % 3 - 1,
        f"a caption of {name}",
        f"in/{name}.npy#{index}",
        tuple(f"{name}-{k}.png" for k in range(index % 3)),
        index - 1,
    )
    for index, name in enumerate(NAMES)
]


@pytest.fixture(params=[3, 4096])
def items(request, monkeypatch) -> Items:
    monkeypatch.setattr(items_module, "AT_ONCE", request.param)
    return Items.of(iter(ITEMS))


def test_items_are_those_of_a_list(items):
    assert len(items) == len(ITEMS)
    assert list(items) == ITEMS
    assert [items[i] for i in range(-len(ITEMS), len(ITEMS))] == ITEMS * 2
    for chosen in (slice(None), slice(2, 5), slice(None, None, -2), slice(5, 2), slice(99, None)):
        assert list(items[chosen]) == ITEMS[chosen]
    with pytest.raises(IndexError):
        items[len(ITEMS)]
    assert list(items.take(np.array([3, 0, 3]))) == [ITEMS[3], ITEMS[0], ITEMS[3]]
    assert Items.of(items) is items
    assert list(pickle.loads(pickle.dumps(items))) == ITEMS
    assert list(Items.of(())) == []


def test_the_hash_is_that_of_the_sorted_list(items):
    ordered = sorted(map(asdict, ITEMS), key=lambda item: item["object_id"])
    text = json.dumps({"items": ordered, "classes": CLASSES}, sort_keys=True)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert items.digest(CLASSES) == expected
    assert items[::-1].digest(CLASSES) == expected
    assert items.digest(CLASSES[:2]) != expected
    empty = json.dumps({"items": [], "classes": []}, sort_keys=True)
    assert Items.of(()).digest(()) == hashlib.sha256(empty.encode()).hexdigest()


@pytest.mark.parametrize("changed", [{"caption": "x"}, {"images": ("x",)}, {"size_bytes": 99}])
def test_whatever_changes_in_an_item_changes_the_hash(items, changed):
    others = [replace(ITEMS[0], **changed), *ITEMS[1:]]
    assert Items.of(others).digest(CLASSES) != items.digest(CLASSES)


def test_rows_of_splits_and_their_order_by_id(items):
    splits = items.splits()
    assert set(splits) == {item.split for item in ITEMS}
    for name, rows in splits.items():
        own = [item for item in ITEMS if item.split == name]
        assert list(items.take(rows)) == own
        ordered = sorted(own, key=lambda item: item.object_id)
        assert list(items.take(items.by_object_id(rows))) == ordered
    assert set(items[:1].splits()) == {ITEMS[0].split}


def test_two_items_of_one_id_are_found(items):
    assert items.repeated() is None
    twice = replace(ITEMS[4], file="elsewhere", split="test")
    assert Items.of([*ITEMS, twice]).repeated() == (ITEMS[4], twice)


def test_items_are_found_by_their_ids(items):
    assert list(items.named(("a/e", "absent", "b/1"))) == [ITEMS[0], ITEMS[4]]
    assert list(items.named(())) == []


def test_sizes_are_replaced_and_the_changes_told(items):
    changed, found = items.with_sizes({"b/1": 70, "a/e": ITEMS[4].size_bytes, "absent": 1})
    assert list(changed) == [replace(ITEMS[0], size_bytes=70), *ITEMS[1:]]
    assert found == {"b/1": (70, ITEMS[0].size_bytes)}
    assert list(items) == ITEMS


@pytest.mark.parametrize("column", ["object_id", "category"])
def test_names_that_are_not_utf8_are_counted_and_the_first_named(monkeypatch, column):
    monkeypatch.setattr(items_module, "AT_ONCE", 3)
    wrong = [replace(ITEMS[i], **{column: f"\udce9{i}"}) for i in (5, 8)]
    given = [*ITEMS[:5], wrong[0], *ITEMS[6:8], wrong[1]]
    with pytest.raises(DataError, match=r"^'in/Z\.npy#5' and 1 more: the name is not UTF-8 text"):
        Items.of(given)


@pytest.mark.parametrize("column", ["caption", "file", "images"])
def test_other_text_that_is_not_utf8_is_kept_for_the_sample_to_be_left_out(column):
    value = "half of a pair: \ud83d"
    item = replace(ITEMS[0], **{column: (value,) if column == "images" else value})
    assert list(Items.of([item])) == [item]
    text = json.dumps({"items": [asdict(item)], "classes": []}, sort_keys=True)
    assert Items.of([item]).digest(()) == hashlib.sha256(text.encode()).hexdigest()
