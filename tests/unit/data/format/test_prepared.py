"""Opening, reading and verifying a prepared set."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.errors import DataError


@pytest.fixture
def copy(tiny_set, tmp_path):
    return shutil.copytree(tiny_set, tmp_path / "copy")


def _shard(root, kind="geometry"):
    return sorted((root / kind / "train").glob("*.parquet"))[1]


def test_a_set_opens_reads_and_verifies(tiny_set):
    opened = PreparedSet.open(tiny_set)
    opened.verify()
    assert (opened.num_points, opened.classes, opened.has_views) == (64, ["chair", "mug"], True)
    train = opened.splits["train"]
    assert (train.rows, train.shard_rows, len(train.views)) == (10, [4, 4, 2], 3)
    table = opened.read("train", ["points", "caption"], views=True)
    assert table.schema.names == ["sample_id", "points", "caption", "views"]
    assert points_to_numpy(table["points"]).shape == (10, 64, 3)
    first = table["views"].to_pylist()[0]
    assert len(first) == 2
    assert np.asarray(Image.open(io.BytesIO(first[0]))).shape == (32, 32, 3)


def test_missing_folder_and_missing_manifest(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        PreparedSet.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"_manifest\.json is missing"):
        PreparedSet.open(tmp_path)


def test_other_schema_version_is_refused(copy):
    path = copy / "_manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(
        DataError, match="schema version 99, but this package reads versions 1 and 2"
    ):
        PreparedSet.open(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_unreadable_manifest_is_refused(copy, content):
    (copy / "_manifest.json").write_text(content)
    with pytest.raises(DataError, match="not a readable manifest"):
        PreparedSet.open(copy)


def test_missing_shard_is_named(copy):
    _shard(copy).unlink()
    with pytest.raises(DataError, match=r"part-00001-of-00003\.parquet: the shard is missing"):
        PreparedSet.open(copy)


def test_another_row_count_is_found_at_opening(copy):
    path = _shard(copy)
    pq.write_table(pq.read_table(path)[:3], path)
    with pytest.raises(DataError, match="holds 3 rows, but the manifest has 4"):
        PreparedSet.open(copy)


def test_truncated_shard_is_found_at_opening(copy):
    path = _shard(copy, "views")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        PreparedSet.open(copy)


@pytest.mark.parametrize("kind", ["geometry", "views"])
def test_a_changed_byte_is_found_by_verify(copy, kind):
    path = _shard(copy, kind)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{kind}/train/part-00001.*damaged or was changed"):
        PreparedSet.open(copy).verify()


def test_views_of_another_shard_are_refused(copy):
    shards = sorted((copy / "views" / "train").glob("*.parquet"))
    shutil.copy(shards[0], shards[1])
    with pytest.raises(DataError, match="its sample ids are not those of"):
        PreparedSet.open(copy).read("train", views=True)


def test_absent_split_column_and_views_are_named(tiny_set, tmp_path):
    opened = PreparedSet.open(tiny_set)
    with pytest.raises(DataError, match="no split 'val', only train, test"):
        opened.read("val")
    with pytest.raises(DataError, match="no column 'normals'"):
        opened.read("train", ["normals"])
