"""Batches from rows that arrive as they are needed, in an order that belongs to (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from recon_ray.data.loading.batches import Batch, BatchOptions, RowWindow, make_batch
from recon_ray.data.loading.prefetch import Prefetch, prefetch
from recon_ray.data.loading.shard_reader import ShardReader, SplitFiles
from recon_ray.data.loading.stream_order import Read, StreamLayout, StreamOrder, StreamShare
from recon_ray.errors import DataError
from recon_ray.train.feed.batching import BatchPlan, steps_per_epoch


class RowSource(Protocol):
    """Source of rows that are read as they are needed."""

    def __call__(self, reads: Iterable[Read], *, is_first: bool) -> Iterator[pa.Table]:
        """Return the rows of the reads in their order, in tables of any size.

        Args:
            reads: What is read.
            is_first: Whether the run reads them for the first time: hashes are compared only then.
        """


class _Place(NamedTuple):
    """A worker's place in the training."""

    epoch: int
    start_step: int
    plan: BatchPlan
    rank: int


class _Rest(NamedTuple):
    """An unfinished epoch that was begun in another order.

    Attributes:
        order: Order of the samples that are left, or of all.
        before: Samples that were used before this order begins.
        kept: Of each shard, the rows that are left; None for all.
    """

    order: StreamOrder
    before: int = 0
    kept: list[np.ndarray] | None = None


class StreamFeed:
    """Shares of the global batches of :class:`~recon_ray.data.loading.stream_order.StreamOrder`.

    When all rows of an epoch have arrived, the next epoch begins to be read.

    Args:
        shard_rows: (S,) rows of the shards.
        options: What a batch holds.
        source: Reads them.
        seed: Seed of the order.
        layout: What else fixes it.
        epochs: Epochs of the training.
        sample_ids: Reads the sample ids of a shard, for epochs that an older version has begun.
        pinned: Make batches in memory that a GPU can copy from by itself.
    """

    def __init__(
        self,
        shard_rows: np.ndarray,
        options: BatchOptions,
        source: RowSource,
        *,
        seed: int,
        layout: StreamLayout,
        epochs: int,
        sample_ids: Callable[[int], np.ndarray],
        pinned: bool = False,
    ) -> None:
        self._order = StreamOrder(np.asarray(shard_rows), seed, layout)
        self._options, self._source, self._pinned = options, source, pinned
        self._epochs, self._sample_ids = epochs, sample_ids
        self._begun: dict[int, _Rest] = {}
        self._ahead: tuple[_Place, Prefetch[Batch]] | None = None
        self.rows = self._order.rows

    def layout(self, epoch: int) -> StreamLayout:
        """Return what fixes the order of an epoch."""
        return self._of_epoch(epoch).order.layout

    def go_on(self, epoch: int, layout: StreamLayout | None, used: np.ndarray | None) -> None:
        """Go on with an epoch of a checkpoint as it was begun."""
        order, kept = self._order, None
        if used is not None:
            kept = [_unused(self._sample_ids(n), used) for n in range(len(order.shard_rows))]
            order = StreamOrder(np.array([len(rows) for rows in kept]), order.seed, order.layout)
        if layout is not None:
            order = StreamOrder(order.shard_rows, order.seed, layout)
        self._begun[epoch] = _Rest(order, 0 if used is None else int(used.sum()), kept)

    def _of_epoch(self, epoch: int) -> _Rest:
        return self._begun.get(epoch) or _Rest(self._order)

    def epoch(self, epoch: int, start_step: int, plan: BatchPlan, rank: int) -> Iterator[Batch]:
        """Return the worker's share of every global batch from ``start_step`` on."""
        place, ahead = _Place(epoch, start_step, plan, rank), self._ahead
        self._ahead = None
        if ahead is not None and ahead[0] == place:
            yield from ahead[1]
        else:
            yield from self._batches(place)

    def gather_on_device(self, batch: Batch) -> Batch:
        """Return the batch, which is complete."""
        return batch

    def _batches(self, place: _Place) -> Iterator[Batch]:
        share, kept = self._share(place)
        window = RowWindow(pinned=self._pinned)
        tables = self._source(_reads(share, kept), is_first=place.epoch == 0)
        for numbers in share.batches():
            while window.arrived <= numbers.max():
                table = next(tables, None)
                if table is None:
                    raise DataError(
                        f"epoch {place.epoch + 1} ended after {window.arrived} of {share.rows} "
                        "rows; verify the prepared set"
                    )
                window.add(table)
            if window.arrived == share.rows:
                self._begin_after(place)
            yield make_batch(window.take(numbers), self._options, epoch=place.epoch)

    def _begin_after(self, place: _Place) -> None:
        """Begin to read the next epoch, if there is one."""
        if self._ahead is None and place.epoch + 1 < self._epochs:
            after = place._replace(epoch=place.epoch + 1, start_step=0)
            self._ahead = (after, prefetch(partial(self._batches, after), depth=1))

    def _share(self, place: _Place) -> tuple[StreamShare, list[np.ndarray] | None]:
        size = place.plan.global_batch_size
        steps = steps_per_epoch(self.rows, size) - place.start_step
        order, before, kept = self._of_epoch(place.epoch)
        position = place.start_step * size - before
        part = place.plan.share(place.rank)
        return StreamShare(order, place.epoch, position, size, steps, part), kept


def _unused(sample_ids: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the rows of a shard whose samples were not used."""
    known = sample_ids < len(used)
    fresh = ~known
    fresh[known] = used[sample_ids[known]] == 0
    return np.flatnonzero(fresh)


def _reads(share: StreamShare, kept: list[np.ndarray] | None) -> Iterator[Read]:
    for read in share.reads():
        yield read if kept is None else Read(read.shard, kept[read.shard][np.asarray(read.rows)])


class ReadHere:
    """Reads shards in a thread of this process.

    Args:
        files: Files of the split.
        reader: Reads them.
    """

    def __init__(self, files: SplitFiles, reader: ShardReader) -> None:
        self._files, self._reader = files, reader

    def __call__(self, reads: Iterable[Read], *, is_first: bool) -> Iterator[pa.Table]:
        """Return the rows of the reads in their order, some of them read ahead."""
        of = partial(self._files.of, is_first=is_first)
        return prefetch(lambda: self._reader(map(of, reads)), depth=8)
