"""A stream gives the same batches after every stop, and those of any number of workers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import BatchOptions
from recon_ray.data.loading.shard_reader import ShardReader, SplitFiles
from recon_ray.data.loading.stream_order import Read, StreamLayout
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import DataError
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.streamed import ReadHere, StreamFeed

BATCH, STEPS = 10, 9  # 96 shapes


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory) -> PreparedSet:
    """96 training shapes in 32 shards."""
    root = tmp_path_factory.mktemp("many") / "set"
    source = SyntheticSource(
        train_per_class=32, test_per_class=1, categories=("chair", "lamp", "mug")
    )
    prepare(source, root, PrepareOptions(num_points=8, samples_per_shard=3))
    return PreparedSet.open(root)


class Counted:
    """A source that counts the shards that are opened."""

    def __init__(self, source: ReadHere) -> None:
        self.source, self.shards = source, []

    def __call__(self, reads: Iterable[Read], *, is_first: bool) -> Iterator[pa.Table]:
        def noted() -> Iterator[Read]:
            for read in reads:
                self.shards.append(read.shard)
                yield read

        return self.source(noted(), is_first=is_first)


def feed_of(prepared: PreparedSet, **changes) -> StreamFeed:
    split, options = prepared.splits["train"], BatchOptions()
    source = ReadHere(SplitFiles((split.geometry,)), ShardReader(options.columns))
    given = {
        "source": Counted(source),
        "seed": 1,
        "layout": StreamLayout(4, 16),
        "epochs": 3,
        "sample_ids": lambda n: prepared.read("train")["sample_id"].to_numpy()[3 * n : 3 * n + 3],
        **changes,
    }
    return StreamFeed(np.asarray(split.shard_rows), options, **given)


def samples(feed: StreamFeed, epoch: int, step: int = 0, *, workers: int = 1, size: int = BATCH):
    """Sample ids of the global batches, put together from the workers' shares."""
    plan = BatchPlan(size, workers)
    shares = [list(feed.epoch(epoch, step, plan, rank)) for rank in range(workers)]
    joined = zip(*shares, strict=True)
    return [torch.cat([one["sample_id"] for one in parts]).tolist() for parts in joined]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain(*batches))


def test_every_sample_is_used_once_an_epoch_with_its_own_points(many_shards):
    table = many_shards.read("train")
    points = dict(
        zip(table["sample_id"].to_pylist(), table["points"].combine_chunks(), strict=True)
    )
    feed = feed_of(many_shards)
    seen = []
    for epoch in (0, 1):
        for batch in feed.epoch(epoch, 0, BatchPlan(BATCH, 1), 0):
            for sample, cloud in zip(batch["sample_id"].tolist(), batch["points"], strict=True):
                seen.append((epoch, sample))
                assert cloud.flatten().tolist() == points[sample].as_py()
    assert len(seen) == len(set(seen)) == 2 * STEPS * BATCH


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_stop_and_continue_changes_nothing_on_any_number_of_workers(many_shards, workers):
    whole = [samples(feed_of(many_shards), epoch) for epoch in (0, 1)]
    assert whole[0] != whole[1]
    for step in (0, 1, 5, STEPS):
        again = feed_of(many_shards)
        again.go_on(1, again.layout(1), None)
        assert samples(again, 1, step, workers=workers) == whole[1][step:]


def test_an_epoch_ends_in_the_layout_that_it_was_begun_in(many_shards):
    begun = feed_of(many_shards)
    whole = samples(begun, 0)
    other = feed_of(many_shards, layout=StreamLayout(2, 50))
    other.go_on(0, begun.layout(0), None)
    assert other.layout(0) == begun.layout(0) != other.layout(1)
    assert samples(other, 0, 4) == whole[4:]
    assert sorted(flat(samples(other, 0, 2, size=20))) == sorted(flat(whole[4:8]))


def test_after_half_an_epoch_about_half_of_the_shards_are_opened(many_shards):
    feed = feed_of(many_shards, epochs=1, layout=StreamLayout(1, 1))
    samples(feed, 0, 5)
    assert len(set(feed._source.shards)) <= 0.6 * 32


def test_an_epoch_that_an_older_version_has_begun_uses_the_samples_that_are_left(many_shards):
    ids = many_shards.read("train")["sample_id"].to_numpy()
    used = np.zeros(50, dtype=np.uint8)  # it ends before the last samples
    used[np.random.default_rng(2).choice(ids[ids < 50], 4 * BATCH, replace=False)] = 1

    def feed() -> StreamFeed:
        made = feed_of(many_shards)
        made.go_on(2, None, used)
        return made

    rest = samples(feed(), 2, 4)
    assert len(rest) == STEPS - 4
    assert len(set(flat(rest))) == len(flat(rest))
    assert not used[[sample for sample in flat(rest) if sample < 50]].any()
    again = feed()
    again.go_on(2, feed().layout(2), used)  # of a checkpoint of this version, in the same epoch
    assert samples(again, 2, 7, workers=2) == rest[3:]


def test_the_next_epoch_begins_to_be_read_before_this_one_ends_but_none_after_the_last(many_shards):
    feed = feed_of(many_shards, epochs=2)
    first = feed.epoch(0, 0, BatchPlan(BATCH, 1), 0)
    for _ in range(STEPS - 1):
        next(first)
    _, ahead = feed._ahead
    while ahead._ready.empty():  # its first batch is made although nobody has asked for it
        time.sleep(0.01)
    assert len(list(first)) == 1
    assert samples(feed, 1) == samples(feed_of(many_shards), 1)
    assert feed._ahead is None


def test_a_source_that_ends_early_is_refused(many_shards):
    feed = feed_of(many_shards, source=lambda reads, **_: iter([]))
    with pytest.raises(DataError, match="epoch 1 ended after 0 of 90 rows"):
        samples(feed, 0)
