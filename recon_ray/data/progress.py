"""How far a job that builds shards is, in the log."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0


class ShardProgress:
    """Logs how far a job is, with the rate and what is left, every few seconds.

    Args:
        job: Name of the job.
        shards: Shards that it builds.
        units: Units of work in all of them.
        unit: What a unit is called.
    """

    def __init__(self, job: str, *, shards: int, units: int, unit: str) -> None:
        self.job, self.shards, self.units, self.unit = job, shards, units, unit
        self._done_shards = self._done_units = 0
        self._start = self._last = time.monotonic()

    def add(self, units: int) -> None:
        """Count one more shard."""
        self._done_shards += 1
        self._done_units += units
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS and self._done_shards < self.shards:
            return
        self._last = now
        rate = self._done_units / max(now - self._start, 1e-9)
        left = (self.units - self._done_units) / max(rate, 1e-9)
        logger.info(
            "%s: %d/%d shards, %s %s/s, about %.0f s left",
            self.job, self._done_shards, self.shards, _short(rate), self.unit, left,
        )  # fmt: skip


def _short(rate: float) -> str:
    """A rate with a decimal where a whole number would be 0 or say little."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
