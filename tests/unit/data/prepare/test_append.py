"""Shapes that are appended to a finished set, as its next version."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_samples import OPTIONS, SOURCE, as_version_2, cloud, write_clouds

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.runners import run_serial
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.custom import CustomSource
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import ConfigError, DataError

#: A class that the set has not, and a split that it has.
LAMPS = SyntheticSource(train_per_class=3, test_per_class=1, categories=("lamp",))


@pytest.fixture
def root(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of the small set: 10 training and 4 test shapes of two classes."""
    return Path(shutil.copytree(tiny_set, tmp_path / "set"))


@pytest.mark.parametrize("older", [False, True])
def test_new_shapes_follow_and_the_earlier_version_stays(root, older):
    if older:
        as_version_2(root)
    before = PreparedSet.open(root)
    rows = {name: before.read(name, views=True) for name in before.splits}
    manifest = prepare(LAMPS, root, OPTIONS, append=True)
    found = PreparedSet.open(root)
    found.verify()
    assert (found.version, found.classes) == (2, ["chair", "mug", "lamp"])
    assert manifest["class_histogram"] == {"chair": 7, "mug": 7, "lamp": 4}
    for name, count in {"train": 3, "test": 1}.items():
        table = found.read(name, views=True)
        assert table.slice(0, len(rows[name])).equals(rows[name])
        assert table["category"].to_pylist()[len(rows[name]) :] == ["lamp"] * count
        assert table["label"].to_pylist()[len(rows[name]) :] == [2] * count
    ids = [i for name in found.splits for i in found.read(name, [])["sample_id"].to_pylist()]
    assert len(set(ids)) == len(ids) == 18
    assert prepare(LAMPS, root, OPTIONS, append=True) == manifest  # it is there
    earlier = PreparedSet.open(root, version=1)
    earlier.verify()
    assert earlier.manifest_hash == before.manifest_hash
    assert earlier.read("train", views=True).equals(rows["train"])


def test_an_interrupted_append_leaves_the_set_and_goes_on(root):
    before = PreparedSet.open(root).manifest_hash

    def stops(build, tasks):
        yield from run_serial(build, tasks[:1])
        raise KeyboardInterrupt

    one_each = replace(OPTIONS, samples_per_shard=1)
    with pytest.raises(KeyboardInterrupt):
        prepare(LAMPS, root, one_each, run=stops, append=True)
    assert PreparedSet.open(root).manifest_hash == before
    built: list[str] = []

    def counts(build, tasks):
        built.extend(task.name for task in tasks)
        return run_serial(build, tasks)

    prepare(LAMPS, root, one_each, run=counts, append=True)
    assert len(built) == 3
    PreparedSet.open(root).verify()


def test_what_the_set_has_already_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="is in it already, in split 'train'; append only new"):
        prepare(replace(SOURCE, train_per_class=6), root, OPTIONS, append=True)
    write_clouds(tmp_path / "in", [f"a/{i}" for i in range(9)])
    (tmp_path / "in" / "a" / "9.npy").write_bytes(b"damaged")
    options = PrepareOptions(num_points=32, max_quarantine_fraction=0.2)
    source = CustomSource(tmp_path / "in", test_fraction=0)
    write_clouds(tmp_path / "first", ["b/0"])
    prepare(CustomSource(tmp_path / "first", test_fraction=0), tmp_path / "out", options)
    prepare(source, tmp_path / "out", options, append=True)
    np.save(tmp_path / "in" / "a" / "9.npy", cloud(9))  # repaired: the others are not added twice
    with pytest.raises(DataError, match=r"'a/.' is in it already"):
        prepare(source, tmp_path / "out", options, append=True)
    assert PreparedSet.open(tmp_path / "out").splits["train"].rows == 10


def test_other_columns_an_unfinished_set_and_preparing_again_are_refused(root, tmp_path):
    with pytest.raises(ConfigError, match="num_points=64, what would be appended has 32"):
        prepare(LAMPS, root, replace(OPTIONS, num_points=32), append=True)
    with pytest.raises(DataError, match="no such folder"):
        prepare(LAMPS, tmp_path / "none", OPTIONS, append=True)
    prepare(LAMPS, root, OPTIONS, append=True)
    with pytest.raises(DataError, match="shapes were appended to this set, which preparing it"):
        prepare(SOURCE, root, OPTIONS)
    assert PreparedSet.open(root).version == 2
