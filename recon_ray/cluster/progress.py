"""A progress bar in the driver, on a terminal only, fed by the run's metrics."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recon_ray.train.lines import read_lines
from recon_ray.train.loop import records
from recon_ray.train.runtime import RunFolder

POLL_SECONDS = 0.5


def shows_bar(folder: RunFolder) -> bool:
    """Whether somebody sees a bar, and the driver sees the metrics as they are written."""
    return sys.stderr.isatty() and folder.is_local


@contextmanager
def progress_bar(folder: RunFolder, total_steps: int) -> Iterator[None]:
    """Show the steps, the loss and the speed while the run goes on; nothing without a terminal.

    Args:
        folder: The run's folder.
        total_steps: Optimizer steps of the whole run.
    """
    if not shows_bar(folder):
        yield
        return
    level = records.level
    records.setLevel(logging.WARNING)  # the bar says it
    stopped = threading.Event()
    follower = threading.Thread(
        target=_follow, args=(folder.local / "metrics.jsonl", total_steps, stopped), daemon=True
    )
    follower.start()
    try:
        yield
    finally:
        stopped.set()
        follower.join()
        records.setLevel(level)


def _follow(path: Path, total_steps: int, stopped: threading.Event) -> None:
    with tqdm(total=total_steps, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        while not stopped.wait(POLL_SECONDS):
            _show(bar, last_record(path))
        _show(bar, last_record(path))


def _show(bar: tqdm, record: dict[str, Any]) -> None:
    if record:
        bar.n = int(record["step"])
        rate = record["perf/samples_per_second"]
        bar.set_postfix_str(f"loss {record['train/loss']:.4f}, {rate:.0f} samples/s")


def last_record(path: Path) -> dict[str, Any]:
    """The newest whole training record of ``metrics.jsonl``; empty if there is none yet.

    Args:
        path: The file, which another process may be writing.
    """
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return {}
    for line in reversed(lines):
        for record in read_lines(line, key="train/loss"):
            return record
    return {}
