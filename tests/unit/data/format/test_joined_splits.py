"""Several splits read as one: the same rows in this process and from the object store."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from recon_ray.cluster import datasets
from recon_ray.cluster.datasets import SplitBlocks
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.custom import CustomSource
from recon_ray.errors import DataError

COLUMNS = ["sample_id", "points", "label"]
COUNTS = {"train": 9, "val": 4, "test": 5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """A set of three splits in two classes, in shards of three shapes."""
    folder = tmp_path_factory.mktemp("joined")
    for split, count in COUNTS.items():
        for i in range(count):
            path = folder / "clouds" / split / "ab"[i % 2] / f"{split}{i:02d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.random.default_rng(len(split) + i).normal(size=(40, 3)))
    options = PrepareOptions(num_points=32, views=0, samples_per_shard=3)
    prepare(CustomSource(folder / "clouds"), folder / "set", options)
    return PreparedSet.open(folder / "set")


def ids(table: IndexedTable) -> list[int]:
    return table.sample_id.tolist()


def test_one_split_joined_is_that_split(prepared):
    assert prepared.join(["train"]) is prepared.splits["train"]
    assert prepared.join(["train", "train"]) is prepared.splits["train"]


@pytest.mark.parametrize("names", [("train", "val"), ("test", "train"), ("val", "train", "test")])
def test_a_joined_split_has_the_rows_of_all_in_order_of_sample_id(prepared, names):
    joined = prepared.join(names)
    table = prepared.read(joined, columns=COLUMNS)
    expected = sorted(
        number
        for name in names
        for number in prepared.read(name, columns=["sample_id"])["sample_id"].to_pylist()
    )
    assert joined.name == "+".join(names)
    assert joined.rows == len(table) == sum(COUNTS[name] for name in names)
    assert table["sample_id"].to_pylist() == expected


def test_an_absent_split_is_named(prepared):
    with pytest.raises(DataError, match="has no split 'vali', only"):
        prepared.join(["train", "vali"])


def test_a_head_takes_whole_files_and_goes_on_in_the_next_split(prepared):
    joined = prepared.join(["train", "val"])
    first = joined.members[0]
    assert joined.head(2).rows == 3
    longer = joined.head(first.rows + 1)
    assert [part.name for part in longer.members] == [part.name for part in joined.members]
    assert first.rows < longer.rows <= joined.rows


@pytest.mark.parametrize("rows_a_block", [3, 5, 18])
@pytest.mark.parametrize("names", [("train", "test"), ("train", "val", "test")])
def test_blocks_give_the_rows_of_a_joined_split_and_of_its_parts(prepared, names, rows_a_block):
    joined = prepared.join(names)
    asked: list[Split] = [joined, prepared.splits["test"], prepared.splits["val"]]
    files, rows = datasets._files(asked, "geometry")
    assert len(files) == len({*files}) == sum(len(s.geometry) for s in prepared.splits.values())
    assert rows == [pq.read_metadata(file).num_rows for file in files]
    whole = pq.read_table([str(file) for file in files], columns=COLUMNS)
    blocks = [whole.slice(at, rows_a_block) for at in range(0, len(whole), rows_a_block)]
    for split in asked:
        slices = SplitBlocks(split, [], None)._of_split(blocks, split.rows)
        direct = IndexedTable([prepared.read(split, columns=COLUMNS)])
        assert ids(IndexedTable(slices)) == ids(direct)


def test_blocks_that_lack_rows_of_a_joined_split_are_refused(prepared):
    joined = prepared.join(["train", "test"])
    table = prepared.read("train", columns=COLUMNS)
    with pytest.raises(DataError, match="of 14 rows were read"):
        SplitBlocks(joined, [], None)._of_split([table], joined.rows)
