"""Order of the samples of a stream: a function of the set's shards, the seed and the epoch.

The shards are dealt once, by the seed, and the rows in that order are cut into *lanes* of equal
length. Every epoch goes through the shards of a lane in another order, a group of them at a time,
and mixes the rows of a group. Sample i of an epoch comes from lane i mod C, so that a global batch
is a stretch of that sequence, arranged by lane. Neither the number of workers nor the batch size
is in it: any number of workers share a batch out, each reads the lanes of its share only, and a
place in an epoch is one integer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

#: Most lanes, and fewest shards of one. One worker has a shard of every lane in memory.
MOST_LANES, SHARDS_A_LANE, LANES_BYTES = 64, 8, 1 << 31
#: Rows of a row group, where an epoch may begin to read a shard.
ALIGNED = 64
#: Words that keep the random numbers of different uses apart.
_DEAL, _SHARDS, _ROWS = range(3)


class StreamLayout(NamedTuple):
    """What fixes the order of an epoch besides the set and the seed; stored in checkpoints.

    Attributes:
        lanes: Number of lanes, C.
        group_rows: Rows of a group of shards, over all lanes.
    """

    lanes: int
    group_rows: int

    @classmethod
    def of(cls, shard_rows: np.ndarray, *, row_bytes: int, group_rows: int) -> StreamLayout:
        """Choose the number of lanes: a power of two, more for larger sets.

        Args:
            shard_rows: (S,) rows of the shards.
            row_bytes: Bytes of a row in memory.
            group_rows: ``data.shuffle_buffer``.
        """
        shard_bytes = max(1, int(shard_rows.mean() * row_bytes)) if len(shard_rows) else 1
        most = min(MOST_LANES, len(shard_rows) // SHARDS_A_LANE, LANES_BYTES // shard_bytes)
        return cls(1 << (max(most, 1).bit_length() - 1), group_rows)


class Read(NamedTuple):
    """Rows of one shard that a worker reads.

    Attributes:
        shard: Number of the shard in its split.
        rows: Their numbers in the shard, ascending.
    """

    shard: int
    rows: range | np.ndarray


@dataclass(frozen=True)
class StreamOrder:
    """Order of the samples of every epoch.

    Args:
        shard_rows: (S,) rows of the shards.
        seed: Seed of the order.
        layout: Lanes and groups.
    """

    shard_rows: np.ndarray
    seed: int
    layout: StreamLayout

    @cached_property
    def deal(self) -> np.ndarray:
        """Numbers of the shards as they are dealt, whatever the lanes: (S,)."""
        return dealt(len(self.shard_rows), seed=self.seed)

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each dealt shard among all dealt rows, and their number: (S + 1,)."""
        rows = np.asarray(self.shard_rows, dtype=np.int64)[self.deal]
        return np.concatenate([[0], np.cumsum(rows)])

    @property
    def rows(self) -> int:
        """Samples of an epoch."""
        return int(self.starts[-1])

    def lane_position(self, lane: int | np.ndarray, position: int | np.ndarray) -> np.ndarray:
        """Return how many samples of a lane come before a position of the epoch."""
        count = self.layout.lanes
        return np.maximum(np.asarray(position) + count - 1 - lane, 0) // count

    def batch_offset(
        self, lane: int | np.ndarray, start: int | np.ndarray, stop: int | np.ndarray
    ) -> np.ndarray:
        """Return where a lane begins in the batch of positions [start, stop), which has lanes."""
        return self._before(lane, stop) - self._before(lane, start)

    def _before(self, lane: int | np.ndarray, position: int | np.ndarray) -> np.ndarray:
        """Count the positions before one that belong to lower lanes."""
        rounds, rest = np.divmod(position, self.layout.lanes)
        return rounds * lane + np.minimum(rest, lane)

    def lane_ranges(self, lane: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ranges of dealt rows that an epoch goes through in a lane, one a shard.

        It begins inside a shard, whose first rows come last: the lanes go on to other shards at
        different times.

        Returns:
            (R,) their starts and (R,) their stops.
        """
        count = self.layout.lanes
        low, high = (self._lane_start(number) for number in (lane, lane + 1))
        if low == high:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        first = int(np.searchsorted(self.starts, low, side="right"))
        last = int(np.searchsorted(self.starts, high, side="left"))
        cuts = np.concatenate([[low], self.starts[first:last], [high]])
        whole = np.flatnonzero(np.diff(cuts))  # a shard may be empty
        random = np.random.default_rng([self.seed, epoch, lane, _SHARDS])
        chosen = random.permutation(whole)
        starts, stops = cuts[chosen], cuts[chosen + 1]
        skipped = int(random.integers(stops[0] - starts[0])) // ALIGNED * ALIGNED
        if count == 1 or not skipped:
            return starts, stops
        begin = starts[0] + skipped
        return (
            np.concatenate([[begin], starts[1:], [starts[0]]]),
            np.concatenate([stops, [begin]]),
        )

    def _lane_start(self, lane: int) -> int:
        """First dealt row of a lane."""
        size, more = divmod(self.rows, self.layout.lanes)
        return lane * size + min(lane, more)


def dealt(shards: int, *, seed: int) -> np.ndarray:
    """Return the numbers of the shards in the order in which a seed deals them: (S,)."""
    return np.random.default_rng([seed, _DEAL]).permutation(shards)


@dataclass(frozen=True)
class StreamShare:
    """A worker's share of the global batches from a place in an epoch on.

    Its rows are numbered as they are read, one group of shards after the other.

    Args:
        order: Order of the samples.
        epoch: Epoch.
        position: Samples of the epoch that were used before.
        batch_size: Samples of a global batch.
        steps: Global batches that follow.
        part: The worker's part of each, in positions of the batch.
    """

    order: StreamOrder
    epoch: int
    position: int
    batch_size: int
    steps: int
    part: slice

    @property
    def rows(self) -> int:
        """Rows that are read."""
        return self.steps * (self.part.stop - self.part.start)

    def reads(self) -> Iterator[Read]:
        """Return what is read, in the order in which it is needed."""
        for opened, _ in self._walk():
            for group in opened:
                yield from group.reads()

    def batches(self) -> Iterator[np.ndarray]:
        """Return the numbers of the rows of every batch."""
        for _, parts in self._walk():
            yield np.concatenate([group.numbers[start:stop] for group, start, stop in parts])

    def _walk(self) -> Iterator[tuple[list[_Group], list[tuple[_Group, int, int]]]]:
        """Yield for every batch the groups that begin with it, and its parts of groups."""
        queues: dict[int, Iterator[_Place]] = {}
        current: dict[int, _Group] = {}
        read = 0
        for step in range(self.steps):
            opened, parts = [], []
            for lane, start, stop in self._lanes_of(step):
                if lane not in queues:
                    queues[lane] = self._groups(lane, start)
                while start < stop:
                    group = current.get(lane)
                    if group is None or start >= group.stop:
                        place = next(one for one in queues[lane] if start < one.stop)
                        group = current[lane] = self._group(lane, place)
                        group.first_number = read
                        read += group.used
                        opened.append(group)
                    end = min(stop, group.stop)
                    parts.append((group, start - group.start, end - group.start))
                    start = end
            yield opened, parts

    @cached_property
    def _pattern(self) -> list[list[tuple[int, int, int]]]:
        """Lanes of the first batches and the worker's samples of each, until they repeat."""
        lanes, found = np.arange(self.order.layout.lanes), []
        for step in range(len(lanes) // math.gcd(len(lanes), self.batch_size)):
            starts, stops = self._samples(lanes, np.int64(step))
            used = np.flatnonzero(starts < stops)
            columns = (used, starts[used], stops[used])
            found.append(list(zip(*(column.tolist() for column in columns), strict=True)))
        return found

    def _lanes_of(self, step: int) -> Iterator[tuple[int, int, int]]:
        """Yield the lanes of a batch, and the worker's samples of each."""
        period = len(self._pattern)
        later = step // period * period * self.batch_size // self.order.layout.lanes
        for lane, start, stop in self._pattern[step % period]:
            yield lane, start + later, stop + later

    def _samples(self, lane: int | np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the worker's samples of a lane in a batch, numbered within the lane."""
        start = self.position + step * self.batch_size
        stop = start + self.batch_size
        first, end = (self.order.lane_position(lane, at) for at in (start, stop))
        offset = self.order.batch_offset(lane, start, stop)
        low, high = (
            np.clip(at - offset, 0, end - first) for at in (self.part.start, self.part.stop)
        )
        return first + low, first + high

    def _groups(self, lane: int, start: int) -> Iterator[_Place]:
        """Yield the groups of a lane that hold sample ``start`` of it or later ones."""
        order = self.order
        starts, stops = order.lane_ranges(lane, self.epoch)
        ends = np.cumsum(stops - starts)
        number = (ends - 1) // max(1, order.layout.group_rows // order.layout.lanes)
        bounds = np.flatnonzero(np.diff(number, prepend=-1, append=number[-1:] + 1))
        for index, (low, high) in enumerate(itertools.pairwise(bounds.tolist())):
            if (stop := int(ends[high - 1])) > start:
                yield _Place(index, stop, starts[low:high], stops[low:high])

    def _group(self, lane: int, place: _Place) -> _Group:
        order, size = self.order, int((place.stops - place.starts).sum())
        words = [order.seed, self.epoch, lane, _ROWS, place.number]
        rows, start = np.random.default_rng(words).permutation(size), place.stop - size
        # In a batch the rows of a lane are ascending: they are gathered in fewer pieces.
        positions = (start + np.arange(size)) * order.layout.lanes + lane - self.position
        step = np.floor_divide(positions, self.batch_size)
        rows = rows[np.lexsort((rows, step))]
        steps = np.arange(max(step[0], 0), min(step[-1] + 1, self.steps))
        edges = np.zeros(size + 1, dtype=np.int64)
        for at, sign in zip(self._samples(lane, steps), (1, -1), strict=True):
            np.add.at(edges, np.clip(at - start, 0, size), sign)
        return _Group(order, start, place.starts, place.stops, rows, np.cumsum(edges[:-1]) > 0)


class _Place(NamedTuple):
    """Place of a group: its number and its end in the lane, and its ranges of dealt rows."""

    number: int
    stop: int
    starts: np.ndarray
    stops: np.ndarray


class _Group:
    """Shards of a lane whose rows are mixed.

    Args:
        order: Order of the samples.
        start: Its first sample, numbered within the lane.
        starts: First dealt row of each range.
        stops: Likewise their ends.
        rows: (n,) rows of the group, numbered as they lie in the shards, in order of their use.
        mine: (n,) bool, which of these the worker uses.

    Attributes:
        first_number: Number of the first row that is read of it.
    """

    def __init__(
        self,
        order: StreamOrder,
        start: int,
        starts: np.ndarray,
        stops: np.ndarray,
        rows: np.ndarray,
        mine: np.ndarray,
    ) -> None:
        self.start, self.stop = start, start + len(rows)
        self.first_number = 0
        self._order, self._starts, self._stops = order, starts, stops
        self._rows, self._mine = rows, mine
        self.used = int(mine.sum())

    @cached_property
    def _wanted(self) -> np.ndarray:
        """Bool, which rows are read, as they lie in the shards."""
        wanted = np.zeros(len(self._rows), dtype=bool)
        wanted[self._rows[self._mine]] = True
        return wanted

    @cached_property
    def numbers(self) -> np.ndarray:
        """Numbers of the rows among all that the worker reads, in order of their use."""
        return (np.cumsum(self._wanted) - 1 + self.first_number)[self._rows]

    def reads(self) -> Iterator[Read]:
        """Return what is read of it."""
        offset = 0
        for start, stop in zip(self._starts.tolist(), self._stops.tolist(), strict=True):
            wanted = self._wanted[offset : offset + stop - start]
            offset += stop - start
            dealt_shard = int(np.searchsorted(self._order.starts, start, side="right")) - 1
            before = start - int(self._order.starts[dealt_shard])
            shard = int(self._order.deal[dealt_shard])
            if wanted.all():
                yield Read(shard, range(before, before + stop - start))
            elif wanted.any():
                yield Read(shard, np.flatnonzero(wanted).astype(np.int32) + before)
