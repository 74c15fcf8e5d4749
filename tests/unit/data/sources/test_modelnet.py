"""ModelNet40 and ModelNet10 in every layout in which they are passed on."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
from published_sets import (
    points,
    quarantine,
    read_rows,
    write_h5,
    write_modelnet_dat,
    write_modelnet_texts,
)

from recon_ray.data.prepare import runners
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions, make_plan
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.create_source import create_source
from recon_ray.errors import DataError

TRAIN = ["airplane_0001", "airplane_0002", "night_stand_0001", "xbox_0001"]
TEST = ["airplane_0627", "night_stand_0201"]
OFF = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
OPTIONS = PrepareOptions(num_points=64, samples_per_shard=3, normals=True)


def _source(root, number=40):
    return create_source(f"modelnet{number}", root, {})


def _reasons(listing):
    return [entry.reason for entry in listing.excluded]


def _write_shapes(root, names, suffix=".off", content=OFF):
    for name in names:
        path = root / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


# --- Text files and lists ------------------------------------------------------------------------
def test_text_files_make_the_round_trip_to_float32(tmp_path):
    clouds = write_modelnet_texts(tmp_path / "in", TRAIN, TEST)
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", OPTIONS)
    assert manifest["splits"]["train"]["rows"] == 4
    assert manifest["splits"]["test"]["rows"] == 2
    rows = read_rows(tmp_path / "out", "train", ("points", "normals", "label", "category"))
    for name in TRAIN:
        expected = np.round(clouds[name].astype(np.float64), 6).astype(np.float32)
        # six decimals are written; half a unit of the last one
        np.testing.assert_allclose(np.hstack(rows[name][:2]), expected, rtol=0, atol=1e-6)
    assert rows["night_stand_0001"][2:] == [23, "night_stand"]


def test_text_files_are_thinned_and_read_by_the_lists_of_their_set(tmp_path, caplog):
    write_modelnet_texts(tmp_path, TRAIN, TEST)
    listing = _source(tmp_path).scan()
    assert (listing.num_points, listing.sampling, listing.up_axis) == (8192, "fps", "y")
    caplog.clear()
    for split, name in (("train", "night_stand_0001"), ("test", "night_stand_0201")):
        (tmp_path / f"modelnet10_{split}.txt").write_text(f"{name}\n")
    listing = _source(tmp_path, 10).scan()
    found = {item.object_id: item.label for item in listing.items}
    assert found == {"night_stand_0001": 6, "night_stand_0201": 6}
    assert listing.excluded == ()
    assert "not the official list" not in caplog.text  # none is known for ModelNet10
    (tmp_path / "modelnet40_test.txt").unlink()
    with pytest.raises(DataError, match=r"modelnet40_test\.txt: the list is missing"):
        _source(tmp_path).scan()


def test_missing_unlisted_and_foreign_shapes_are_told_apart(tmp_path):
    write_modelnet_texts(tmp_path / "in", [*TRAIN, "robot_0001"], TEST)
    (tmp_path / "in" / "xbox" / "xbox_0001.txt").unlink()
    (tmp_path / "in" / "airplane" / "airplane_0009.txt").write_text("0,0,0,0,0,1\n")
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", OPTIONS)
    assert (manifest["rows"], manifest["quarantined"], manifest["excluded"]) == (5, 1, 2)
    reasons = quarantine(tmp_path / "out")
    assert reasons["xbox_0001"].endswith("xbox/xbox_0001.txt: file not found")
    assert reasons["robot_0001"] == "class 'robot' is not one of the 40 of the data set"
    assert reasons["airplane_0009"] == "in neither list"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,5", r"airplane_0001\.txt line 65: has 5 columns instead of 6"),
        ("1,2,3,4,5,x", r"airplane_0001\.txt line 65: 'x' is not a number"),
        ("nan,2,3,4,5,6", r"airplane_0001\.txt: 1 of 65 points are not finite"),
        ("1 2 3 4 5 6", r"line 65: has 1 columns instead of 6"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    write_modelnet_texts(tmp_path, TRAIN, TEST)
    path = tmp_path / "airplane" / "airplane_0001.txt"
    path.write_text(path.read_text() + line + "\n")
    source = _source(tmp_path)
    with pytest.raises(DataError, match=message):
        source.load(source.scan().items[0])
    path.write_text(" \n")
    with pytest.raises(DataError, match=r"airplane_0001\.txt: the file is empty"):
        source.load(source.scan().items[0])


def test_lists_are_known_by_their_hash_whatever_their_line_endings(tmp_path, monkeypatch, caplog):
    write_modelnet_texts(tmp_path, TRAIN, TEST)
    official = "\r\n".join(TRAIN).encode() + b"\r\n"
    lists = {"modelnet40_train.txt": hashlib.sha256(official).hexdigest()}
    monkeypatch.setitem(CARDS, "modelnet40", replace(CARDS["modelnet40"], lists=lists))
    _source(tmp_path).scan()  # written with plain line feeds
    assert "not the official list" not in caplog.text
    (tmp_path / "modelnet40_train.txt").write_text("\n".join(TRAIN[1:]))
    _source(tmp_path).scan()
    assert "modelnet40_train.txt: is not the official list of ModelNet40" in caplog.text


# --- Pickles of the reference --------------------------------------------------------------------
def _write_dats(root, labels=(0, 23, 39), name="modelnet40"):
    clouds = [points(i, columns=6) for i in range(4)]
    write_modelnet_dat(root / f"{name}_train_8192pts_fps.dat", clouds[:3], labels)
    write_modelnet_dat(root / f"{name}_test_8192pts_fps.dat", clouds[3:], [1])
    return clouds


def test_pickled_caches_make_the_round_trip(tmp_path):
    clouds = _write_dats(tmp_path / "in")
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", OPTIONS)
    assert manifest["rows"] == 4
    rows = read_rows(tmp_path / "out", "train", ("points", "normals", "category"))
    for row, category in enumerate(["airplane", "night_stand", "xbox"]):
        found = rows[f"modelnet40_train_8192pts_fps_{row:05d}"]
        np.testing.assert_array_equal(np.hstack(found[:2]), clouds[row])
        assert found[2] == category


@pytest.mark.parametrize(
    ("cpus", "free_files", "processes"), [(8, 3.5, 3), (8, 0.5, 1), (2, 3.5, 2), (8, None, 8)]
)
def test_processes_of_caches_fit_memory(tmp_path, monkeypatch, caplog, cpus, free_files, processes):
    _write_dats(tmp_path)
    tasks = make_plan(_source(tmp_path), "out", OPTIONS).tasks
    held = sum(path.stat().st_size for path in tmp_path.glob("*.dat"))
    free = None if free_files is None else int(free_files * held)
    monkeypatch.setattr(runners, "cpu_count", lambda: cpus)
    monkeypatch.setattr(runners, "available_memory", lambda: free)
    assert runners.fitting_processes(tasks) == processes
    assert ("processes instead of" in caplog.text) == (processes < cpus)


def test_pickled_caches_are_preferred_if_both_are_there_and_labels_checked(tmp_path):
    write_modelnet_texts(tmp_path, TRAIN, TEST)
    _write_dats(tmp_path)
    assert _source(tmp_path).scan().items[0].file == "modelnet40_train_8192pts_fps.dat#0"
    (tmp_path / "modelnet40_test_8192pts_fps.dat").unlink()
    assert _source(tmp_path).scan().items[0].file == "airplane/airplane_0001.txt"
    _write_dats(tmp_path, labels=(0, 40, 39))
    listing = _source(tmp_path).scan()
    assert len(listing.items) == 3
    assert _reasons(listing) == ["class '40' is not one of the 40 of the data set"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[], [], []], r"train_8192pts_fps\.dat: is not a pair of clouds and labels"),
        ([[np.ones((4, 6))], []], r"\.dat: holds 1 clouds but 0 labels"),
        ([print, []], r"\.dat: asks for builtins\.print when it is unpickled"),
    ],
)
def test_pickles_of_another_kind_are_refused(tmp_path, content, message):
    _write_dats(tmp_path)
    (tmp_path / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        _source(tmp_path).scan()


def test_clouds_of_other_columns_in_a_pickle_are_named_by_row(tmp_path):
    clouds = [points(0, columns=6), np.ones((64, 5), np.float32)]
    write_modelnet_dat(tmp_path / "modelnet40_train_8192pts_fps.dat", clouds, [0, 1])
    write_modelnet_dat(tmp_path / "modelnet40_test_8192pts_fps.dat", clouds, [0, 1])
    source = _source(tmp_path)
    message = r"fps\.dat#1: is float32 \(64, 5\); expected .*\(points, 3 or 6\)"
    with pytest.raises(DataError, match=message):
        source.load(source.scan().items[1])


# --- Folders of shapes ---------------------------------------------------------------------------
@pytest.mark.parametrize("header", ["OFF\n4 4 0\n", "OFF4 4 0\n"])
def test_meshes_are_turned_from_z_up(tmp_path, header):
    names = ["chair/train/chair_0001", "toilet/test/toilet_0002", "robot/train/robot_0001"]
    _write_shapes(tmp_path / "in", names, content=OFF.replace("OFF\n4 4 0\n", header))
    listing = _source(tmp_path / "in").scan()
    assert (listing.up_axis, listing.num_points) == ("z", 8192)
    assert [(i.object_id, i.split, i.label) for i in listing.items] == [
        ("chair_0001", "train", 8),
        ("toilet_0002", "test", 35),
    ]
    assert _reasons(listing) == ["class 'robot' is not one of the 40 of the data set"]
    prepare(_source(tmp_path / "in"), tmp_path / "out", PrepareOptions(num_points=64))
    cloud = read_rows(tmp_path / "out", "train")["chair_0001"]
    assert cloud[:, 1].min() >= 0  # the corner at the origin stays the lowest
    assert cloud[:, 2].max() <= 0  # y of the file points away


def test_pcd_clouds_keep_their_1024_points(tmp_path):
    header = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 3\nHEIGHT 1\n"
    body = "POINTS 3\nDATA ascii\n0 0 0\n1 0 0\n0 2 1\n"
    names = ["sofa/train/sofa_0001", "sofa/test/sofa_0900"]
    _write_shapes(tmp_path, names, ".pcd", header + body)
    listing = _source(tmp_path, 10).scan()
    assert (listing.up_axis, listing.num_points) == ("z", 1024)
    shape = _source(tmp_path, 10).load(listing.items[0]).shape
    np.testing.assert_array_equal(shape.vertices, [[0, 0, 0], [1, 0, 0], [0, 2, 1]])


def test_a_mesh_without_faces_is_quarantined(tmp_path):
    names = [f"chair/train/chair_000{i}" for i in range(3)]
    _write_shapes(tmp_path / "in", names)
    (tmp_path / "in" / f"{names[0]}.off").write_text("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n")
    prepare(_source(tmp_path / "in"), tmp_path / "out", PrepareOptions(num_points=64))
    assert quarantine(tmp_path / "out")["chair_0000"].endswith("off: the mesh has no faces")


# --- HDF5 ----------------------------------------------------------------------------------------
def test_hdf5_files_of_the_list_are_read_with_normals(tmp_path):
    root = tmp_path / "in"
    data = [np.stack([points(10 * f + i) for i in range(2)]) for f in range(3)]
    normals = [np.roll(d, 1, axis=2) for d in data]
    for f in range(2):
        labels = np.array([[f], [39]], np.uint8)
        write_h5(root / f"ply_data_train{f}.h5", data[f], labels, normal=normals[f])
    write_h5(root / "ply_data_test0.h5", data[2], [[23], [1]], normal=normals[2])
    (root / "train_files.txt").write_text(
        "data/modelnet40_ply_hdf5_2048/ply_data_train0.h5\n"
        "data/modelnet40_ply_hdf5_2048/ply_data_train1.h5\n"
    )
    manifest = prepare(_source(root), tmp_path / "out", OPTIONS)
    assert {n: s["rows"] for n, s in manifest["splits"].items()} == {"train": 4, "test": 2}
    rows = read_rows(tmp_path / "out", "train", ("points", "normals", "label"))
    np.testing.assert_array_equal(rows["ply_data_train1_00000"][0], data[1][0])
    np.testing.assert_array_equal(rows["ply_data_train1_00000"][1], normals[1][0])
    assert rows["ply_data_train1_00000"][2] == 1
    assert rows["ply_data_train1_00001"][2] == 39


def test_hdf5_labels_follow_the_names_beside_them_and_listed_files_must_be_there(tmp_path):
    data = np.stack([points(i) for i in range(3)])
    write_h5(tmp_path / "modelnet40_train.h5", data, [0, 1, 2])
    (tmp_path / "shape_names.txt").write_text("toilet\nrobot\nbed\n")
    listing = _source(tmp_path, 10).scan()
    assert [(i.category, i.label) for i in listing.items] == [("toilet", 9), ("bed", 1)]
    assert _reasons(listing) == ["class 'robot' is not one of the 10 of the data set"]
    write_h5(tmp_path / "ply_data_train0.h5", points(0)[None], [0])
    (tmp_path / "train_files.txt").write_text("x/ply_data_train0.h5\nx/ply_data_train1.h5\n")
    with pytest.raises(DataError, match=r"train_files\.txt: names ply_data_train1\.h5, which is n"):
        _source(tmp_path).scan()
