"""Files of shards as columns: each is what a list of them would hold, in a few dozen bytes."""

from __future__ import annotations

import hashlib
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.shards import ShardFile, ShardFiles, joined_files, shards_of_json
from recon_ray.errors import DataError
from recon_ray.storage import Place

SLICES = (
    slice(None), slice(2), slice(2, 5), slice(-3, None), slice(5, 2), slice(99), slice(99, None),
    slice(None, None, 2), slice(None, None, -1), slice(-2, 1, -3),
)  # fmt: skip


def sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def shard_table(split: str, count: int) -> pa.Table:
    names = [f"part-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    return pa.table(
        {
            "split": [split] * count,
            "name": names,
            "rows": range(count),
            "geometry_bytes": range(100, 100 + count),
            "geometry_sha256": pa.array([bytes.fromhex(sha256(n)) for n in names], pa.binary(32)),
        }
    )


def files_of(folder: str, count: int) -> tuple[ShardFiles, list[ShardFile]]:
    """Files as columns, and the same as a list."""
    table = shard_table("train", count)
    files = ShardFiles.of(Place(folder), table, "geometry")
    names = table["name"].to_pylist()
    return files, [
        ShardFile(str(Place(folder) / name), 100 + i, sha256(name)) for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("folder", ["/set/geometry/train", "s3://b/set?region=x"])
def test_files_are_those_of_a_list(folder):
    files, expected = files_of(folder, 7)
    assert len(files) == 7
    assert list(files) == expected
    assert [files[i] for i in range(-7, 7)] == expected * 2
    assert files.total_bytes == sum(file.size for file in expected)
    for index in (7, -8):
        with pytest.raises(IndexError):
            files[index]
    for chosen in SLICES:
        assert list(files[chosen]) == expected[chosen], chosen
        assert len(files[chosen]) == len(expected[chosen])
        assert files[chosen].total_bytes == sum(file.size for file in expected[chosen])
        assert list(files[1:6][chosen]) == expected[1:6][chosen], chosen


def test_files_of_a_store_keep_how_it_is_reached():
    files, _ = files_of("s3://bucket/set?region=x", 1)
    assert str(files[0]) == "s3://bucket/set/part-00000-of-00001.parquet?region=x"


def test_a_file_that_is_compared_is_so_wherever_it_comes_from():
    files = joined_files([files_of("/set", 3)[0]], check=True)
    others = [
        files[0],
        *files,
        *files[1:],
        *files[::2],
        *joined_files([files, files_of("/b", 2)[0]]),
    ]
    assert all(file.check for file in others)
    assert not any(file.check for file in files_of("/set", 3)[0])


def test_joined_files_follow_each_other():
    first, in_first = files_of("/a", 3)
    second, in_second = files_of("/b", 2)
    joined = joined_files([first[:2], (), second, first[2:]])
    expected = [*in_first[:2], *in_second, *in_first[2:]]
    assert list(joined) == expected
    assert [joined[i] for i in range(len(joined))] == expected
    assert list(joined[1:4]) == expected[1:4]
    assert list(joined_files([first, joined])) == in_first + expected
    assert joined_files([(), ()]) == ()


def test_a_file_takes_a_few_dozen_bytes():
    files, _ = files_of("/a/rather/long/folder/of/a/prepared/set/geometry/train", 20_000)
    content = pickle.dumps(files)
    assert len(content) < 100 * len(files)
    assert pickle.loads(content)[19_999] == files[19_999]
    assert len(pickle.dumps(joined_files([files, files]))) < 2.2 * len(content)


# --- Manifests that list their shards -------------------------------------------------------------
def json_shard(split: str, name: str, rows: int, **changed: object) -> dict[str, object]:
    file = {"file": f"geometry/{split}/{name}", "bytes": 5, "sha256": sha256(name)}
    return {
        "rows": rows, "min_sample_id": 3 if rows else None, "max_sample_id": 9 if rows else None,
        "geometry": file, "views": None, **changed,
    }  # fmt: skip


def test_a_list_of_shards_becomes_their_table():
    features = {"file": "features/test/b", "bytes": 6, "sha256": sha256("x")}
    splits = {
        "train": {"shards": []},
        "test": {"shards": [json_shard("test", "b", 2, features=features)]},
        "val": {
            "shards": [json_shard("val", "c", 0, features={**features, "file": "features/val/c"})]
        },
    }
    (test, val) = shards_of_json(splits).to_pylist()
    assert test == {
        "split": "test", "name": "b", "rows": 2, "min_sample_id": 3, "max_sample_id": 9,
        "geometry_bytes": 5, "geometry_sha256": bytes.fromhex(sha256("b")),
        "features_bytes": 6, "features_sha256": bytes.fromhex(sha256("x")),
    }  # fmt: skip
    assert (val["split"], val["rows"], val["min_sample_id"]) == ("val", 0, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rows": "many"}, "many"),
        ({"geometry": {"file": "geometry/train/a", "bytes": 5}}, "'sha256'"),
        ({"geometry": {"file": "geometry/train/a", "bytes": 5, "sha256": "zz"}}, "hexadecimal"),
        ({"geometry": {"file": "geometry/train/a", "bytes": 5, "sha256": "00"}}, "32"),
        (
            {"geometry": {"file": "../train/a", "bytes": 5, "sha256": sha256("a")}},
            "../train/a is not geometry/train/a",
        ),
    ],
)
def test_a_damaged_entry_is_an_unreadable_manifest(tiny_set, tmp_path, change, reason):
    manifest = json.loads((tiny_set / "_manifest.json").read_text())
    shard = {**json_shard("train", "a", 10), **change}
    splits = {"train": {"rows": 10, "planned": 10, "first_sample_id": 0, "shards": [shard]}}
    old = {**manifest, "schema_version": 2, "splits": splits}
    del old["shards"]
    (tmp_path / "_manifest.json").write_text(json.dumps(old))
    with pytest.raises(DataError, match=rf"_manifest\.json: is not a readable .*{reason}"):
        PreparedSet.open(tmp_path)


@pytest.mark.parametrize("name", ["../../elsewhere/a.parquet", ".a.parquet"])
def test_a_table_that_names_files_elsewhere_is_refused(tiny_set, tmp_path, name):
    table = pq.read_table(tiny_set / "_shards-1.parquet")
    place = table.column_names.index("name")
    table = table.set_column(place, table.field(place), [[name, *table["name"].to_pylist()[1:]]])
    pq.write_table(table, tmp_path / "_shards-1.parquet")
    manifest = json.loads((tiny_set / "_manifest.json").read_text())
    content = (tmp_path / "_shards-1.parquet").read_bytes()
    entry = {"file": "_shards-1.parquet", "bytes": len(content)}
    manifest["shards"] = [{**entry, "sha256": hashlib.sha256(content).hexdigest()}]
    (tmp_path / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the name of a shard is not that of a file"):
        PreparedSet.open(tmp_path)
