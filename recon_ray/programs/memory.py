"""Memory of this process and everything it started (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERVAL_SECONDS = 0.25


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
