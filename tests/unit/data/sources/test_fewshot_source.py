"""The published few-shot pickles, and episodes drawn by seed."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from published_sets import points, read_rows, write_episode

from recon_ray.data.fewshot.draw import draw_episodes
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.create_source import create_source
from recon_ray.errors import DataError

OPTIONS = PrepareOptions(num_points=64, samples_per_shard=4, normals=True)
CLOUDS = [points(i, columns=6) for i in range(8)]


def _source(root):
    return create_source("fewshot", root, {})


@pytest.fixture
def root(tmp_path):
    """Two episodes that share the clouds 1 and 6."""
    root = tmp_path / "in"
    first = {
        "train": [(CLOUDS[0], 0, 7), (CLOUDS[1], 1, 3)],
        "test": [(CLOUDS[6], 1, 3), (CLOUDS[5], 0, 7)],
    }
    second = {
        "train": [(CLOUDS[1], 0, np.int64(3)), (CLOUDS[2], np.array([1]), 0)],
        "test": [(CLOUDS[6], 0, 3), (CLOUDS[4], 1, 0)],
    }
    write_episode(root, 2, 1, 10, second)
    write_episode(root, 2, 1, 9, first)
    return root


def test_clouds_become_rows_once_and_episodes_name_them(root, tmp_path):
    manifest = prepare(_source(root), tmp_path / "out", OPTIONS)
    assert {n: s["rows"] for n, s in manifest["splits"].items()} == {"train": 3, "test": 3}
    rows = {}
    for split in ("train", "test"):
        rows |= read_rows(tmp_path / "out", split, ("points", "normals", "label"))
    episodes = pq.read_table(tmp_path / "out" / "episodes.parquet").to_pylist()
    assert [e["fold"] for e in episodes] == [9] * 4 + [10] * 4
    expected = [0, 1, 6, 5, 1, 2, 6, 4]
    for episode, cloud in zip(episodes, expected, strict=True):
        xyz, normals, _ = rows[episode["object_id"]]
        np.testing.assert_array_equal(np.hstack([xyz, normals]), CLOUDS[cloud])
    assert [e["label"] for e in episodes] == [0, 1, 1, 0, 0, 1, 0, 1]
    assert [rows[e["object_id"]][2] for e in episodes] == [7, 3, 3, 7, 3, 0, 3, 0]
    assert [e["split"] for e in episodes] == (["train"] * 2 + ["test"] * 2) * 2
    assert {(e["way"], e["shot"]) for e in episodes} == {(2, 1)}


def test_rows_keep_the_order_of_the_pickles_and_changes_are_another_plan(root, tmp_path):
    prepare(_source(root), tmp_path / "out", OPTIONS)
    clouds = list(read_rows(tmp_path / "out", "train").values())
    np.testing.assert_array_equal(clouds, [CLOUDS[i][:, :3] for i in (0, 1, 2)])
    path = root / "2way_1shot" / "9.pkl"
    content = pickle.loads(path.read_bytes())
    content["test"].reverse()  # the same clouds, and a file of the same size
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="holds another prepared set"):
        prepare(_source(root), tmp_path / "out", OPTIONS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(CLOUDS[0], 2, 7)], r"9\.pkl: its train sample 0 has label 2, not one of 0 to 1"),
        ([(CLOUDS[0], 0, 40)], r"9\.pkl: its train sample 0 is of the unknown class 40"),
        ([(CLOUDS[0], 0)], r"9\.pkl: is not an episode"),
        ([(CLOUDS[0], 0, 7), (CLOUDS[0], 1, 8)], "is chair, but the same cloud in .* is car"),
        ([(CLOUDS[0], 0, complex(1))], r"9\.pkl: asks for builtins\.complex"),
    ],
)
def test_wrong_episodes_are_refused(tmp_path, rows, message):
    write_episode(tmp_path, 2, 1, 9, {"train": rows, "test": []})
    with pytest.raises(DataError, match=message):
        _source(tmp_path).scan()


# --- Episodes drawn from ModelNet40 --------------------------------------------------------------
def _shapes(split, classes=12, each=25):
    ids = [f"{split}{c}_{i}" for c in range(classes) for i in range(each)]
    return ids, [c for c in range(classes) for _ in range(each)]


def _draw(seed=0, **more):
    return draw_episodes(*_shapes("train"), *_shapes("test"), seed=seed, **more)


def test_drawn_episodes_have_the_published_sizes():
    table = _draw().to_pylist()
    counts = Counter((r["way"], r["shot"], r["fold"], r["split"], r["label"]) for r in table)
    assert len({key[:3] for key in counts}) == 2 * 2 * 10
    for (way, shot, _, split, label), count in counts.items():
        assert count == (shot if split == "train" else 20)
        assert 0 <= label < way
    assert len(counts) == sum(way * 2 for way in (5, 10)) * 2 * 10


def test_labels_of_an_episode_are_its_classes_and_no_shape_comes_twice():
    for fold in range(3):
        rows = [r for r in _draw(folds=3).to_pylist() if (r["way"], r["shot"]) == (5, 10)]
        rows = [r for r in rows if r["fold"] == fold]
        names = {(r["label"], r["object_id"].split("_")[0].lstrip("traines")) for r in rows}
        assert len(names) == 5  # one class for a label, in training and in test alike
        assert len({r["object_id"] for r in rows}) == len(rows) == 5 * (10 + 20)
        assert all(r["object_id"].startswith(r["split"]) for r in rows)
        assert [r["label"] for r in rows] != sorted(r["label"] for r in rows)  # mixed


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    train, test = _shapes("train"), _shapes("test")
    backwards = [list(reversed(values)) for values in (*train, *test)]
    assert draw_episodes(*backwards, seed=0).equals(_draw())
    assert not _draw(seed=1).equals(_draw())
    folds = [r for r in _draw(folds=2).to_pylist() if r["way"] == 5]
    assert folds == [r for r in _draw().to_pylist() if r["way"] == 5 and r["fold"] < 2]


def test_too_few_shapes_or_classes_are_refused():
    train = _shapes("train")
    with pytest.raises(DataError, match="class 0 has 19 test shapes, but episodes take 20 of each"):
        draw_episodes(*train, *_shapes("test", each=19), seed=0)
    with pytest.raises(DataError, match="class 11 has 0 test shapes"):
        draw_episodes(*train, *_shapes("test", classes=11), seed=0)
    message = "of 13 classes need as many; there are training shapes of 12"
    with pytest.raises(DataError, match=message):
        draw_episodes(*train, *_shapes("test"), ways=(13,), seed=0)
