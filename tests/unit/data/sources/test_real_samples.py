"""Real samples and official lists, where the environment variable RECON_DATA_DIR names them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from published_sets import read_rows

from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.create_source import create_source

SAMPLES = {
    ("modelnet10", "ModelNet10_pcd"): {"train": 2791, "test": 616},
    ("modelnet10", "ModelNet10_off"): {"train": 8, "test": 1},
    ("modelnet40", "ModelNet40_off"): {"train": 3},
    ("modelnet40", "modelnet40_normal_resampled"): {"train": 20, "test": 10},
    ("shapenetpart", "shapenetcore_partanno_segmentation_benchmark_v0_normal"): {
        "train": 5,
        "test": 7,
    },
    ("hdf5", "ycb_scans_hdf5_2048"): {"train": 60, "test": 6},
}
PART_LISTS = "shapenetpart_train_test_split"


@pytest.fixture
def real() -> Path:
    folder = os.environ.get("RECON_DATA_DIR")
    if folder is None or not Path(folder).is_dir():
        pytest.skip("needs real samples: set RECON_DATA_DIR to their folder")
    return Path(folder)


def _counts(listing):
    return dict(Counter(item.split for item in listing.items))


@pytest.mark.parametrize(("name", "folder"), SAMPLES)
def test_real_samples_have_their_counts_and_can_be_read(real, name, folder):
    source = create_source(name, real / folder, {})
    listing = source.scan()
    assert _counts(listing) == SAMPLES[name, folder]
    assert listing.excluded == ()
    for item in listing.items[:20]:
        source.load(item)


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [
        ("modelnet40", "modelnet40_normal_resampled", "test"),
        ("shapenetpart", "shapenetcore_partanno_segmentation_benchmark_v0_normal", "train"),
        ("hdf5", "ycb_scans_hdf5_2048", "test"),
    ],
)
def test_real_clouds_equal_their_files_to_float32(real, tmp_path, name, folder, split):
    source = create_source(name, real / folder, {})
    options = PrepareOptions(num_points=10000 if name == "modelnet40" else None)
    prepare(source, tmp_path, options)
    rows = read_rows(tmp_path, split)
    for item in source.scan().items:
        if item.split == split:
            expected = source.load(item).shape.vertices.astype(np.float32)
            np.testing.assert_array_equal(rows[item.object_id][: len(expected)], expected)


def _official(lists, tmp_path, name):
    """A folder with the official lists and no shapes."""
    if name == "shapenet55":
        shutil.copytree(lists / "ShapeNet-55", tmp_path / "ShapeNet-55")
        (tmp_path / "shapenet_pc").mkdir()
    elif name == "modelnet40":
        shutil.copytree(lists / "modelnet40_normal_resampled", tmp_path, dirs_exist_ok=True)
    else:
        shutil.copytree(lists / PART_LISTS, tmp_path / "train_test_split")
        table = next(lists.parent.glob("shapenetcore*")) / "synsetoffset2category.txt"
        shutil.copy(table, tmp_path)


@pytest.mark.parametrize("name", ["shapenet55", "modelnet40", "shapenetpart"])
def test_official_lists_give_the_published_counts(real, tmp_path, caplog, name):
    _official(real / "official_lists", tmp_path, name)
    listing = create_source(name, tmp_path, {}).scan()
    assert _counts(listing) == dict(CARDS[name].counts)
    assert len(listing.excluded) == (9 if name == "shapenetpart" else 0)  # of val, in train too
    assert all(item.size_bytes == -1 for item in listing.items)
    assert "not the official list" not in caplog.text
    assert "were published" not in caplog.text


def test_names_of_scanobjectnn_are_the_official_ones(real):
    names = (real / "official_lists" / "ScanObjectNN_shape_names.txt").read_text().split()
    assert tuple(names) == CARDS["scanobjectnn_pb_t50_rs"].classes
