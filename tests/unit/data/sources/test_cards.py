"""Facts about the published data sets."""

from __future__ import annotations

import json
import string

import pytest

from recon_ray.data.sources.cards import CARDS, as_record, describe
from recon_ray.data.sources.create_source import SOURCES

COUNTS = {
    "shapenet55": (55, {"train": 41952, "test": 10518}),
    "modelnet40": (40, {"train": 9843, "test": 2468}),
    "modelnet10": (10, {"train": 3991, "test": 908}),
    "scanobjectnn_obj_bg": (15, {"train": 2309, "test": 581}),
    "scanobjectnn_obj_only": (15, {"train": 2309, "test": 581}),
    "scanobjectnn_pb_t50_rs": (15, {"train": 11416, "test": 2882}),
    "shapenetpart": (16, {"train": 12137, "val": 1861, "test": 2874}),
    "fewshot": (40, {}),
    "openshape": (0, {}),
}


def test_every_published_source_has_a_card():
    assert set(CARDS) == set(COUNTS)
    assert set(SOURCES) - set(CARDS) == {"synthetic", "custom", "hdf5"}


@pytest.mark.parametrize("name", COUNTS)
def test_classes_and_counts_are_the_published_ones(name):
    card = CARDS[name]
    classes, counts = COUNTS[name]
    assert len(card.classes) == len(set(card.classes)) == len(card.texts) == classes
    assert dict(card.counts) == counts
    assert all(len(v) == 64 and set(v) <= set(string.hexdigits) for v in card.lists.values())


def test_class_texts_are_what_the_reference_says():
    shapenet = CARDS["shapenet55"]
    assert shapenet.texts[11].endswith("motorcoach,omnibus,passenger vehi")  # cut off there
    assert shapenet.classes[50] == "cellular telephone"  # out of the order of the synsets
    assert CARDS["modelnet40"].texts[23] == "night_stand"
    assert CARDS["scanobjectnn_obj_bg"].classes[-1] == "toilet"


def test_normalization_follows_the_published_protocols():
    found = {name: card.normalization for name, card in CARDS.items()}
    assert found["shapenet55"] == "subset"
    assert found["modelnet40"] == found["fewshot"] == found["shapenetpart"] == "whole"
    assert {found[name] for name in CARDS if name.startswith("scan")} == {"none"}


def test_parts_are_numbered_through_all_classes():
    parts = CARDS["shapenetpart"].parts
    assert list(parts) == list(CARDS["shapenetpart"].classes)
    assert [number for own in parts.values() for number in own] == list(range(50))


@pytest.mark.parametrize("name", COUNTS)
def test_cards_can_be_read_and_stored(name):
    card = CARDS[name]
    text = describe(card)
    assert text.startswith(f"{name}: {card.title}\n")
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"{count:,}" in text for count in card.counts.values())
    assert card.url in text
    record = json.loads(json.dumps(as_record(card)))
    assert record["classes"] == list(card.classes)
    assert record["lists"] == dict(card.lists)
    assert record["parts"] == {k: list(v) for k, v in card.parts.items()}
