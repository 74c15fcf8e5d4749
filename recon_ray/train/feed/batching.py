"""Composition of batches, for any number of workers.

The global batch and the order of samples depend on the seed and the epoch alone; a worker takes its
slice of each global batch. A changed number of workers therefore changes nothing but the slices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recon_ray.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """Split of a global batch over workers and micro batches.

    The shares of the workers differ by one sample at most, and so do the micro batches of a
    worker, of which all workers have equally many.

    Args:
        global_batch_size: Samples an optimizer step, over all workers.
        world_size: Number of workers.
        micro_batch_size: Most samples that a worker holds at once; None for no limit.
    """

    global_batch_size: int
    world_size: int
    micro_batch_size: int | None = None

    def share(self, rank: int) -> slice:
        """Return a worker's part of every global batch."""
        size, world = self.global_batch_size, self.world_size
        return slice(rank * size // world, (rank + 1) * size // world)

    @property
    def micro_batches(self) -> int:
        """Micro batches of every worker in a step."""
        largest = -(-self.global_batch_size // self.world_size)
        return -(-largest // (self.micro_batch_size or largest))

    def micro_slices(self, rank: int) -> list[slice]:
        """Near-equal consecutive slices of a worker's share, each within ``micro_batch_size``."""
        share, parts = self.share(rank), self.micro_batches
        size = share.stop - share.start
        bounds = [size * i // parts for i in range(parts + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]

    @property
    def smallest_part(self) -> int:
        """Samples of the smallest micro batch of any worker; 0 where one would have none."""
        return self.global_batch_size // self.world_size // self.micro_batches

    def weight(self, samples: int) -> float:
        """Return the weight of the mean loss of some samples.

        With it, the mean of the workers' gradients is that of the global batch.
        """
        return samples * self.world_size / self.global_batch_size


def epoch_order(num_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """Permutation of all rows for one epoch, the same on every worker.

    Returns:
        (num_rows,) int64.
    """
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def rank_shares(
    num_rows: int, *, seed: int, epoch: int, start_step: int, plan: BatchPlan, rank: int
) -> Iterator[np.ndarray]:
    """Return the row numbers (B,) of a worker's share of every global batch from a step on."""
    order, size = epoch_order(num_rows, seed=seed, epoch=epoch), plan.global_batch_size
    for step in range(start_step, steps_per_epoch(num_rows, size)):
        yield order[step * size : (step + 1) * size][plan.share(rank)]


def steps_per_epoch(num_rows: int, global_batch_size: int, *, split: str = "train") -> int:
    """Whole global batches in an epoch; the last incomplete one is dropped, other rows next time.

    Raises:
        ConfigError: If there is not even one.
    """
    steps = num_rows // global_batch_size
    if steps == 0:
        raise ConfigError(
            f"train.global_batch_size={global_batch_size}: the split {split!r} has only {num_rows} "
            "samples, fewer than one global batch; lower it or prepare more data"
        )
    return steps
