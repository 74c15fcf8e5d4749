"""Building a prepared set: determinism, statistics, quarantine, refusals."""

from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from data_samples import OPTIONS, SOURCE, cloud, read_manifest, write_clouds

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.runners import run_processes
from recon_ray.data.prepare.shard_plan import PrepareOptions, make_plan
from recon_ray.data.sources.custom import CustomSource
from recon_ray.errors import ConfigError, DataError
from recon_ray.storage import Place

CLOUDS = PrepareOptions(num_points=32, samples_per_shard=4)


def test_neither_processes_nor_the_order_of_the_shards_matter(tiny_set, tmp_path):
    manifest = prepare(SOURCE, tmp_path / "again", OPTIONS, run=run_processes(2))
    assert manifest == read_manifest(tiny_set)
    files = [file for file in Place.of(tiny_set).files() if file.endswith(".parquet")]
    assert len(files) == 2 * (3 + 1) + 1  # points and views of every shard, and their table
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tiny_set / file).read_bytes()

    def backwards(build, tasks):
        return [build(task) for task in reversed(tasks)]

    assert prepare(SOURCE, tmp_path / "back", OPTIONS, run=backwards) == manifest


def test_another_seed_gives_other_points_and_another_order(tiny_set, tmp_path):
    prepare(SOURCE, tmp_path, replace(OPTIONS, seed=1))
    ours, other = PreparedSet.open(tiny_set).read("train"), PreparedSet.open(tmp_path).read("train")
    assert ours["object_id"].to_pylist() != other["object_id"].to_pylist()
    assert not np.array_equal(points_to_numpy(ours["points"]), points_to_numpy(other["points"]))


def test_ids_order_and_statistics_of_a_set(tiny_set):
    opened = PreparedSet.open(tiny_set)
    assert list(opened.splits) == ["train", "test"]
    ids = [i for s in opened.splits for i in opened.read(s)["sample_id"].to_pylist()]
    assert ids == list(range(14))
    assert opened.splits["test"].first_sample_id == opened.splits["train"].planned == 10
    labels = opened.read("train")["label"].to_pylist()
    assert labels not in (sorted(labels), sorted(labels, reverse=True))
    points = np.concatenate([points_to_numpy(opened.read(s)["points"]) for s in opened.splits])
    statistics = opened.manifest["coordinates"]
    expected = [points.min(), points.max(), points.mean(), points.std()]
    # The reference sums in float32.
    np.testing.assert_allclose(list(statistics.values()), expected, rtol=1e-5, atol=1e-6)
    assert opened.manifest["class_histogram"] == {"chair": 7, "mug": 7}
    assert opened.manifest["quarantined"] == 0


def test_up_axis_is_turned_to_y(tmp_path):
    write_clouds(tmp_path / "in", ["a", "b"], 32)
    prepare(
        CustomSource(tmp_path / "in", test_fraction=0), tmp_path / "z", replace(CLOUDS, up_axis="z")
    )
    table = PreparedSet.open(tmp_path / "z").read("train")
    row = table["object_id"].to_pylist().index("a")
    x, y, z = cloud(0, 32).T
    turned = points_to_numpy(table["points"])[row]
    np.testing.assert_array_equal(turned, np.stack([x, z, -y], axis=1))


def test_float16_is_scaled_to_its_range_and_says_so(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "big.npy", cloud(0) * 1e6)
    options = replace(CLOUDS, points_dtype="float16")
    manifest = prepare(CustomSource(tmp_path / "in"), tmp_path / "out", options)
    points = points_to_numpy(PreparedSet.open(tmp_path / "out").read("train")["points"])
    assert points.dtype == np.float16
    assert np.linalg.norm(points.astype(np.float32), axis=-1).max() == pytest.approx(1, abs=1e-3)
    assert manifest["normalization"] == "unit_sphere"


def test_normals_and_colors_are_kept_when_asked_for(tmp_path):
    options = replace(OPTIONS, normals=True, colors=True, views=0)
    prepare(SOURCE, tmp_path, options)
    opened = PreparedSet.open(tmp_path)
    opened.verify()
    table = opened.read("train", ["normals", "colors"])
    lengths = np.linalg.norm(points_to_numpy(table["normals"]), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)  # float32 rounding
    assert points_to_numpy(table["colors"]).dtype == np.uint8


def test_limit_is_shared_by_the_splits_in_proportion(tmp_path):
    manifest = prepare(SOURCE, tmp_path, replace(OPTIONS, limit=7, views=0))
    assert {name: s["rows"] for name, s in manifest["splits"].items()} == {"train": 5, "test": 2}
    assert manifest["classes"] == ["chair", "mug"]


@pytest.mark.parametrize("samples_per_shard", [4, 1])  # 1: the shard of the bad one has no rows
def test_unreadable_samples_are_left_out_with_reasons(tmp_path, samples_per_shard):
    write_clouds(tmp_path / "in", [f"a/{i}" for i in range(9)])
    (tmp_path / "in" / "a" / "empty.npy").touch()
    options = replace(CLOUDS, samples_per_shard=samples_per_shard)
    source = CustomSource(tmp_path / "in", test_fraction=0)
    manifest = prepare(source, tmp_path / "out", options)
    assert (manifest["rows"], manifest["quarantined"]) == (9, 1)
    (line,) = (tmp_path / "out" / "_quarantine.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["object_id"] == "a/empty"
    assert "a/empty.npy: the file is empty" in entry["reason"]
    opened = PreparedSet.open(tmp_path / "out")
    opened.verify()
    assert opened.splits["train"].planned == 10
    ids = opened.read("train")["sample_id"].to_pylist()
    assert len(ids) == 9
    assert entry["sample_id"] not in ids


@dataclass(frozen=True)
class Odd(CustomSource):
    """Gives one of its samples in a way that no reader foresaw."""

    how: str = ""

    def load(self, item):
        if item.object_id != "a/3":
            return super().load(item)
        if self.how == "raises":
            raise ZeroDivisionError("from a library\nand more")
        return replace(super().load(item), caption="half of a pair: \ud83d")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises", r"a/3.npy: cannot be loaded (ZeroDivisionError: from a library)"),
        ("caption", r"a/3.npy: its caption 'half of a pair: \ud83d' is not text"),
    ],
)
def test_whatever_one_sample_raises_leaves_it_alone_out(tmp_path, how, reason):
    write_clouds(tmp_path / "in", [f"a/{i}" for i in range(9)])
    manifest = prepare(Odd(tmp_path / "in", test_fraction=0, how=how), tmp_path / "out", CLOUDS)
    assert (manifest["rows"], manifest["quarantined"]) == (8, 1)
    entry = json.loads((tmp_path / "out" / "_quarantine.jsonl").read_text())
    assert entry["reason"].startswith(reason)
    PreparedSet.open(tmp_path / "out").verify()


def test_errors_of_our_own_end_the_job(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr("recon_ray.data.prepare.build_shard.sample_points", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        prepare(SOURCE, tmp_path, OPTIONS)


def test_too_many_unreadable_samples_end_the_job_without_a_set(tmp_path):
    write_clouds(tmp_path / "in", [f"a/{i}" for i in range(4)])
    for i in range(4):
        (tmp_path / "in" / "a" / f"bad{i}.npy").touch()
    source = CustomSource(tmp_path / "in", test_fraction=0)
    with pytest.raises(DataError, match=r"of 8 samples are unreadable, .*_quarantine\.jsonl"):
        prepare(source, tmp_path / "out", CLOUDS)
    assert (tmp_path / "out" / "_quarantine.jsonl").read_text()
    with pytest.raises(DataError, match="not a complete prepared set"):
        PreparedSet.open(tmp_path / "out")
    # Tolerating more continues the same plan.
    manifest = prepare(source, tmp_path / "out", replace(CLOUDS, max_quarantine_fraction=0.5))
    assert (manifest["rows"], manifest["quarantined"]) == (4, 4)


def test_a_tolerance_of_zero_is_strict(tmp_path):
    write_clouds(tmp_path / "in", [f"a/{i}" for i in range(9)])
    (tmp_path / "in" / "a" / "bad.npy").touch()
    with pytest.raises(DataError, match="1 of 10 samples"):
        prepare(
            CustomSource(tmp_path / "in"),
            tmp_path / "out",
            replace(CLOUDS, max_quarantine_fraction=0),
        )


def test_too_few_points_name_the_option(tmp_path):
    write_clouds(tmp_path / "in", ["a/0"], 31)
    message = r"a/0\.npy: holds 31 points, fewer than prepare\.num_points = 32"
    with pytest.raises(DataError, match=message):
        prepare(CustomSource(tmp_path / "in"), tmp_path / "out", CLOUDS)


def test_another_plan_in_the_output_is_refused_by_name(tiny_set):
    message = r"prepare\.num_points: 64 \(found\) / 128 \(asked\)"
    with pytest.raises(DataError, match=message):
        prepare(SOURCE, tiny_set, replace(OPTIONS, num_points=128))
    PreparedSet.open(tiny_set).verify()


def test_an_output_where_nothing_was_finished_is_taken_over(tmp_path):
    def nothing(build, tasks):
        raise DataError("stopped")

    with pytest.raises(DataError, match="stopped"):
        prepare(SOURCE, tmp_path, OPTIONS, run=nothing)
    stray = tmp_path / "geometry" / "train" / "part-00000-of-00099.parquet"
    stray.parent.mkdir(parents=True)
    stray.touch()
    prepare(SOURCE, tmp_path, replace(OPTIONS, views=0))
    assert not stray.exists()


def test_a_full_disk_is_one_sentence_and_leaves_no_rubbish(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = r"plan\.json: cannot be written \(No space left on device\)"
    with pytest.raises(DataError, match=message):
        prepare(SOURCE, tmp_path, OPTIONS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_keeps_what_was_finished(tmp_path, monkeypatch):
    written = []
    real = os.fsync

    def filling(descriptor):
        written.append(descriptor)
        if len(written) == 6:  # plan, then three files a shard: in the second shard
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(DataError, match="No space left on device"):
        prepare(SOURCE, tmp_path, OPTIONS)
    assert not list(tmp_path.rglob(".tmp-*"))
    assert len(list((tmp_path / "_records").rglob("*.json"))) == 1
    monkeypatch.undo()
    prepare(SOURCE, tmp_path, OPTIONS)
    PreparedSet.open(tmp_path).verify()


def test_tasks_can_be_sent_to_other_processes():
    plan = make_plan(SOURCE, "/nowhere", OPTIONS)
    assert list(pickle.loads(pickle.dumps(plan.tasks))) == list(plan.tasks)


def test_the_plan_changes_with_the_files(tmp_path):
    write_clouds(tmp_path, ["a/0", "a/1"])
    before = make_plan(CustomSource(tmp_path), "out", CLOUDS).hash
    assert make_plan(CustomSource(tmp_path), "elsewhere", CLOUDS).hash == before
    write_clouds(tmp_path, ["a/1"], 81)
    assert make_plan(CustomSource(tmp_path), "out", CLOUDS).hash != before


WRONG = {"num_points": 1, "up_axis": "w", "image_format": "gif", "limit": 0}


@pytest.mark.parametrize(("name", "value"), [*WRONG.items(), ("max_quarantine_fraction", 2.0)])
def test_wrong_options_name_themselves(name, value):
    with pytest.raises(ConfigError, match=f"prepare.{name}"):
        PrepareOptions(**{name: value})
