"""ShapeNetPart in its published layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from published_sets import points, quarantine, read_rows, write_shapenetpart

from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.create_source import create_source
from recon_ray.errors import DataError

CAP, MUG = "02954340", "03797390"
CATEGORIES = {"02691156": "Airplane", CAP: "Cap", MUG: "Mug"}
OPTIONS = PrepareOptions(num_points=80, samples_per_shard=2, normals=True)


def _table(seed, count, parts):
    part = np.array(parts)[np.arange(count) % len(parts)]
    return np.column_stack([points(seed, count, 6).astype(np.float64), part])


SPLITS = {
    "train": {f"{CAP}/a": _table(0, 70, (6, 7)), f"{MUG}/b": _table(1, 60, (36, 37))},
    "val": {f"{CAP}/c": _table(2, 50, (6,))},
    "test": {f"{MUG}/d": _table(3, 80, (36, 37)), f"{MUG}/e": _table(4, 20, (37,))},
}


@pytest.fixture
def root(tmp_path):
    write_shapenetpart(tmp_path / "in", SPLITS, CATEGORIES)
    return tmp_path / "in"


def _source(root):
    return create_source("shapenetpart", root, {})


def test_every_point_keeps_its_normal_and_part(root, tmp_path):
    manifest = prepare(_source(root), tmp_path / "out", OPTIONS)
    counts = {name: split["rows"] for name, split in manifest["splits"].items()}
    assert counts == {"train": 2, "val": 1, "test": 2}
    columns = ("points", "normals", "part_labels", "valid_points", "label", "category")
    for split, shapes in SPLITS.items():
        rows = read_rows(tmp_path / "out", split, columns)
        for name, table in shapes.items():
            xyz, normals, parts, valid, label, category = rows[name]
            assert valid == len(table)
            expected = np.round(table, 6).astype(np.float32)  # six decimals are written
            np.testing.assert_allclose(xyz[:valid], expected[:, :3], rtol=0, atol=1e-6)
            np.testing.assert_allclose(normals[:valid], expected[:, 3:6], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(parts[:valid], table[:, 6])
            assert (label, category) == ((2, "Cap") if name.startswith(CAP) else (11, "Mug"))


def test_clouds_keep_all_points_and_a_wrong_line_in_the_table_is_named(root):
    listing = _source(root).scan()
    assert listing.keeps_all_points
    assert listing.part_labels
    assert listing.num_points == 3072
    assert len(listing.classes) == 16
    (root / "synsetoffset2category.txt").write_text("Cap\n")
    with pytest.raises(DataError, match=r"category\.txt line 1: is not a category and a synset"):
        _source(root).scan()


def test_parts_of_another_category_are_quarantined_with_the_line(root, tmp_path):
    table = SPLITS["test"][f"{MUG}/e"].copy()
    table[5, 6] = 7
    np.savetxt(root / MUG / "e.txt", table, fmt="%.6f")
    (root / CAP / "a.txt").write_text("1 2 3 4 5 6\n" * 3)
    prepare(_source(root), tmp_path / "out", OPTIONS)
    reasons = quarantine(tmp_path / "out")
    assert reasons[f"{MUG}/e"].endswith("e.txt line 6: part 7 is not one of Mug's, 36 to 37")
    assert reasons[f"{CAP}/a"].endswith("a.txt line 1: has 6 columns instead of 7")


def test_missing_unlisted_and_unknown_shapes_are_told_apart(root, tmp_path):
    (root / MUG / "b.txt").unlink()
    (root / MUG / "new.txt").write_text("x")
    (root / "synsetoffset2category.txt").write_text(f"Cup\t{CAP}\nMug\t{MUG}\n")
    manifest = prepare(_source(root), tmp_path / "out", OPTIONS)
    assert (manifest["rows"], manifest["quarantined"], manifest["excluded"]) == (2, 1, 3)
    reasons = quarantine(tmp_path / "out")
    assert reasons[f"{MUG}/b"].endswith("b.txt: file not found")
    assert reasons[f"{MUG}/new"] == "in no list"
    assert reasons[f"{CAP}/c"] == "class 'Cup' is not one of the 16 of the data set"


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        ("val", None, r"shuffled_val_file_list\.json: the list is missing"),
        ("val", {"a": 1}, r"val_file_list\.json: is not a list of names"),
        ("test", ["b"], r"test_file_list\.json entry 1: b is not <synset>/<model>"),
        ("test", ["shape_data/1/b"] * 2, r"file_list\.json entry 2: 1/b is listed twice"),
    ],
)
def test_wrong_lists_are_refused(root, split, content, message):
    path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
    path.unlink()
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        _source(root).scan()


def test_a_shape_of_the_training_and_the_validation_list_is_trained_on_once(root, tmp_path):
    path = root / "train_test_split" / "shuffled_val_file_list.json"
    path.write_text(json.dumps([f"shape_data/{CAP}/a", f"shape_data/{CAP}/c"]))
    manifest = prepare(_source(root), tmp_path / "out", OPTIONS)
    assert {name: split["rows"] for name, split in manifest["splits"].items()} == {
        "train": 2, "val": 1, "test": 2
    }  # fmt: skip
    assert manifest["excluded"] == 1
    assert quarantine(tmp_path / "out") == {
        f"{CAP}/a@val": "in the training list too, where it stays"
    }


def test_a_shape_of_two_lists_is_two_samples_as_in_the_official_ones(root, tmp_path, caplog):
    path = root / "train_test_split" / "shuffled_test_file_list.json"
    path.write_text(json.dumps([f"shape_data/{CAP}/a", f"shape_data/{MUG}/d"]))
    manifest = prepare(_source(root), tmp_path / "out", OPTIONS)
    assert manifest["rows"] == 5
    assert "1 shapes are in both train and test; all are kept" in caplog.text
    first = read_rows(tmp_path / "out", "train")[f"{CAP}/a"]
    again = read_rows(tmp_path / "out", "test")[f"{CAP}/a@test"]
    np.testing.assert_array_equal(first[:70], again[:70])
