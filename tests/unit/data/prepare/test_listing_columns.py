"""What a source's listing decides: columns, order, tables, what is left out by rule, the card."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import as_version_2, cloud, read_manifest

from recon_ray.data.format.prepared import PreparedSet, read_episodes
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions, make_plan
from recon_ray.data.readers.meshes import Shape
from recon_ray.data.sources.base import Excluded, Features, Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS
from recon_ray.errors import ConfigError, DataError

OPTIONS = PrepareOptions(samples_per_shard=4)
SIZES = (5, 8, 3, 8, 6)
EPISODES = pa.table({"way": pa.array([5, 5], pa.int16()), "object_id": ["s0", "s1"]})


@dataclass(frozen=True)
class Fake:
    """Five clouds of different sizes, whose listing and samples a test chooses."""

    listing: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = SIZES
    name: str = "fake"

    def scan(self) -> Listing:
        items = tuple(Item(f"s{i}", "train", file=f"s{i}") for i in range(len(self.sizes)))
        return replace(Listing(items, num_points=8), **self.listing)

    def load(self, item: Item) -> Sample:
        index = int(item.object_id[1:])
        count = self.sizes[index]
        parts = (np.arange(count) % 3).astype(np.uint8)
        shape = Shape(cloud(index, count).astype(np.float64), part_labels=parts)
        return Sample(shape, **{k: v(index) for k, v in self.sample.items()})


def _table(root, **read):
    opened = PreparedSet.open(root)
    opened.verify()
    return opened.read("train", **read).sort_by("object_id")


# --- Clouds that keep all their points ------------------------------------------------------------
WHOLE = {"keeps_all_points": True, "part_labels": True}


def test_all_points_are_kept_and_repeated_to_the_capacity(tmp_path):
    manifest = prepare(Fake(WHOLE), tmp_path, OPTIONS)
    table = _table(tmp_path)
    assert table["valid_points"].to_pylist() == list(SIZES)
    points, parts = points_to_numpy(table["points"]), points_to_numpy(table["part_labels"])
    assert (points.shape, parts.shape, parts.dtype) == ((5, 8, 3), (5, 8), np.uint8)
    for index, count in enumerate(SIZES):
        np.testing.assert_array_equal(points[index, :count], cloud(index, count))
        np.testing.assert_array_equal(points[index, count:], points[index, : 8 - count])
        np.testing.assert_array_equal(parts[index], (np.arange(8) % count) % 3)
    assert manifest["has_part_labels"]
    assert manifest["has_valid_points"]
    assert manifest["sampling"] == "all"


def test_a_cloud_over_the_capacity_is_left_out_with_the_way_out(tmp_path):
    prepare(Fake(WHOLE, sizes=(9, *SIZES[1:])), tmp_path, OPTIONS)
    (line,) = (tmp_path / "_quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "s0: holds 9 points, more than prepare.num_points = 8; " \
        "raise it"  # fmt: skip


def test_padding_does_not_move_the_center_of_a_scaled_cloud(tmp_path):
    prepare(Fake(WHOLE), tmp_path, replace(OPTIONS, points_dtype="float16"))
    for row, count in zip(points_to_numpy(_table(tmp_path)["points"]), SIZES, strict=True):
        np.testing.assert_allclose(row[:count].mean(axis=0), 0, atol=2e-3)  # float16 in [-1, 1]


# --- What is left to the source -------------------------------------------------------------------
def test_options_that_are_not_given_are_the_sources(tmp_path):
    listing = {"num_points": 3, "up_axis": "z", "sampling": "fps"}
    manifest = prepare(Fake(listing), tmp_path, OPTIONS)
    found = [manifest[key] for key in ("num_points", "source_up_axis", "sampling")]
    assert found == [3, "z", "fps"]
    plan = make_plan(Fake(listing), "x", OPTIONS)
    asked = replace(OPTIONS, num_points=3, up_axis="z", sampling="fps")
    assert make_plan(Fake(listing), "x", asked).hash == plan.hash
    assert make_plan(Fake(listing), "x", replace(OPTIONS, sampling="random")).hash != plan.hash


def test_farthest_points_are_stored_in_the_order_of_finding(tmp_path):
    prepare(Fake({"sampling": "fps", "num_points": 3}), tmp_path, OPTIONS)
    points = points_to_numpy(_table(tmp_path)["points"])
    for index, count in enumerate(SIZES):
        source = cloud(index, count)
        if count == 3:
            np.testing.assert_array_equal(points[index], source)
            continue
        start = int(np.flatnonzero((source == points[index, 0]).all(axis=1))[0])
        chosen, distance = [start], np.full(count, np.inf)
        for _ in range(2):
            distance = np.minimum(distance, ((source - source[chosen[-1]]) ** 2).sum(axis=1))
            chosen.append(int(distance.argmax()))
        np.testing.assert_array_equal(points[index], source[chosen])


def test_a_source_with_an_order_keeps_it(tmp_path):
    prepare(Fake({"shuffle": False, "num_points": 3}), tmp_path / "kept", OPTIONS)
    ids = PreparedSet.open(tmp_path / "kept").read("train")["object_id"].to_pylist()
    assert ids == ["s0", "s1", "s2", "s3", "s4"]
    prepare(Fake({"num_points": 3}), tmp_path / "mixed", OPTIONS)
    assert PreparedSet.open(tmp_path / "mixed").read("train")["object_id"].to_pylist() != ids


# --- Features, tables, exclusions, cards ----------------------------------------------------------
FEATURES = {
    "listing": {"num_points": 3, "features": Features((2, 4), (1, 4), "teacher")},
    "sample": {
        "image_features": lambda i: np.full((1 + i % 2, 4), i + 0.5),
        "text_features": lambda i: np.full((1, 4), -i),
    },
}


def test_features_of_the_source_are_a_third_kind_of_files(tmp_path):
    manifest = prepare(Fake(**FEATURES), tmp_path, OPTIONS)
    assert manifest["features"] == {"image": [2, 4], "text": [1, 4], "teacher": "teacher"}
    table = _table(tmp_path, features=True)
    images, texts = (points_to_numpy(table[f"{k}_features"]) for k in ("image", "text"))
    assert images.dtype == texts.dtype == np.float16
    for index in range(5):
        expected = np.zeros((2, 4))
        expected[: 1 + index % 2] = index + 0.5
        np.testing.assert_array_equal(images[index], expected)
        np.testing.assert_array_equal(texts[index], np.full((1, 4), -index))
    split = PreparedSet.open(tmp_path).splits["train"]
    assert len(split.features) == len(split.geometry) == 2
    assert len(split.head(1).features) == 1


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (None, "image_features are none; expected up to 2 x 4"),
        (np.ones((3, 4)), "image_features are shape (3, 4); expected up to 2 x 4"),
        (np.ones((2, 5)), "image_features are shape (2, 5); expected up to 2 x 4"),
        (np.full((2, 4), 1e6), "image_features are not finite numbers of the range of float16"),
    ],
)
def test_features_that_do_not_fit_leave_the_sample_out(tmp_path, features, reason):
    images = {"image_features": lambda i: features if i == 2 else np.ones((2, 4))}
    source = Fake(FEATURES["listing"], {**FEATURES["sample"], **images})
    manifest = prepare(source, tmp_path, OPTIONS)
    assert (manifest["rows"], manifest["quarantined"]) == (4, 1)
    (line,) = (tmp_path / "_quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == f"s2: {reason}"
    PreparedSet.open(tmp_path).verify()


def test_a_changed_feature_file_is_found(tmp_path):
    prepare(Fake(**FEATURES), tmp_path, OPTIONS)
    path = next((tmp_path / "features" / "train").iterdir())
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    for check in (PreparedSet.verify, PreparedSet.verify_hashes):
        with pytest.raises(DataError, match=r"features/train/part-.*damaged or was changed"):
            check(PreparedSet.open(tmp_path))


def test_tables_are_written_hashed_and_part_of_the_plan(tmp_path):
    source = Fake({"num_points": 3, "tables": {"episodes": EPISODES}})
    manifest = prepare(source, tmp_path, OPTIONS)
    assert manifest["tables"]["episodes"]["rows"] == 2
    assert read_episodes(tmp_path).equals(EPISODES)
    other = replace(source, listing={**source.listing, "tables": {"episodes": EPISODES[:1]}})
    with pytest.raises(DataError, match=r"another prepared set \(source\.episodes: "):
        prepare(other, tmp_path, OPTIONS)
    pq.write_table(EPISODES, tmp_path / "episodes.parquet", compression="none")
    for check in (PreparedSet.verify, PreparedSet.verify_hashes):
        with pytest.raises(DataError, match=r"episodes\.parquet: is damaged or was changed"):
            check(PreparedSet.open(tmp_path))
    with pytest.raises(DataError, match=r"episodes\.parquet: is damaged or was changed"):
        read_episodes(tmp_path)


def test_a_limit_would_break_the_tables():
    source = Fake({"tables": {"episodes": EPISODES}})
    with pytest.raises(ConfigError, match=r"prepare\.limit=3: the episodes of this source name"):
        make_plan(source, "x", replace(OPTIONS, limit=3))


def test_a_set_without_episodes_says_how_to_make_them(tiny_set, tmp_path):
    for path in (tiny_set, tmp_path):
        with pytest.raises(DataError, match=r"holds no few-shot episodes; make them with jobs/"):
            read_episodes(path)


def test_what_is_left_out_by_rule_is_listed_and_not_counted_as_unreadable(tmp_path):
    excluded = tuple(Excluded(f"x{i}", f"x{i}.npy", "has no partner image") for i in range(9))
    options = replace(OPTIONS, max_quarantine_fraction=0)
    source = Fake({"num_points": 3, "excluded": excluded})
    manifest = prepare(source, tmp_path, options)
    assert (manifest["rows"], manifest["quarantined"], manifest["excluded"]) == (5, 0, 9)
    entries = list(map(json.loads, (tmp_path / "_quarantine.jsonl").read_text().splitlines()))
    assert [entry["planned"] for entry in entries] == [False] * 9
    assert entries[0]["file"] == "x0.npy"
    PreparedSet.open(tmp_path).verify()


def test_the_card_is_in_the_manifest(tmp_path):
    card = CARDS["modelnet10"]
    manifest = prepare(Fake({"num_points": 3, "card": card}), tmp_path, OPTIONS)
    assert read_manifest(tmp_path) == manifest  # it is JSON
    assert manifest["card"]["name"] == "modelnet10"
    assert manifest["card"]["classes"] == list(card.classes)
    assert prepare(Fake({"num_points": 3}), tmp_path / "own", OPTIONS)["card"] is None


def test_a_set_of_an_earlier_version_opens_and_verifies(tmp_path):
    prepare(Fake({"num_points": 3}), tmp_path, OPTIONS)
    manifest = as_version_2(tmp_path)
    later = (
        "card", "sampling", "has_part_labels", "has_valid_points", "excluded", "features", "tables",
    )  # fmt: skip
    old = {key: value for key, value in manifest.items() if key not in later}
    for shard in old["splits"]["train"]["shards"]:
        del shard["features"]
    (tmp_path / "_manifest.json").write_text(json.dumps(old))
    opened = PreparedSet.open(tmp_path)
    opened.verify()
    opened.verify_hashes()
    assert not opened.has_features
    assert len(opened.splits["train"].features) == 0
    with pytest.raises(DataError, match="its source shipped no features"):
        opened.read("train", features=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 6}, "counts 6 rows, its splits add up to 5"),
        ({"class_histogram": {"": 4}}, "counts 5 rows, its class_histogram add up to 4"),
        ({"quarantined": 1}, "counts 5 rows, its planned samples less those left out add up to 4"),
    ],
)
def test_counts_that_contradict_each_other_are_found(tmp_path, change, message):
    manifest = prepare(Fake({"num_points": 3}), tmp_path, OPTIONS)
    (tmp_path / "_manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DataError, match=message):
        PreparedSet.open(tmp_path).verify()
