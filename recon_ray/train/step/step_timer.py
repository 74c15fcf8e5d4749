"""Step timing and data-wait fraction."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from recon_ray.data.loading.batches import Batch

#: Steps that the host may be ahead of the device.
AHEAD = 3


class Lap(NamedTuple):
    """Seconds, those of them spent waiting for data, and steps between two records."""

    seconds: float
    waited: float
    steps: int


class StepClock:
    """Times steps that the device takes while the host goes on.

    The host stays at most :data:`AHEAD` steps in front. Waiting for data counts only where the
    device had finished everything by then, so the fraction is not more than a little too large.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: deque[torch.cuda.Event] = deque()
        self._began = time.monotonic()
        self._paused: float | None = None
        self._waited = 0.0
        self._steps = 0

    def restore(self, lap: Lap) -> None:
        """Go on with a lap that was begun before."""
        self._began, self._waited, self._steps = time.monotonic() - lap.seconds, *lap[1:]

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count the time spent waiting for each."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            if self._is_idle():
                self._waited += time.monotonic() - asked
            self._steps += 1
            yield batch

    def stepped(self) -> None:
        """Note that a step was handed to the device; wait where the host is too far ahead."""
        if not self._on_gpu:
            return
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > AHEAD:
            self._events.popleft().synchronize()

    def lap(self, *, begin_again: bool = True) -> Lap:
        """Return the time and steps since the last lap, and begin another one."""
        now = time.monotonic() if self._paused is None else self._paused
        result = Lap(max(now - self._began, 1e-9), self._waited, self._steps)
        if begin_again:
            self._began, self._waited, self._steps = now, 0.0, 0
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a commit or a validation out of the lap."""
        if self._events:
            self._events[-1].synchronize()
        self._paused = began = time.monotonic()
        yield
        self._began += time.monotonic() - began
        self._paused = None

    def _is_idle(self) -> bool:
        return not self._events or self._events[-1].query()
