"""Batches prepared ahead: in a thread, in pinned memory, or on the device."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from recon_ray.data.loading.batches import Batch

T = TypeVar("T")


class Prefetch(Iterator[T]):
    """Iterator that runs in a thread, from the start; see :func:`prefetch`."""

    def __init__(self, items: Callable[[], Iterator[T]], depth: int) -> None:
        ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        stopped = threading.Event()

        def put(kind: str, value: Any) -> bool:  # noqa: ANN401 - an item or an exception
            while not stopped.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put((kind, value), timeout=0.1)
                    return True
            return False

        def produce() -> None:
            try:
                if all(put("item", item) for item in items()):
                    put("end", None)
            except BaseException as error:
                put("error", error)

        self._ready, self._stopped = ready, stopped
        self._thread = threading.Thread(target=produce, daemon=True, name="batch-prefetch")
        self._thread.start()

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise StopIteration
        kind, value = self._ready.get()
        if kind == "item":
            return value
        self.close()
        raise StopIteration if kind == "end" else value

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __del__(self) -> None:
        self._stopped.set()  # without waiting for the thread, which may wait for another process


def prefetch(items: Callable[[], Iterator[T]], *, depth: int = 2) -> Prefetch[T]:
    """Run an iterator in a thread that stays up to ``depth`` items ahead.

    Args:
        items: Makes the iterator, inside the thread.
        depth: Items held ready.
    """
    return Prefetch(items, depth)


def prefetch_batches(
    batches: Callable[[], Iterator[Batch]], device: torch.device
) -> Iterator[Batch]:
    """Prepare batches ahead, for a GPU in pinned memory, from which it copies by itself."""
    if device.type != "cuda":
        return prefetch(batches)
    return prefetch(
        lambda: ({name: value.pin_memory() for name, value in b.items()} for b in batches())
    )


def batches_on(batches: Callable[[], Iterator[Batch]], device: torch.device) -> Iterator[Batch]:
    """Bring batches to a device; a GPU copies the next one while it computes."""
    if device.type != "cuda":
        for batch in prefetch(batches):
            yield {name: value.to(device) for name, value in batch.items()}
        return
    stream = torch.cuda.Stream(device)

    def moved_batches() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        for batch in batches():
            with torch.cuda.stream(stream):
                moved = {
                    name: value.pin_memory().to(device, non_blocking=True)
                    for name, value in batch.items()
                }
            yield moved, stream.record_event()

    for moved, event in prefetch(moved_batches):
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for value in moved.values():
            value.record_stream(current)
        yield moved
