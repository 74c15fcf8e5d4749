"""Memory of this process and its descendants (Linux), and of its tensors."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recon_ray.torch_internals import DispatchMode, storages

#: Walking the mapped object store of every process takes tens of milliseconds each time.
INTERVAL_SECONDS = 1.0


@dataclass
class Peak:
    """Largest memory seen so far, in bytes."""

    bytes: int = 0


@contextmanager
def watch_memory(
    measure: Callable[[int], int] | None = None, *, interval: float = INTERVAL_SECONDS
) -> Iterator[Peak]:
    """Sample memory while the block runs.

    Args:
        measure: Returns bytes for the id of this process; by default those of the process tree,
            where shared pages, such as the object store's, count once (proportional set size).
        interval: Seconds between samples.
    """
    peak, stop, measure = Peak(), threading.Event(), measure or tree_bytes

    def sample() -> None:
        over = False
        while not over:
            over = stop.wait(interval)  # once more when the block is over
            peak.bytes = max(peak.bytes, measure(os.getpid()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def resident_bytes(process: int) -> int:
    """Return the resident set size of one process, in bytes; cheap to read."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def tree_bytes(root: int) -> int:
    """Return the proportional set size of a process and its descendants, in bytes."""
    process = Path(f"/proc/{root}")
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
        lists = [file.read_text() for file in process.glob("task/*/children")]
    except OSError:  # it has just ended
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return own + sum(tree_bytes(int(child)) for text in lists for child in text.split())


class TensorPeak(DispatchMode):
    """Counter of the bytes of all tensors that are made while it is entered.

    The same program gives the same count on every machine. Memory inside of operations,
    and the allocator's reserve, are not counted.

    Attributes:
        bytes: Bytes of those that are held now.
        peak: Most of them so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count the tensors that it makes."""
        given = storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for key, storage in storages(result).items():
            if key not in given and key not in self._sizes:
                self._add(key, storage)
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
