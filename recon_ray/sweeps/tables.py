"""Tables of a sweep: one row a trial, and mean and deviation over the seeds of a configuration."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from recon_ray.config.fields import scalar_text
from recon_ray.sweeps.search_space import SEED
from recon_ray.sweeps.trial_folders import Ledger, Status
from recon_ray.sweeps.trial_placement import Trial

#: Definition of the deviation in every table.
DEVIATION = "sample standard deviation (ddof=1) over the trials of a configuration"
WIDEST_CELL = 28


@dataclass(frozen=True)
class TrialRow:
    """What one trial gave.

    Attributes:
        name: Its name.
        values: What differs from the others.
        status: What became of it.
        metrics: Its numbers; of a stopped one, those of its last report.
        selection: How its own numbers were chosen.
        protocol: ``sound`` or ``reference``.
        seconds: How long it took.
        error: What it failed with.
    """

    name: str
    values: Mapping[str, Any]
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    selection: str = ""
    protocol: str = ""
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of some trials.

    Attributes:
        values: What they have in common.
        numbers: Their numbers.
        trials: Their names.
        labeled: Numbers of the same trials chosen in other ways, by label.
    """

    values: Mapping[str, Any]
    numbers: tuple[float, ...]
    trials: tuple[str, ...] = ()
    labeled: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean; NaN of nothing."""
        return mean(self.numbers)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN of fewer than two."""
        return deviation(self.numbers)

    def record(self) -> dict[str, Any]:
        """Return it as JSON; null where there is no number."""
        labeled = {
            label: {"mean": _finite(mean(numbers)), "std": _finite(deviation(numbers))}
            for label, numbers in self.labeled.items()
        }
        return {
            "values": dict(self.values),
            "trials": list(self.trials),
            "count": len(self.numbers),
            "mean": _finite(self.mean),
            "std": _finite(self.deviation),
            "min": min(self.numbers, default=None),
            "max": max(self.numbers, default=None),
            "labeled": labeled,
        }


def mean(numbers: Sequence[float]) -> float:
    """Mean; NaN of nothing."""
    return statistics.fmean(numbers) if numbers else math.nan


def deviation(numbers: Sequence[float]) -> float:
    """Sample standard deviation (ddof=1); NaN of fewer than two numbers."""
    return statistics.stdev(numbers) if len(numbers) > 1 else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_rows(ledger: Ledger, trials: Sequence[Trial]) -> list[TrialRow]:
    """Read what became of the trials from their folders."""
    return [_row(ledger, trial) for trial in trials]


def _row(ledger: Ledger, trial: Trial) -> TrialRow:
    status = ledger.status(trial.name)
    if status == "stopped":
        return TrialRow(trial.name, trial.values, status, ledger.stopped(trial.name) or {})
    if status != "done":
        error = ledger.failure(trial.name) or ""
        return TrialRow(trial.name, trial.values, status, error=error)
    result = ledger.result(trial.name) or {}
    return TrialRow(
        trial.name,
        trial.values,
        status,
        metrics={name: float(value) for name, value in result["metrics"].items()},
        selection=str(result.get("selection", "")),
        protocol=str(result.get("protocol", "")),
        seconds=float(result.get("seconds", math.nan)),
    )


def spreads(
    rows: Sequence[TrialRow], metric: str, *, over: Sequence[str] = (SEED,)
) -> list[Spread]:
    """Group the finished trials that differ only in their seeds.

    Args:
        rows: All trials, in order.
        metric: What is averaged.
        over: Keys that do not make another configuration.
    """
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        common = {key: value for key, value in row.values.items() if key not in over}
        groups.setdefault(json.dumps(common, sort_keys=True, default=str), []).append(row)
    return [_spread(group, metric, over) for group in groups.values()]


def _spread(group: Sequence[TrialRow], metric: str, over: Sequence[str]) -> Spread:
    done = [row for row in group if row.status == "done" and metric in row.metrics]
    labeled: dict[str, list[float]] = {}
    for row in done:
        for label, value in _choices(row, metric).items():
            labeled.setdefault(label, []).append(value)
    return Spread(
        {key: value for key, value in group[0].values.items() if key not in over},
        tuple(row.metrics[metric] for row in done),
        tuple(row.name for row in done),
        {label: tuple(numbers) for label, numbers in labeled.items()},
    )


def _choices(row: TrialRow, metric: str) -> dict[str, float]:
    """The same metric of other epochs, labeled by how the epoch was chosen."""
    best = "best on test" if row.protocol == "reference" else "best on validation"
    labels = {f"{metric}_last": "last epoch", f"{metric}_best": best}
    return {label: row.metrics[name] for name, label in labels.items() if name in row.metrics}


def ranked(groups: Sequence[Spread], mode: str) -> list[Spread]:
    """The groups that have a mean, the best first."""
    sign = -1 if mode == "max" else 1
    found = [group for group in groups if group.numbers]
    return sorted(found, key=lambda group: sign * group.mean)


# --- As tables ------------------------------------------------------------------------------------


def trials_table(rows: Sequence[TrialRow]) -> pa.Table:
    """One row a trial: its name, values, status and every number, for ``trials.parquet``."""
    columns: dict[str, pa.Array] = {
        "trial": pa.array([row.name for row in rows], pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
    }
    for key in dict.fromkeys(key for row in rows for key in row.values):
        columns[key] = _value_column([row.values.get(key) for row in rows])
    for name in dict.fromkeys(name for row in rows for name in row.metrics):
        numbers = [row.metrics.get(name) for row in rows]
        columns[f"metrics.{name}"] = pa.array(numbers, pa.float64())
    columns["seconds"] = pa.array([row.seconds for row in rows], pa.float64())
    columns["selection"] = pa.array([row.selection for row in rows], pa.string())
    columns["error"] = pa.array([row.error for row in rows], pa.string())
    return pa.table(columns)


def _value_column(values: list[Any]) -> pa.Array:
    """Values as they are if they are of one kind, else as they are written."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([written(value) for value in values], pa.string())


def written(value: object) -> str:
    """A value as in YAML, short enough for a cell."""
    text = f"[{', '.join(map(written, value))}]" if isinstance(value, list | tuple) else None
    text = scalar_text(value) if text is None else text
    return text if len(text) <= WIDEST_CELL else f"…{text[1 - WIDEST_CELL :]}"


def summary_cells(
    groups: Sequence[Spread], metric: str, *, percent: bool
) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the summary: values, count, mean and deviation, extremes, other choices.

    Args:
        groups: What is shown.
        metric: Its name.
        percent: Whether the numbers are fractions that are shown in percent.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    labels = list(dict.fromkeys(label for group in groups for label in group.labeled))
    head = [*keys, "trials", f"{metric}, mean ± std", "min", "max"]
    head += [f"{label}, mean ± std" for label in labels]
    rows = []
    for group in groups:
        values = [written(group.values.get(key)) for key in keys]
        numbers = group.numbers
        cells = [str(len(numbers)), mean_and_deviation(numbers, percent=percent)]
        cells += [shown(f(numbers) if numbers else math.nan, percent=percent) for f in (min, max)]
        more = [group.labeled.get(label, ()) for label in labels]
        cells += [mean_and_deviation(numbers, percent=percent) for numbers in more]
        rows.append(values + cells)
    return head, rows


def mean_and_deviation(numbers: Sequence[float], *, percent: bool) -> str:
    """``91.2 ± 0.4``; no deviation of a single number."""
    text = shown(mean(numbers), percent=percent)
    spread = deviation(numbers)
    return f"{text} ± {shown(spread, percent=percent)}" if math.isfinite(spread) else text


def shown(value: float, *, percent: bool) -> str:
    """A number for a table, ``-`` for none."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.2f} %" if percent else f"{value:.5g}"


def is_fraction(metric: str, rows: Sequence[TrialRow]) -> bool:
    """Return whether a metric is a fraction of 1: by its name, if its numbers allow it."""
    words = ("accuracy", "miou", "probe", "chance")
    numbers = [row.metrics[metric] for row in rows if metric in row.metrics]
    return any(word in metric for word in words) and all(0 <= value <= 1 for value in numbers)


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()
) -> str:
    """Lines of a table for the terminal.

    Args:
        head: Names of the columns.
        rows: Cells.
        left: Columns whose cells begin at the left.
    """
    cells = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = [
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()
) -> str:
    """The same in Markdown."""
    marks = ["---" if column in left else "---:" for column in range(len(head))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]
    return "\n".join(lines)
