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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Walking the mapped object store of every process takes tens of milliseconds each time.
INTERVAL_SECONDS = 1.0


@dataclass
class Peak:
    """Largest memory seen so far, in bytes."""

    bytes: int = 0


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Sample the memory of the process tree while the block runs.

    Memory is the proportional set size: shared pages, such as the object store's, count once.
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
    """Return the proportional set size of a process and its descendants, in bytes."""
    process = Path(f"/proc/{root}")
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
        lists = [file.read_text() for file in process.glob("task/*/children")]
    except OSError:  # it has just ended
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return own + sum(tree_bytes(int(child)) for text in lists for child in text.split())


class TensorPeak(TorchDispatchMode):
    """Counter of the bytes of all tensors that are made while it is entered.

    The same program gives the same count on every machine. Memory inside of operations,
    and the allocator's reserve, are not counted.

    Attributes:
        bytes: Bytes of the tensors that exist now.
        peak: Largest value of ``bytes`` so far.
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
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:  # noqa: ANN401 - any tree
    leaves = tree_leaves(values)
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]
