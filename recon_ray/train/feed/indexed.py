"""Batches from rows in memory, in an order that belongs to (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from recon_ray.data.loading.batches import Batch, BatchOptions, IndexedTable, make_batch
from recon_ray.data.loading.stream_order import StreamLayout
from recon_ray.train.feed.batching import BatchPlan, rank_shares


class TrainFeed(Protocol):
    """Source of this worker's shares of the global batches."""

    #: Samples in an epoch before the last incomplete global batch is dropped.
    rows: int

    def layout(self, epoch: int) -> StreamLayout | None:
        """Return what fixes the order of a stream's epoch; None for the exact global order."""

    def go_on(self, epoch: int, layout: StreamLayout | None, used: np.ndarray | None) -> None:
        """Go on with an epoch of a checkpoint as it was begun.

        Args:
            epoch: The unfinished epoch.
            layout: What :meth:`layout` was.
            used: (S,) uint8 over sample ids, 1 where the epoch has used the sample in an order of
                an older version; the rest follow in the order of this one.
        """

    def epoch(self, epoch: int, start_step: int, plan: BatchPlan, rank: int) -> Iterator[Batch]:
        """Return the worker's share of every global batch from ``start_step`` on."""

    def gather_on_device(self, batch: Batch) -> Batch:
        """Complete a batch of :meth:`epoch` on the device; part of the step."""


class GlobalOrder:
    """Exact global order of an epoch, in which a place is an index."""

    def layout(self, epoch: int) -> None:
        """Return None: the order follows from the seed and the number of rows."""

    def go_on(self, epoch: int, layout: StreamLayout | None, used: np.ndarray | None) -> None:
        """Do nothing: the place is an index."""


class IndexedFeed(GlobalOrder):
    """Exact global order from rows in memory: the same for any number of workers.

    Args:
        table: The training rows.
        options: What a batch holds.
        seed: Seed of the order.
        pinned: Make batches in memory that a GPU can copy from by itself.
    """

    def __init__(
        self, table: IndexedTable, options: BatchOptions, *, seed: int, pinned: bool = False
    ) -> None:
        self.table = table
        self.options = options
        self.seed = seed
        self.pinned = pinned
        self.rows = len(table)

    def epoch(self, epoch: int, start_step: int, plan: BatchPlan, rank: int) -> Iterator[Batch]:
        """Return the worker's share of every global batch from ``start_step`` on."""
        place = {"seed": self.seed, "epoch": epoch, "start_step": start_step, "rank": rank}
        for rows in rank_shares(self.rows, plan=plan, **place):
            taken = self.table.take(rows, self.options.needs, pinned=self.pinned)
            yield make_batch(taken, self.options, epoch=epoch)

    def gather_on_device(self, batch: Batch) -> Batch:
        """Return the batch, which is complete."""
        return batch


def evaluation_batches(
    table: IndexedTable,
    options: BatchOptions,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    limit: int | None = None,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Return this worker's rows of a split, each row on exactly one worker, none dropped.

    Args:
        table: All rows of the split.
        options: What a batch holds.
        batch_size: Most rows in a batch.
        rank: This worker.
        world_size: Number of workers.
        limit: Use the first rows only.
        pinned: Make batches in memory that a GPU can copy from by itself.
    """
    mine = np.arange(rank, min(len(table), limit or len(table)), world_size)
    for start in range(0, len(mine), batch_size):
        taken = table.take(mine[start : start + batch_size], options.needs, pinned=pinned)
        yield make_batch(taken, options, epoch=0)
