"""The actor between driver and workers, without imports that would make its process large."""

from __future__ import annotations

import asyncio
from contextlib import suppress

#: How long a worker with an error waits for the others to meet it too.
TOGETHER_SECONDS = 5.0


class StopActor:
    """Passes the driver's stop request to the workers, and counts workers with errors."""

    def __init__(self) -> None:
        self._requested, self._taken = asyncio.Event(), asyncio.Event()
        self._failed: set[int] = set()
        self._all_failed = asyncio.Event()

    async def request(self) -> None:
        """Request that the run ends; return once the training loop has taken the request."""
        self._requested.set()
        await self._taken.wait()

    async def requested(self) -> None:
        """Return once the run is requested to end."""
        await self._requested.wait()

    async def take(self) -> None:
        """Note that the training loop has taken the request."""
        self._taken.set()

    async def fail(self, rank: int, workers: int) -> bool:
        """Note that a worker has met an error; return whether all have, within seconds."""
        self._failed.add(rank)
        if len(self._failed) == workers:
            self._all_failed.set()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_failed.wait(), TOGETHER_SECONDS)
        return self._all_failed.is_set()
