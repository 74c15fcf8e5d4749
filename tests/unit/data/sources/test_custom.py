"""Folders and tables of the user's own files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import write_clouds
from PIL import Image

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions, make_plan
from recon_ray.data.sources.custom import CustomSource
from recon_ray.errors import DataError

OPTIONS = PrepareOptions(num_points=16, samples_per_shard=8)


def _table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    "found",
    [
        {"cup/1": "train cup 1", "cup/2": "train cup 1", "bowl/deep/1": "train bowl 0"},
        {"train/cup/1": "train cup 1", "testing/cup/2": "test cup 1", "val/bowl/3": "val bowl 0"},
        {"cup/train/1": "train cup 1", "cup/test/1": "test cup 1", "bowl/train/1": "train bowl 0"},
        {"train/1": "train train 1", "plane/1": "train plane 0"},  # a class of that name
        {"a": "train  -1", "b": "train  -1"},  # no class folders
        {"cup/1": "train cup 0", "__MACOSX/cup/._1": "", "cup/._1": "", ".trash/2": ""},
    ],
)
def test_folders_give_splits_classes_and_labels(tmp_path, found):
    write_clouds(tmp_path, list(found))
    items = CustomSource(tmp_path, test_fraction=0).scan().items
    listed = {item.object_id: f"{item.split} {item.category} {item.label}" for item in items}
    assert listed == {name: entry for name, entry in found.items() if entry}


def test_partly_divided_classes_are_refused(tmp_path):
    write_clouds(tmp_path, ["cup/train/1", "bowl/1"])
    message = r"cup/train/1\.npy lies in a split's folder, but bowl/1\.npy"
    with pytest.raises(DataError, match=message):
        CustomSource(tmp_path).scan()


def test_lists_beside_the_folders_are_ignored_and_two_files_of_one_name_named(tmp_path, caplog):
    write_clouds(tmp_path, ["cup/1"])
    (tmp_path / "train.txt").write_text("cup/1\n")
    assert len(CustomSource(tmp_path).scan().items) == 1
    assert "train.txt" in caplog.text
    np.savetxt(tmp_path / "cup" / "1.xyz", np.zeros((20, 3)))
    with pytest.raises(DataError, match=r"'cup/1' is used twice, by cup/1\.npy and cup/1\.xyz"):
        make_plan(CustomSource(tmp_path), "out", OPTIONS)


def test_the_random_split_takes_part_of_every_class_and_is_repeatable(tmp_path):
    write_clouds(tmp_path, [f"{c}/{i}" for c in ("a", "b") for i in range(10)] + ["c/0"])
    items = CustomSource(tmp_path, test_fraction=0.3).scan().items
    tested = Counter(item.category for item in items if item.split == "test")
    assert tested == {"a": 3, "b": 3}
    assert items == CustomSource(tmp_path, test_fraction=0.3).scan().items
    assert items != CustomSource(tmp_path, test_fraction=0.3, seed=1).scan().items


def test_the_files_of_a_table_may_lie_one_folder_down(tmp_path):
    write_clouds(tmp_path / "in", ["shapes/1", "shapes/2", "__MACOSX/shapes/._1"])
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "shapes" / "1.png")
    rows = [{"file": "1.npy", "image": "1.png"}, {"file": "2.npy", "image": ""}]
    items = CustomSource(tmp_path / "in", _table(tmp_path / "t.csv", rows)).scan().items
    found = [(item.object_id, item.file, item.images) for item in items]
    assert found == [("1", "shapes/1.npy", ("shapes/1.png",)), ("2", "shapes/2.npy", ())]
    assert all(item.size_bytes > 0 for item in items)
    rows = [{"file": "shapes/1.npy"}]
    (item,) = CustomSource(tmp_path / "in", _table(tmp_path / "t.csv", rows)).scan().items
    assert item.file == "shapes/1.npy"


def test_missing_and_empty_folders_and_tables(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        CustomSource(tmp_path / "gone").scan()
    with pytest.raises(DataError, match="holds no shape files"):
        CustomSource(tmp_path).scan()
    with pytest.raises(DataError, match="no such table"):
        CustomSource(tmp_path, tmp_path / "gone.csv").scan()
    with pytest.raises(DataError, match="has no column 'file', only path"):
        CustomSource(tmp_path, _table(tmp_path / "t.csv", [{"path": "x"}])).scan()
    (tmp_path / "e.csv").write_text("file\n")
    with pytest.raises(DataError, match="has no rows"):
        CustomSource(tmp_path, tmp_path / "e.csv").scan()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_give_captions_labels_splits_and_ids(tmp_path, suffix, caplog):
    write_clouds(tmp_path / "in", ["x/1", "y/2"])
    rows = [
        {"file": "x/1.npy", "caption": "one", "label": "1", "category": "cup", "split": "train"},
        {"file": "y/2.npy", "caption": "two", "label": "0", "category": "bowl", "split": "test"},
    ]
    rows = [{**row, "object_id": f"id{i}", "price": "9"} for i, row in enumerate(rows)]
    table = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        _table(table, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    listing = CustomSource(tmp_path / "in", table).scan()
    assert listing.classes == ("bowl", "cup")
    found = [(i.object_id, i.caption, i.label, i.category, i.split) for i in listing.items]
    assert found == [("id0", "one", 1, "cup", "train"), ("id1", "two", 0, "bowl", "test")]
    assert "ignored unknown columns: price" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": ""}, r"t\.csv row 2: column 'file' is empty"),
        ({"file": "1.npy", "label": "x"}, "row 2: label is 'x'"),
        ({"file": "1.npy", "split": "dev"}, "row 2: split is 'dev'"),
        ({"file": "1.npy", "label": "0", "category": "b"}, "label 0 is 'b' here, 'a' elsewhere"),
        ({"file": "1.npy", "label": "1", "category": "a"}, "category 'a' is 1 here, 0 elsewhere"),
        ({"file": "1.npy", "label": "0", "category": "a"}, "no split, but other rows have one"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, message):
    write_clouds(tmp_path, ["0", "1"])
    first = {"file": "0.npy", "label": "0", "category": "a", "split": "train"}
    table = _table(tmp_path / "t.csv", [first, {**dict.fromkeys(first, ""), **row}])
    with pytest.raises(DataError, match=message):
        CustomSource(tmp_path, table).scan()


def test_labels_with_gaps_are_numbered_anew(tmp_path, caplog):
    write_clouds(tmp_path, ["0", "1", "2", "3"])
    rows = [
        {"file": "0.npy", "label": "9931", "category": ""},
        {"file": "1.npy", "label": "5021", "category": "cup"},
        {"file": "2.npy", "label": "9931", "category": ""},
        {"file": "3.npy", "label": "-1", "category": ""},
    ]
    listing = CustomSource(tmp_path, _table(tmp_path / "t.csv", rows), test_fraction=0).scan()
    assert listing.classes == ("cup", "9931")
    assert [(i.label, i.category) for i in listing.items] == [
        (1, "9931"), (0, "cup"), (1, "9931"), (-1, ""),
    ]  # fmt: skip
    assert "labels go up to 9931, but only 2 are used" in caplog.text


def test_missing_files_of_a_table_are_reported_one_by_one(tmp_path, caplog):
    write_clouds(tmp_path, [str(i) for i in range(8)])
    rows = [{"file": f"{i}.npy"} for i in range(9)]
    source = CustomSource(tmp_path, _table(tmp_path / "t.csv", rows), test_fraction=0)
    with caplog.at_level(logging.WARNING):
        manifest = prepare(source, tmp_path / "out", OPTIONS)
    assert "1 of 9 files are missing: 8.npy" in caplog.text
    assert manifest["quarantined"] == 1
    entry = json.loads((tmp_path / "out" / "_quarantine.jsonl").read_text())
    assert entry["file"] == "8.npy"
    assert entry["reason"].endswith("8.npy: file not found")


def test_given_pictures_are_used_and_others_rendered(tmp_path):
    write_clouds(tmp_path, ["a", "b", "c", "d"])
    for name, color in (("r", (255, 0, 0)), ("g", (0, 255, 0))):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    rows = [
        {"file": "a.npy", "image": "r.png;g.png"},
        {"file": "b.npy", "image": ""},
        {"file": "c.npy", "image": "bad.png"},
        {"file": "d.npy", "image": "r.png"},
    ]
    source = CustomSource(tmp_path, _table(tmp_path / "t.csv", rows), test_fraction=0)
    options = PrepareOptions(num_points=16, views=3, image_size=24)
    prepare(source, tmp_path / "out", options)
    table = PreparedSet.open(tmp_path / "out").read("train", ["object_id"], views=True)
    views = dict(zip(table["object_id"].to_pylist(), table["views"].to_pylist(), strict=True))
    assert {name: len(v) for name, v in views.items()} == {"a": 2, "b": 3, "d": 1}
    second = np.asarray(Image.open(io.BytesIO(views["a"][1])))
    assert second.shape == (24, 24, 3)
    assert (second == [0, 255, 0]).all()
    assert "the image does not decode" in (tmp_path / "out" / "_quarantine.jsonl").read_text()
