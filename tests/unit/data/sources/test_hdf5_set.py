"""Clouds in HDF5: ScanObjectNN and any data set in that layout."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
from published_sets import points, quarantine, read_rows, write_h5

from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.readers.file_cache import RecentFiles
from recon_ray.data.readers.hdf5 import read_cloud
from recon_ray.data.sources.create_source import create_source
from recon_ray.errors import DataError

OPTIONS = PrepareOptions(num_points=64, samples_per_shard=3)
VARIANTS = {
    "scanobjectnn_obj_bg": ("main_split", "objectdataset.h5"),
    "scanobjectnn_obj_only": ("main_split_nobg", "objectdataset.h5"),
    "scanobjectnn_pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75.h5"),
}


def _scan(folder, name="hdf5"):
    return create_source(name, folder, {}).scan()


def _data(seed, count):
    return np.stack([points(seed * 100 + i) for i in range(count)])


def _write_scans(root, scale=1.0):
    """All variants, each with data of its own."""
    written = {}
    for seed, (name, (folder, end)) in enumerate(VARIANTS.items()):
        written[name] = [_data(2 * seed, 4) * scale, _data(2 * seed + 1, 2)]
        for prefix, data, labels in zip(
            ("training", "test"), written[name], ([0, 14, 3, 3], [14, 1]), strict=True
        ):
            mask = np.ones(data.shape[:2], np.int64)
            write_h5(root / folder / f"{prefix}_{end}", data, np.array(labels), mask=mask)
    return written


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("place", ["root", "above", "split"])
def test_scanobjectnn_makes_the_round_trip_wherever_it_is_found(tmp_path, name, place):
    written = _write_scans(tmp_path / "in" / "h5_files", scale=3.0)
    folder = {
        "root": tmp_path / "in" / "h5_files",
        "above": tmp_path / "in",
        "split": tmp_path / "in" / "h5_files" / VARIANTS[name][0],
    }[place]
    source = create_source(name, folder, {})
    manifest = prepare(source, tmp_path / "out", OPTIONS)
    assert {n: s["rows"] for n, s in manifest["splits"].items()} == {"train": 4, "test": 2}
    for split, data in zip(("train", "test"), written[name], strict=True):
        rows = read_rows(tmp_path / "out", split)
        for object_id, cloud in rows.items():
            np.testing.assert_array_equal(cloud, data[int(object_id[-5:])])  # not normalized
    categories = read_rows(tmp_path / "out", "test", ("category",))
    assert sorted(categories.values()) == ["bin", "toilet"]
    assert manifest["card"]["normalization"] == "none"


def test_other_counts_labels_folders_and_a_split_alone_are_named(tmp_path, caplog):
    _write_scans(tmp_path)
    _scan(tmp_path, "scanobjectnn_pb_t50_rs")
    assert "PB_T50_RS: 4 samples for train, but 11416 were published" in caplog.text
    assert "PB_T50_RS: 2 samples for test, but 2882 were published" in caplog.text
    write_h5(tmp_path / "main_split" / "training_objectdataset.h5", _data(0, 3), [0, 15, -1])
    listing = _scan(tmp_path, "scanobjectnn_obj_bg")
    assert len(listing.items) == 3
    assert [e.file.rpartition("#")[2] for e in listing.excluded] == ["1", "2"]
    assert "class '15' is not one of the 15" in listing.excluded[0].reason
    with pytest.raises(DataError, match=r"main_split_nobg: expected main_split/training_objectdat"):
        _scan(tmp_path / "main_split_nobg", "scanobjectnn_obj_bg")
    # One split alone, too.
    (tmp_path / "main_split" / "test_objectdataset.h5").unlink()
    with pytest.raises(DataError, match=r"test_objectdataset\.h5: file not found; both splits"):
        _scan(tmp_path, "scanobjectnn_obj_bg")


# --- Any data set --------------------------------------------------------------------------------
def _write_any(root, names="one\ntwo\nthree", labels=(0, 2, 1)):
    write_h5(root / "some_train.h5", _data(0, 3), labels)
    write_h5(root / "some_test.h5", _data(1, 1), [1])
    if names:
        (root / "shape_names.txt").write_text(names)  # no line feed at the end


def test_names_give_the_classes_files_the_splits_and_the_smallest_counts(tmp_path, caplog):
    _write_any(tmp_path)
    listing = _scan(tmp_path)
    assert listing.classes == ("one", "two", "three")
    found = [f"{item.split} {item.category}" for item in listing.items]
    assert found == ["train one", "train three", "train two", "test two"]
    assert listing.num_points == 64
    assert listing.card is None
    write_h5(tmp_path / "some_test.h5", _data(0, 1)[:, :50], [0])
    assert _scan(tmp_path).num_points == 50
    assert "the files hold clouds of 50, 64 points" in caplog.text
    write_h5(tmp_path / "other.h5", _data(0, 1), [0])
    _scan(tmp_path)
    assert "other.h5: ignored, its name contains no split" in caplog.text
    write_h5(tmp_path / "train_test.h5", _data(0, 1), [0])
    with pytest.raises(DataError, match=r"its name contains two splits, train and test"):
        _scan(tmp_path)


def test_labels_beyond_the_names_are_called_by_number(tmp_path, caplog):
    _write_any(tmp_path, names="one\ntwo\n", labels=(0, 3, 1))
    listing = _scan(tmp_path)
    assert listing.classes == ("one", "two", "2", "3")
    assert "names 2 classes, but labels go up to 3" in caplog.text
    _write_any(tmp_path / "none", names="")
    assert _scan(tmp_path / "none").classes == ("0", "1", "2")


def _without_labels(path):
    with h5py.File(path, "w") as file:
        file["data"] = _data(0, 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b""), r"some_train\.h5: the file is empty"),
        (lambda p: p.write_bytes(b"x" * 4000), r"train\.h5: is damaged or cut off, or not an HD"),
        (lambda p: p.write_bytes(p.read_bytes()[:-900]), r"train\.h5: is damaged or cut off"),
        (lambda p: write_h5(p, np.ones((2, 64, 2)), [0, 1]), r"\(2, 64, 2\); expected numbers of"),
        (lambda p: write_h5(p, np.ones((2, 64, 3)), [0]), "holds 2 clouds but 1 labels"),
        (_without_labels, r"some_train\.h5: has no array 'label', only data"),
        (lambda p: write_h5(p, np.ones((1, 64, 3)), [0.5]), "its labels are float64; expected wh"),
        (lambda p: write_h5(p, np.ones((1, 64, 3)), [b"a"]), r"its labels are .*; expected whole"),
    ],
)
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, write, message):
    _write_any(tmp_path)
    write(tmp_path / "some_train.h5")
    with pytest.raises(DataError, match=message):
        _scan(tmp_path)


def test_rows_without_a_shape_and_beyond_the_end_are_named_by_number(tmp_path):
    data = _data(0, 4)
    data[1, 7] = np.nan
    data[2] = 0
    write_h5(tmp_path / "in" / "a_train.h5", data, [0, 0, 0, 0])
    manifest = prepare(create_source("hdf5", tmp_path / "in", {}), tmp_path / "out", OPTIONS)
    assert (manifest["rows"], manifest["quarantined"]) == (2, 2)
    reasons = quarantine(tmp_path / "out")
    assert "a_train.h5#1: 1 of 64 points are not finite" in reasons["a_train_00001"]
    assert "a_train.h5#2: all 64 points are the same" in reasons["a_train_00002"]
    write_h5(tmp_path / "a.h5", _data(0, 2), [0, 0])
    with pytest.raises(DataError, match=r"a\.h5#2: the file holds 2 clouds only"):
        read_cloud(tmp_path / "a.h5", 2)


# --- Files kept open -----------------------------------------------------------------------------


def test_recent_files_are_read_once_while_they_fit_and_do_not_change(tmp_path, monkeypatch):
    read, budget = [], "recon_ray.data.readers.file_cache.BUDGET_BYTES"

    def load(path):
        read.append(path.name)
        return path.read_bytes()

    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    monkeypatch.setattr(budget, 150)
    small = RecentFiles(load)
    for name in "abaacab":
        assert small.get(tmp_path / name) == name.encode() * 100
    assert "".join(read) == "abcb"  # c took the place of b, the one not used for longest
    read.clear()
    monkeypatch.setattr(budget, 300)
    large = RecentFiles(load)
    for name in "abcabc":
        large.get(tmp_path / name)
    assert "".join(read) == "abc"
    path = tmp_path / "a"
    path.write_bytes(b"1")
    files = RecentFiles(lambda p: p.read_bytes())
    assert files.get(path) == b"1"
    path.write_bytes(b"12")
    assert files.get(path) == b"12"
    shutil.move(path, tmp_path / "b")
    with pytest.raises(DataError, match="a: file not found"):
        files.get(path)


def test_what_macos_packs_beside_the_files_is_no_data(tmp_path):
    write_h5(tmp_path / "in" / "train0.h5", _data(0, 2), np.array([0, 1]))
    beside = tmp_path / "__MACOSX" / "in" / "._train0.h5"
    beside.parent.mkdir(parents=True)
    for path in (beside, tmp_path / "in" / "._train0.h5"):
        path.write_bytes(b"\0\5\x16\7")
    assert len(_scan(tmp_path).items) == 2
