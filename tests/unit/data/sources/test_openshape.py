"""OpenShape triplets in their published layout."""

from __future__ import annotations

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from published_sets import openshape_sample, quarantine, read_rows, write_openshape

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.create_source import create_source
from recon_ray.errors import DataError

OPTIONS = PrepareOptions(num_points=64, samples_per_shard=2, colors=True)
KEYS = [("Objaverse", "000-001", "u1"), ("Objaverse", "000-001", "u2"), ("ABO", "B0", "x")]
SAMPLES = {key: openshape_sample(seed) for seed, key in enumerate(KEYS)}


def _source(root):
    return create_source("openshape", root, {})


def _load(root, name):
    source = _source(root)
    return source.load(next(i for i in source.scan().items if i.object_id.endswith(name)))


def test_clouds_colors_captions_and_features_make_the_round_trip(tmp_path):
    write_openshape(tmp_path / "in", SAMPLES)
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", OPTIONS)
    assert manifest["splits"]["train"]["rows"] == 3
    rows = read_rows(tmp_path / "out", "train", ("points", "colors", "caption", "label"))
    for key, content in SAMPLES.items():
        xyz, colors, caption, label = rows["/".join(key)]
        np.testing.assert_array_equal(xyz, content["xyz"])
        # half a step of 255
        np.testing.assert_allclose(colors / 255.0, content["rgb"], rtol=0, atol=0.5 / 255 + 1e-6)
        assert (caption, label) == (content["text"][0], -1)
    PreparedSet.open(tmp_path / "out").verify()
    assert manifest["features"]["image"] == [13, 8]
    assert manifest["features"]["text"] == [6, 8]
    assert "ViT-bigG-14" in manifest["features"]["teacher"]
    files = sorted((tmp_path / "out" / "features" / "train").glob("*.parquet"))
    ids = [
        i for f in files for i in pq.read_table(f, columns=["sample_id"])["sample_id"].to_pylist()
    ]
    assert ids == [0, 1, 2]


def test_features_stand_in_fixed_slots(tmp_path):
    write_openshape(tmp_path, SAMPLES)
    content, sample = SAMPLES[KEYS[0]], _load(tmp_path, "u1")
    np.testing.assert_array_equal(sample.image_features[0], content["thumbnail_feat"])
    np.testing.assert_array_equal(sample.image_features[1:], content["image_feat"])
    texts = sample.text_features
    np.testing.assert_array_equal(texts[0], content["text_feat"][0]["prompt_avg"])
    np.testing.assert_array_equal(texts[1], content["blip_caption_feat"]["prompt_avg"])
    np.testing.assert_array_equal(texts[2], np.zeros(8))  # this shape has no second caption
    for slot in range(3):
        expected = content["retrieval_text_feat"][slot]["original"]
        np.testing.assert_array_equal(texts[3 + slot], expected)


def test_names_that_the_filter_rejects_are_not_used(tmp_path):
    write_openshape(tmp_path, SAMPLES, flags={"u1": "N", "u2": "Y", "x": "N"})
    rejected, kept, other = (_load(tmp_path, name) for name in ("u1", "u2", "x"))
    assert rejected.caption == "a thing 0"
    assert not rejected.text_features[0].any()
    assert kept.caption == "name 1"
    assert other.caption == "name 2"  # only the names of Objaverse are judged
    assert other.text_features[0].any()


def test_absent_features_are_zero(tmp_path):
    content = openshape_sample(9, views=5)
    for key in ("thumbnail_feat", "text_feat", "retrieval_text_feat", "text", "blip_caption"):
        del content[key]
    write_openshape(tmp_path, {KEYS[0]: content})
    sample = _load(tmp_path, "u1")
    assert sample.image_features.shape == (13, 8)
    assert not sample.image_features[0].any()
    assert not sample.image_features[6:].any()
    assert not sample.text_features[[0, 2, 3, 4, 5]].any()
    assert sample.caption == "one"


def test_the_list_decides_and_without_it_all_shapes_are_taken(tmp_path, caplog):
    write_openshape(tmp_path, dict(list(SAMPLES.items())[:2]))
    listed = tmp_path / "meta_data" / "split" / "train_all.json"
    shapes = tmp_path / "objaverse-processed" / "merged_for_training_final"
    np.save(shapes / "Objaverse" / "000-001" / "extra.npy", SAMPLES[KEYS[2]], allow_pickle=True)
    assert len(_source(tmp_path).scan().items) == 2
    listed.unlink()
    assert len(_source(tmp_path).scan().items) == 3
    assert "no train_all.json, all shapes there are taken" in caplog.text
    listed.write_text('["a"]')
    with pytest.raises(DataError, match=r"train_all\.json: is not a list of dataset, group and id"):
        _source(tmp_path).scan()


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("never",)


def test_what_is_no_sample_is_quarantined(tmp_path):
    keys = [("Objaverse", "000-001", f"b{i}") for i in range(6)]
    bad = [
        {**openshape_sample(0), "harm": _Runs()},
        {**openshape_sample(0), "rgb": np.ones((3, 3))},
        {key: value for key, value in openshape_sample(0).items() if key != "image_feat"},
        {**openshape_sample(0), "image_feat": np.ones((13, 8))},
        np.ones((4, 3)),
        {**openshape_sample(0), "image_feat": None},
    ]
    write_openshape(tmp_path / "in", {**dict(zip(keys, bad, strict=True)), **SAMPLES})
    absent = tmp_path / "in/objaverse-processed/merged_for_training_final/ABO/B0/x.npy"
    absent.unlink()
    options = PrepareOptions(num_points=64, max_quarantine_fraction=0.9)
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", options)
    assert (manifest["rows"], manifest["quarantined"]) == (2, 7)
    reasons = quarantine(tmp_path / "out")
    assert "b0.npy: asks for posix.mkdir when it is unpickled" in reasons["Objaverse/000-001/b0"]
    assert "xyz and rgb are (64, 3) and (3, 3)" in reasons["Objaverse/000-001/b1"]
    assert "is not an OpenShape sample (KeyError: 'image_feat')" in reasons["Objaverse/000-001/b2"]
    assert "image_feat has 13 views instead of 12" in reasons["Objaverse/000-001/b3"]
    assert "holds ndarray instead of a dict" in reasons["Objaverse/000-001/b4"]
    assert "image_feat is None" in reasons["Objaverse/000-001/b5"]
    assert reasons["ABO/B0/x"].endswith("x.npy: file not found")
