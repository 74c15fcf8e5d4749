"""ShapeNet-55 in its published layout."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from published_sets import CHAIR, MUG, quarantine, read_rows, write_shapenet55

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.augmentation import augment, draw_augmentation
from recon_ray.data.loading.device_augmentation import DeviceAugmentation
from recon_ray.data.loading.images import (
    ImageTransform,
    load_images,
    load_raw_images,
    sample_rng,
)
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.cards import CARDS, SYNSETS
from recon_ray.data.sources.create_source import create_source
from recon_ray.errors import DataError
from recon_ray.tasks.prepare.config import PrepareConfig
from recon_ray.tasks.prepare.job import prepare as prepare_job
from recon_ray.tasks.registry import Job

TEXTS = [(s, f"{text}!") for s, text in zip(SYNSETS, CARDS["shapenet55"].texts, strict=True)]
TRAIN = [f"{CHAIR}-a{i}" for i in range(6)]
TEST = [f"{MUG}-b{i}" for i in range(3)]
OPTIONS = PrepareOptions(num_points=64, samples_per_shard=4)


def _source(root):
    return create_source("shapenet55", root, {})


def _scan(root):
    listing = _source(root).scan()
    return {i.object_id: i for i in listing.items}, {e.object_id: e for e in listing.excluded}


def test_clouds_pictures_labels_and_texts_make_the_round_trip(tmp_path):
    clouds = write_shapenet55(tmp_path / "in", TRAIN, TEST)
    options = PrepareOptions(num_points=64, samples_per_shard=4, views=1, image_size=32)
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", options)
    assert {n: s["rows"] for n, s in manifest["splits"].items()} == {"train": 6, "test": 3}
    columns, rows = ("points", "label", "category", "caption"), {}
    for split in ("train", "test"):
        rows |= read_rows(tmp_path / "out", split, columns)
    for name, cloud in clouds.items():
        np.testing.assert_array_equal(rows[name][0], cloud)
    assert rows[TRAIN[0]][1:] == [17, "chair", "chair"]
    assert rows[TEST[0]][1:] == [36, "mug", "mug"]
    opened = PreparedSet.open(tmp_path / "out")
    opened.verify()
    views = opened.read("test", ["object_id"], views=True)["views"].to_pylist()
    assert [len(v) for v in views] == [1, 1, 1]  # the set's own, one a shape
    assert manifest["card"]["name"] == "shapenet55"
    assert manifest["card"]["texts"][50].startswith("cellular telephone,")


def test_the_teacher_sees_what_the_published_reader_saw(tmp_path):
    """Colors without transparency, blue first, stretched to 256 pixels, then augmented."""
    write_shapenet55(tmp_path / "in", TRAIN[:1], TEST[:1])
    pixels = np.random.default_rng(3).integers(0, 256, (64, 80, 4), dtype=np.uint8)
    pixels[:32, :, 3] = 0
    for name in (TRAIN[0], TEST[0]):
        Image.fromarray(pixels, "RGBA").save(tmp_path / "in" / "shapenet_img" / f"{name}.png")
    config = PrepareConfig(
        source="shapenet55",
        input=tmp_path / "in",
        output=tmp_path / "out",
        protocol="reference",
        prepare={"num_points": 64, "processes": 1},
        run={"name": "prepare", "storage": str(tmp_path / "runs")},
    )
    prepare_job(Job("prepare", config))
    prepared = PreparedSet.open(tmp_path / "out")
    assert prepared.manifest["views"]["fit"] == "stretch"
    views = prepared.read("train", [], views=True)["views"].to_pylist()[0]
    assert len(views) == 1
    blue_first = Image.fromarray(pixels[..., 2::-1].copy(), "RGB")
    stretched = np.asarray(blue_first.resize((256, 256), Image.Resampling.BICUBIC))
    stored = np.asarray(Image.open(io.BytesIO(views[0])))
    np.testing.assert_array_equal(stored[..., ::-1], stretched)
    transform, seen = ImageTransform(kind="reference", bgr=True), []
    load = {"epoch": 2, "seed": 5, "transform": transform}
    seen.append(load_images([views], [7], **load))
    raw, parameters = load_raw_images([views], [7], **load)
    np.testing.assert_array_equal(raw[0].permute(1, 2, 0).numpy(), stretched)
    seen.append(DeviceAugmentation(224)(raw, parameters))
    rng = sample_rng(5, 2, 7)
    rng.integers(1)  # the choice of the view
    expected = np.asarray(augment(blue_first, draw_augmentation(224, rng), 224)) / 255
    for images, tolerance in zip(seen, (1e-6, 2 / 255), strict=True):
        np.testing.assert_allclose(
            images[0].permute(1, 2, 0).numpy(), expected, rtol=0, atol=tolerance
        )


def test_the_data_set_may_lie_one_folder_down(tmp_path, caplog):
    write_shapenet55(tmp_path / "ShapeNet55-34", TRAIN, TEST)
    listing = _source(tmp_path).scan()
    assert (listing.num_points, listing.up_axis, listing.sampling) == (8192, "y", "random")
    assert len(listing.classes) == 55
    item = next(item for item in listing.items if item.object_id == TRAIN[0])
    assert item.file == f"ShapeNet55-34/shapenet_pc/{TRAIN[0]}.npy"
    assert len(item.images) == 1
    assert "train.txt: is not the official list of ShapeNet-55" in caplog.text
    assert "6 samples for train, but 41952 were published" in caplog.text


def test_the_table_of_texts_is_read_unless_it_is_of_other_classes(tmp_path):
    write_shapenet55(tmp_path, TRAIN, TEST, texts=TEXTS)
    items, _ = _scan(tmp_path)
    assert items[TRAIN[0]].caption == "chair!"
    assert items[TRAIN[0]].label == 17
    path = tmp_path / "shapenet55.json"
    table = json.loads(path.read_text())
    table["catalogue"]["0"], table["catalogue"]["1"] = 2747177, 2691156
    for content, message in (
        (json.dumps(table), r"json: its 55 classes are not the 55 of ShapeNet-55 in their order"),
        ("{}", r"shapenet55\.json: has no columns catalogue and describe"),
        ("{", r"shapenet55\.json: is not readable JSON"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            _source(tmp_path).scan()


def test_shapes_without_a_picture_are_left_out_and_do_not_count_as_unreadable(tmp_path, caplog):
    write_shapenet55(tmp_path / "in", TRAIN, TEST)
    for name in TRAIN[:4]:  # more than the unreadable ones that are tolerated
        (tmp_path / "in" / "shapenet_img" / f"{name}.png").unlink()
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", OPTIONS)
    assert manifest["splits"]["train"]["rows"] == 2
    assert manifest["excluded"] == 4
    assert manifest["quarantined"] == 0
    assert quarantine(tmp_path / "out") == dict.fromkeys(
        TRAIN[:4], "no picture of its name in shapenet_img"
    )
    assert f"4 left out, no picture of its name in shapenet_img: {TRAIN[0]}" in caplog.text


def test_swapped_names_are_found_and_without_any_pictures_they_are_rendered(tmp_path, caplog):
    write_shapenet55(tmp_path, TRAIN, TEST)
    pictures = tmp_path / "shapenet_img"
    (pictures / f"{TRAIN[0]}.png").rename(pictures / f"{CHAIR}-zz.png")
    items, excluded = _scan(tmp_path)
    assert TRAIN[0] not in items
    assert excluded[TRAIN[0]].reason.startswith("no picture")
    assert excluded[f"{CHAIR}-zz"].reason.startswith("a picture without a cloud of its name")
    for path in (tmp_path / "shapenet_img").iterdir():
        path.unlink()
    (tmp_path / "shapenet_img").rmdir()
    items, excluded = _scan(tmp_path)
    assert len(items) == 9
    assert not excluded
    assert items[TRAIN[0]].images == ()
    assert "pictures are rendered from the clouds" in caplog.text


def test_lists_and_files_that_do_not_agree_are_reported_exactly(tmp_path, caplog):
    write_shapenet55(tmp_path / "in", TRAIN, TEST)
    np.save(tmp_path / "in" / "shapenet_pc" / f"{MUG}-new.npy", np.ones((64, 3)))
    (tmp_path / "in" / "shapenet_pc" / f"{TEST[0]}.npy").unlink()
    with (tmp_path / "in" / "ShapeNet-55" / "test.txt").open("a") as file:
        file.write("00000000-alien.npy\n")
    items, excluded = _scan(tmp_path / "in")
    assert items[TEST[0]].size_bytes == -1
    assert {name: e.reason for name, e in excluded.items()} == {
        f"{MUG}-new": "in neither list",
        "00000000-alien": "class '00000000' is not one of the 55 of the data set",
    }
    assert f"1 files are missing: shapenet_pc/{TEST[0]}.npy" in caplog.text
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", OPTIONS)
    assert (manifest["rows"], manifest["quarantined"], manifest["excluded"]) == (8, 1, 2)
    assert quarantine(tmp_path / "out")[TEST[0]].endswith("file not found")


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        ("train", None, r"train\.txt: the list is missing"),
        ("train", f"{TRAIN[0]}.npy\n\n{TRAIN[0]}.npy\n", r"train\.txt line 3: repeats line 1, 03"),
        ("test", f"{TRAIN[0]}.npy\n", r"a0\.npy: is in .*train\.txt and in .*test\.txt; no sampl"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, split, content, message):
    write_shapenet55(tmp_path, TRAIN, TEST)
    path = tmp_path / "ShapeNet-55" / f"{split}.txt"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        _source(tmp_path).scan()


def test_two_folders_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "shapenet_pc").mkdir(parents=True)
    with pytest.raises(DataError, match="a and b both fit; give one of them"):
        _source(tmp_path).scan()


def test_unreadable_files_are_quarantined_with_their_names(tmp_path):
    write_shapenet55(tmp_path / "in", TRAIN, TEST)
    clouds = tmp_path / "in" / "shapenet_pc"
    np.save(clouds / f"{TRAIN[0]}.npy", np.full((64, 3), np.nan, np.float32))
    np.save(clouds / f"{TRAIN[1]}.npy", np.ones((64, 2), np.float32))
    (clouds / f"{TRAIN[2]}.npy").write_bytes(b"")
    (tmp_path / "in" / "shapenet_img" / f"{TRAIN[3]}.png").write_bytes(b"nonsense")
    options = PrepareOptions(num_points=64, views=1, image_size=16, max_quarantine_fraction=0.5)
    manifest = prepare(_source(tmp_path / "in"), tmp_path / "out", options)
    assert (manifest["rows"], manifest["quarantined"]) == (5, 4)
    reasons = quarantine(tmp_path / "out")
    assert reasons[TRAIN[0]].endswith("a0.npy: 64 of 64 points are not finite (NaN or infinite)")
    assert "expected numbers of shape (points, 3 or more)" in reasons[TRAIN[1]]
    assert reasons[TRAIN[2]].endswith("a2.npy: the file is empty")
    assert "a3.png: the image does not decode" in reasons[TRAIN[3]]
