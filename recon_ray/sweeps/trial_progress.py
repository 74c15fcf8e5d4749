"""How far the trials of a sweep are: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: Seconds between two pictures of the table, and between two plain lines.
TABLE_SECONDS, LINE_SECONDS = 1.0, 5.0
#: Ended trials that the table still shows.
SHOWN_ENDED = 6
_UP_AND_CLEAR = "\x1b[{}F\x1b[J"


@dataclass
class TrialProgress:
    """Counts the trials and shows them.

    Attributes:
        total: Trials of the sweep.
        metric: What compares them.
        highest: Whether more of it is better.
        finished: Trials that were done before.
        is_alone: Whether nothing else writes to the terminal: a table is drawn over itself.
    """

    total: int
    metric: str
    highest: bool = True
    finished: int = 0
    is_alone: bool = True

    def __post_init__(self) -> None:
        self.running: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.failed: list[str] = []
        self.best: tuple[float, str] | None = None
        self._began = self._shown = time.monotonic()
        self._lines = 0
        self._at_start = self.finished

    def started(self, name: str) -> None:
        """A trial runs."""
        self.running[name] = "starting"

    def progressed(self, name: str, values: Mapping[str, float]) -> None:
        """A running trial has told some numbers."""
        self.running[name] = " ".join(f"{key} {value:.4g}" for key, value in values.items())

    def done(self, name: str, metrics: Mapping[str, float]) -> None:
        """A trial has ended with a result."""
        value = metrics.get(self.metric)
        self._end(name, "done" if value is None else f"{self.metric} {value:.4g}")
        if value is None:
            return
        sign = 1 if self.highest else -1
        if self.best is None or sign * value > sign * self.best[0]:
            self.best = (value, name)

    def stopped(self, name: str) -> None:
        """A trial was stopped early."""
        self._end(name, "stopped early")

    def broke(self, name: str, sentence: str) -> None:
        """A trial has failed."""
        self._end(name, f"failed: {sentence}")
        self.failed.append(name)
        if not self.is_alone or not sys.stderr.isatty():
            logger.warning("trial %s failed: %s", name, sentence)

    def summary(self) -> str:
        """One line on all of it."""
        parts = [f"{self.finished}/{self.total} trials ended", f"{len(self.running)} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.best is not None:
            parts.append(f"best {self.metric} {self.best[0]:.4g} ({self.best[1]})")
        here = self.finished - self._at_start
        if here > 0 and self.finished < self.total:
            left = (time.monotonic() - self._began) / here * (self.total - self.finished)
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def show(self, *, now: bool = False) -> None:
        """Show it if it is time to.

        Args:
            now: Do not wait for that.
        """
        is_table = self.is_alone and sys.stderr.isatty()
        interval = TABLE_SECONDS if is_table else LINE_SECONDS
        if not now and time.monotonic() - self._shown < interval:
            return
        self._shown = time.monotonic()
        if not is_table:
            logger.info("%s", self.summary())
            return
        if self._lines:
            sys.stderr.write(_UP_AND_CLEAR.format(self._lines))
        lines = self.table()
        self._lines = len(lines)
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()

    def table(self) -> list[str]:
        """The lines of the table: the last that have ended, those that run, and the sum."""
        recent = list(self.ended.items())[-SHOWN_ENDED:]
        rows = [*recent, *self.running.items()]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"  {name:{width}}  {text}"[: _columns()] for name, text in rows]
        return [*lines, self.summary()[: _columns()]]

    def _end(self, name: str, text: str) -> None:
        self.running.pop(name, None)
        self.ended[name] = text
        self.finished += 1


def _columns() -> int:
    return shutil.get_terminal_size((110, 24)).columns - 1


def duration(seconds: float) -> str:
    """A length of time in a unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
