"""Progress of the trials of a sweep: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from tqdm import tqdm

logger = logging.getLogger(__name__)

#: Seconds between two pictures of the bar, and between two plain lines.
BAR_SECONDS, LINE_SECONDS = 1.0, 5.0
_LINE = "{n_fmt}/{total_fmt} trials ended{postfix} [{elapsed}<{remaining}]"


class TrialProgress:
    """Counter of the trials, shown by tqdm; trials that have ended scroll by above the bar.

    Args:
        total: Trials of the sweep.
        metric: Number that compares them.
        mode: ``max`` or ``min``.
        ended: Trials that ended before this process began.
        is_alone: Whether nothing else writes to the terminal, so that a bar can be drawn there.
    """

    def __init__(
        self, total: int, metric: str, mode: str = "max", ended: int = 0, is_alone: bool = True
    ) -> None:
        self.metric = metric
        self.running: dict[str, str] = {}
        self.failed: list[str] = []
        self.best: tuple[float, str] | None = None
        self._sign = 1 if mode == "max" else -1
        self._is_bar = is_alone and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=ended,
            miniters=0,
            mininterval=BAR_SECONDS if self._is_bar else LINE_SECONDS,
            dynamic_ncols=True,
            file=sys.stderr if self._is_bar else _LogLines(),
            bar_format=f"{{bar:10}} {_LINE}" if self._is_bar else _LINE,
        )

    def __str__(self) -> str:
        """One line on all trials."""
        self._describe()
        return str(self._bar)

    def started(self, name: str) -> None:
        """Count a trial as running."""
        self.running[name] = "starting"

    def progressed(self, name: str, values: Mapping[str, float]) -> None:
        """Note the numbers that a running trial has reported."""
        self.running.pop(name, None)  # the latest report stands last
        self.running[name] = " ".join(f"{key} {value:.4g}" for key, value in values.items())

    def done(self, name: str, metrics: Mapping[str, float]) -> None:
        """Count a trial that has ended with a result."""
        value = metrics.get(self.metric)
        if value is None:
            return self._end(name, "done")
        if self.best is None or self._sign * value > self._sign * self.best[0]:
            self.best = (value, name)
        return self._end(name, f"{self.metric} {value:.4g}")

    def stopped(self, name: str, why: str) -> None:
        """Count a trial that was stopped early."""
        if not self._is_bar:
            logger.info("trial %s was stopped early, %s", name, why)
        self._end(name, f"stopped early, {why}")

    def broke(self, name: str, sentence: str) -> None:
        """Count a trial that has failed."""
        self.failed.append(name)
        if not self._is_bar:
            logger.warning("trial %s failed: %s", name, sentence)
        self._end(name, f"failed: {sentence}")

    def show(self) -> None:
        """Draw the bar, or log a line, if the last one is long enough ago."""
        self._describe()
        self._bar.update(0)

    def close(self) -> None:
        """Show the last state, which stays."""
        self._describe()
        self._bar.close()

    def _describe(self) -> None:
        parts = [f"{len(self.running)} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.best is not None:
            parts.append(f"best {self.metric} {self.best[0]:.4g} ({self.best[1]})")
        if self.running:
            parts.append(" ".join([*self.running.items()][-1]))
        self._bar.set_postfix_str(", ".join(parts), refresh=False)

    def _end(self, name: str, text: str) -> None:
        self.running.pop(name, None)
        if self._is_bar:
            self._bar.write(f"  {name}  {text}", file=sys.stderr)
        self._describe()
        self._bar.update(1)


class _LogLines:
    """Text stream whose lines go to the log."""

    def write(self, text: str) -> None:
        if text.strip():
            logger.info("%s", text.strip())

    def flush(self) -> None:
        """Do nothing: a line is logged at once."""
