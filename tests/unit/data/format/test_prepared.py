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


def test_a_set_opens_reads_verifies_and_names_what_is_absent(tiny_set, tmp_path):
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
    with pytest.raises(DataError, match="no split 'val', only train, test"):
        opened.read("val")
    with pytest.raises(DataError, match="no column 'normals'"):
        opened.read("train", ["normals"])


def test_missing_folder_and_missing_manifest(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        PreparedSet.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"_manifest\.json is missing"):
        PreparedSet.open(tmp_path)


def _manifest(content):
    return lambda copy: (copy / "_manifest.json").write_text(content)


def _version_99(copy):
    manifest = json.loads((copy / "_manifest.json").read_text())
    _manifest(json.dumps({**manifest, "schema_version": 99}))(copy)


def _fewer_rows(copy):
    pq.write_table(pq.read_table(_shard(copy))[:3], _shard(copy))


def _truncated(copy):
    path = _shard(copy, "views")
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_version_99, "schema version 99, but this package reads versions 1 and 2"),
        *((_manifest(text), "not a readable manifest") for text in ("", "[]", "{}", "null")),
        (lambda copy: _shard(copy).unlink(), r"part-00001-of-00003\.parquet: the shard is missing"),
        (_fewer_rows, "holds 3 rows, but the manifest has 4"),
        (_truncated, "not a readable Parquet file"),
    ],
)
def test_damaged_sets_are_refused_at_opening(copy, damage, message):
    damage(copy)
    with pytest.raises(DataError, match=message):
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
