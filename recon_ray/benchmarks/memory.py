"""Memory of this process and everything it started (Linux), and of its tensors."""

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
def watch_memory() -> Iterator[Peak]:
    """Sample the memory of the process tree while the block runs.

    Memory is the proportional set size: what processes share, the object store for one, counts
    once.
    """
    peak, stop = Peak(), threading.Event()

    def sample() -> None:
        over = False
        while not over:
            over = stop.wait(INTERVAL_SECONDS)  # once more when the block is over
            peak.bytes = max(peak.bytes, tree_bytes(os.getpid()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def tree_bytes(root: int) -> int:
    """Proportional set size of a process and its descendants, in bytes."""
    parents = _parents()
    tree, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    return sum(_process_bytes(process) for process in tree)


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
    return parents


def _process_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class TensorPeak(DispatchMode):
    """Counts the bytes of the tensors that are made while it is entered, and live on.

    The same program gives the same count on every machine. Memory inside of operations, and what
    the allocator keeps, is not in it.

    Attributes:
        bytes: Bytes of those that live now.
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
        """Run an operation and count what it has made."""
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
