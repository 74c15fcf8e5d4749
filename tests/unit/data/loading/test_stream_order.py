"""The order of a stream: a function of set, seed and epoch, whatever shares it out."""

from __future__ import annotations

import pickle
from itertools import chain

import numpy as np
import pytest

from recon_ray.data.loading.stream_order import StreamLayout, StreamOrder, StreamShare

RANDOM = np.random.default_rng(0)
#: Sets of all kinds: shards of other sizes, empty ones, one shard only.
SETS = [
    RANDOM.integers(0, 40, shards) + (n == 0) * 50 for n, shards in enumerate([1, 1, 2, 17, 60])
]


def batches(
    order: StreamOrder, size: int, *, workers: int = 1, position: int = 0, epoch: int = 1
) -> list[list[int]]:
    """The rows of every global batch that is left, put together from the workers' shares."""
    first = np.concatenate([[0], np.cumsum(order.shard_rows)])
    steps = (order.rows - position) // size
    found: list[list[int]] = [[] for _ in range(steps)]
    for rank in range(workers):
        part = slice(rank * size // workers, (rank + 1) * size // workers)
        share = StreamShare(order, epoch, position, size, steps, part)
        read = [first[one.shard] + np.asarray(one.rows) for one in share.reads()]
        rows = np.concatenate([np.empty(0, int), *read])
        assert len(rows) == share.rows  # nothing is read that is not used
        for batch, numbers in zip(found, share.batches(), strict=True):
            assert len(numbers) == part.stop - part.start
            batch += rows[numbers].tolist()
    return found


def cases() -> list[tuple[StreamOrder, int, int]]:
    """Orders, batch sizes and numbers of workers, drawn at random."""
    found = []
    for number in range(40):
        rows = SETS[number % len(SETS)]
        size = int(RANDOM.integers(1, max(2, min(50, rows.sum()))))
        layout = StreamLayout(int(RANDOM.choice([1, 2, 8, 16])), int(RANDOM.integers(1, 200)))
        found.append((StreamOrder(rows, 3, layout), size, int(RANDOM.integers(1, size + 1))))
    return found


@pytest.mark.parametrize(("order", "size", "workers"), cases())
def test_any_number_of_workers_and_any_stop_give_the_same_batches_of_distinct_rows(
    order, size, workers
):
    whole = batches(order, size)
    used = np.concatenate([np.empty(0, int), *whole])
    assert len(np.unique(used)) == len(used) == order.rows // size * size
    assert batches(order, size, workers=workers) == whole
    stop = int(RANDOM.integers(0, len(whole) + 1))
    assert batches(order, size, workers=workers, position=stop * size) == whole[stop:]


def test_another_batch_size_goes_on_in_the_same_sequence():
    order = StreamOrder(SETS[-1], 5, StreamLayout(4, 64))
    small = batches(order, 12)
    large = batches(order, 36, position=24, workers=5)
    for number, batch in enumerate(large):
        assert sorted(batch) == sorted(chain(*small[2 + 3 * number : 5 + 3 * number]))


def test_epochs_and_seeds_differ_and_so_do_the_rows_that_fill_no_batch():
    def of(seed: int, epoch: int) -> list[list[int]]:
        return batches(StreamOrder(SETS[-1], seed, StreamLayout(2, 100)), 50, epoch=epoch)

    assert of(0, 0) == of(0, 0)
    assert of(0, 0) != of(0, 1) != of(1, 1)
    every = set(range(int(SETS[-1].sum())))
    used = [set(chain(*of(0, epoch))) for epoch in range(8)]
    assert used[0] != used[1]
    assert set.union(*used) == every


def test_a_batch_is_mixed_from_the_whole_set():
    shards = np.full(64, 32)
    order = StreamOrder(shards, 0, StreamLayout.of(shards, row_bytes=10, group_rows=512))
    for batch in batches(order, 64):
        assert len({row // 32 for row in batch}) >= 8


@pytest.mark.parametrize(
    ("shards", "rows", "row_bytes", "lanes"),
    [(1, 10, 10, 1), (15, 10, 10, 1), (16, 10, 10, 2), (79, 256, 98_304, 8), (10**6, 512, 1, 64),
     (10**6, 512, 98_304, 32), (10**6, 10**6, 98_304, 1)],
)  # fmt: skip
def test_larger_sets_have_more_lanes_as_far_as_their_shards_fit_memory(
    shards, rows, row_bytes, lanes
):
    layout = StreamLayout.of(np.full(shards, rows), row_bytes=row_bytes, group_rows=7)
    assert layout == (lanes, 7)


def test_half_an_epoch_needs_half_of_the_shards():
    shards = np.full(500, 8)
    order = StreamOrder(shards, 0, StreamLayout(4, 64))
    share = StreamShare(order, 0, 2000, 100, 20, slice(0, 100))
    assert len({read.shard for read in share.reads()}) <= 0.52 * 500


def test_a_worker_of_many_reads_its_part_of_a_large_set_only_and_finds_it_at_once():
    """A quarter of a million shards, 512 workers: no pass over all of them but by numpy."""
    shards = np.full(250_000, 512)
    order = StreamOrder(shards, 0, StreamLayout.of(shards, row_bytes=98_304, group_rows=2048))
    size = 131_072
    share = StreamShare(order, 2, 0, size, order.rows // size, slice(256, 512))
    reads = list(share.reads())
    assert sum(len(read.rows) for read in reads) == share.rows == 256 * (order.rows // size)
    assert len(reads) < 2 * 250_000 / 512 * 2
    assert len(pickle.dumps(reads[:5])) < 10_000
