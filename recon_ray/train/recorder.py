"""The one writer of metrics: ``metrics.jsonl``, TensorBoard and the log line."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Recorder:
    """Writes the metrics of a run in its folder; on rank 0 only.

    Args:
        folder: The run's folder.
        start_step: Step from which the run continues; later records of an earlier attempt go.
    """

    def __init__(self, folder: Path, *, start_step: int) -> None:
        self._path = folder / "metrics.jsonl"
        self._keep_until(start_step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add one record.

        Args:
            step: Optimizer steps done.
            epoch: Epoch in work.
            values: Metric name (``train/loss``) to number.
        """
        record = {"step": step, "epoch": epoch, **{k: _jsonable(v) for k, v in values.items()}}
        with self._path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self._board.close()

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
        partial = self._path.with_name(".tmp-metrics.jsonl")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a line that a killed process left half written


def _jsonable(value: float) -> float | None:
    return value if math.isfinite(value) else None
