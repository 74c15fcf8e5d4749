"""Opening, reading and verifying a prepared set."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_samples import as_version_2
from PIL import Image

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.errors import DataError

SHARDS = "_shards-1.parquet"


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
    assert (train.rows, train.shard_rows.tolist(), len(train.views)) == (10, [4, 4, 2], 3)
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
        (_version_99, "schema version 99, but this package reads versions 1, 2 and 3"),
        *((_manifest(text), "not a readable manifest") for text in ("", "[]", "{}", "null")),
        (lambda copy: (copy / SHARDS).unlink(), rf"{SHARDS}: .*missing"),
        (lambda copy: os.truncate(copy / SHARDS, 900), f"{SHARDS}: is damaged or was changed"),
    ],
)
def test_damaged_manifests_are_refused_at_opening(copy, damage, message):
    damage(copy)
    with pytest.raises(DataError, match=message):
        PreparedSet.open(copy)


@pytest.mark.parametrize(
    ("damage", "file", "at_reading", "at_verifying"),
    [
        (
            lambda copy: _shard(copy).unlink(),
            "geometry",
            "the shard is missing",
            "the shard is missing",
        ),
        (_fewer_rows, "geometry", "holds 3 rows, but the manifest has 4", "damaged or was changed"),
        (_truncated, "views", "cannot be read as Parquet", "damaged or was changed"),
    ],
)
def test_damaged_shards_are_found_when_they_are_read_or_verified(
    copy, damage, file, at_reading, at_verifying
):
    damage(copy)
    opened = PreparedSet.open(copy)  # which does not look at the shards
    shard = rf"{file}/train/part-00001-of-00003\.parquet"
    with pytest.raises(DataError, match=f"{shard}: {at_reading}"):
        opened.read("train", views=True)
    with pytest.raises(DataError, match=f"{shard}: .*{at_verifying}"):
        opened.verify()
    with pytest.raises(DataError, match=f"{shard}: .*{at_verifying}"):
        opened.verify_hashes()
    assert len(opened.read("test", views=True)) == 4


def test_a_set_of_version_2_is_the_same_set(tiny_set, copy):
    as_version_2(copy)
    old, new = PreparedSet.open(copy), PreparedSet.open(tiny_set)
    assert not (copy / SHARDS).exists()
    assert (old.manifest["schema_version"], new.manifest["schema_version"]) == (2, 3)
    for name, split in new.splits.items():
        assert old.read(name, views=True).equals(new.read(name, views=True))
        for kind in ("geometry", "views", "features"):
            found = [replace(f, uri=f.below(old.path)) for f in getattr(old.splits[name], kind)]
            assert found == [replace(f, uri=f.below(new.path)) for f in getattr(split, kind)]
    old.verify()
    old.verify_hashes()


def test_rows_that_an_old_manifest_counts_otherwise_are_found(copy):
    manifest = as_version_2(copy)
    train = manifest["splits"]["train"]
    train["shards"][1]["rows"] = 3
    _manifest(json.dumps(manifest))(copy)
    with pytest.raises(DataError, match="split train has 10 rows, its shards 9; prepare it again"):
        PreparedSet.open(copy)
    train["rows"] = 9
    _manifest(json.dumps(manifest))(copy)
    with pytest.raises(DataError, match=r"train/part-00001.*holds 4 rows instead of 3; prepare it"):
        PreparedSet.open(copy).verify()


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
