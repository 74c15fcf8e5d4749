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

    Args:
        global_batch_size: Samples an optimizer step, over all workers.
        world_size: Number of workers.
        micro_batch_size: Most samples that a worker holds at once; None for no limit.

    Raises:
        ConfigError: If the global batch is not divisible by the workers.
    """

    global_batch_size: int
    world_size: int
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.global_batch_size % self.world_size:
            raise ConfigError(
                f"train.global_batch_size={self.global_batch_size} is not divisible by "
                f"{self.world_size} workers; choose a multiple"
            )

    @property
    def per_worker(self) -> int:
        """Samples of one worker in an optimizer step."""
        return self.global_batch_size // self.world_size

    def micro_slices(self) -> list[slice]:
        """Near-equal consecutive slices of a worker's share, each within ``micro_batch_size``."""
        limit = self.micro_batch_size or self.per_worker
        parts = -(-self.per_worker // limit)
        bounds = [self.per_worker * i // parts for i in range(parts + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]

    def rank_rows(self, rows: np.ndarray, rank: int) -> np.ndarray:
        """Return a worker's slice of the (global_batch_size,) row numbers of one global batch."""
        return rows[rank * self.per_worker : (rank + 1) * self.per_worker]


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
        yield plan.rank_rows(order[step * size : (step + 1) * size], rank)


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
