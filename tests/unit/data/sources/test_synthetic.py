"""The embedded procedural data set."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from recon_ray.data.readers.meshes import check_shape
from recon_ray.data.sources.procedural.categories import CATEGORIES
from recon_ray.data.sources.procedural.primitives import join
from recon_ray.data.sources.procedural.synthetic import PALETTE, SyntheticSource, make_shape
from recon_ray.errors import ConfigError


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_gives_sound_and_different_colored_meshes(category):
    seen = set()
    for index in range(6):
        shape, caption = make_shape(category, index)
        check_shape(shape, category)
        assert shape.colors is not None
        assert shape.colors.shape == (len(shape.faces), 3, 3)
        assert category in caption
        assert any(color in caption for color in PALETTE)
        assert caption.split()[0] in ("a", "an")
        seen.add(shape.vertices.tobytes())
    assert len(seen) == 6


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_parameter_changes_the_shape(category):
    kind = CATEGORIES[category]
    assert len(kind.ranges) >= 5
    middle = {name: (low + high) / 2 for name, (low, high) in kind.ranges.items()}

    def vertices(**values):
        return join(kind.build({**middle, **values}, (9, 9, 9), (8, 8, 8))).vertices

    plain = vertices()
    for name, limits in kind.ranges.items():
        moved = [vertices(**{name: value}) for value in limits]
        assert any(m.shape != plain.shape or not np.allclose(m, plain) for m in moved), name


def test_captions_use_parameters_that_exist_and_unknown_categories_are_named():
    for kind in CATEGORIES.values():
        named = {kind.size[0], *(detail[0] for detail in kind.details)}
        assert named <= set(kind.ranges)
    with pytest.raises(ConfigError, match="unknown category 'teapot'"):
        SyntheticSource(categories=("teapot",))


def test_shapes_depend_on_seed_and_index_only():
    first, again = make_shape("car", 3, seed=5), make_shape("car", 3, seed=5)
    np.testing.assert_array_equal(first[0].vertices, again[0].vertices)
    assert first[1] == again[1]
    assert not np.array_equal(first[0].vertices, make_shape("car", 3, seed=6)[0].vertices)
    few = SyntheticSource(train_per_class=2, test_per_class=0, categories=("mug",))
    many = SyntheticSource(train_per_class=9, test_per_class=3, categories=("chair", "mug"))
    item = few.scan().items[0]
    other = next(i for i in many.scan().items if i.object_id == item.object_id)
    np.testing.assert_array_equal(few.load(item).shape.vertices, many.load(other).shape.vertices)


def test_the_listing_has_the_asked_numbers_and_unique_ids():
    listing = SyntheticSource(train_per_class=3, test_per_class=2).scan()
    assert len(CATEGORIES) >= 12
    assert Counter(item.split for item in listing.items) == {
        "train": 3 * len(CATEGORIES),
        "test": 2 * len(CATEGORIES),
    }
    assert len({item.object_id for item in listing.items}) == 5 * len(CATEGORIES)
    assert listing.items[0].object_id == "airplane_0000"
