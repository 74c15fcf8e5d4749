"""The actor between driver and workers; alone here, so that its process does not import torch."""

from __future__ import annotations

import asyncio
from contextlib import suppress

#: How long a worker with an error waits for the others to meet it too.
TOGETHER_SECONDS = 5.0


class StopActor:
    """Carries the driver's wish to end to the workers, and their errors; on the driver's node."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._failed: set[int] = set()
        self._all_failed = asyncio.Event()
        self._heard = asyncio.Event()

    async def ask(self) -> None:
        """Ask the run to end."""
        self._asked.set()

    async def asked(self) -> bool:
        """Return once the run was asked to end."""
        return await self._asked.wait()

    async def fail(self, rank: int, workers: int) -> bool:
        """Note that a worker has met an error; whether all have, at once or within seconds."""
        self._failed.add(rank)
        if len(self._failed) == workers:
            self._all_failed.set()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_failed.wait(), TOGETHER_SECONDS)
        return self._all_failed.is_set()

    async def hear(self) -> None:
        """Note that the run knows that it is to end."""
        self._heard.set()

    async def heard(self) -> bool:
        """Return once the run knows that it is to end."""
        return await self._heard.wait()
