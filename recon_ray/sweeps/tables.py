"""Tables of a sweep: one row a trial, and mean and deviation over the seeds of a configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from recon_ray.config.fields import scalar_text
from recon_ray.sweeps.search_space import SEED
from recon_ray.sweeps.trial_folders import Status, TrialFolders
from recon_ray.sweeps.trial_placement import Trial

#: Definition of the deviation in every table.
DEVIATION = "sample standard deviation (ddof=1) over the trials of a configuration"
WIDEST_CELL = 28


@dataclass(frozen=True)
class TrialRow:
    """Outcome of one trial.

    Attributes:
        name: Its name.
        values: What differs from the others.
        status: What became of it.
        metrics: Its numbers; of a stopped one, those of its last report.
        selection: How its own numbers were chosen.
        protocol: ``sound`` or ``reference``.
        seconds: How long it took.
        error: What it failed with.
        epoch: Epochs after which it was stopped early.
        reason: Why it was.
    """

    name: str
    values: Mapping[str, Any]
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    selection: str = ""
    protocol: str = ""
    seconds: float | None = None
    error: str = ""
    epoch: int | None = None
    reason: str = ""

    @property
    def note(self) -> str:
        """Return why there is no result, for a table."""
        if self.status == "stopped":
            return f"stopped after epoch {self.epoch or '?'}: {self.reason or 'by the scheduler'}"
        return self.error


@dataclass(frozen=True, eq=False)
class Spread:
    """Numbers of the finished trials of one configuration.

    Attributes:
        values: Options that they have in common.
        numbers: Their numbers, by name of the trial.
        labeled: Numbers of the same trials that were chosen in other ways, by label.
        expected: Trials of the configuration, finished or not.
    """

    values: Mapping[str, Any]
    numbers: pd.Series
    labeled: Mapping[str, pd.Series] = field(default_factory=dict)
    expected: int = 0

    @property
    def counted(self) -> str:
        """Return the number of numbers, and of how many where some are missing."""
        count = len(self.numbers)
        return str(count) if count >= self.expected else f"{count} of {self.expected}"

    @property
    def mean(self) -> float:
        """Mean; NaN of nothing."""
        return float(self.numbers.mean(skipna=False))

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN of fewer than two numbers."""
        return float(self.numbers.std(skipna=False))

    def record(self) -> dict[str, Any]:
        """Return it as JSON; null where there is no number."""
        return {
            "values": dict(self.values),
            "trials": list(self.numbers.index),
            "count": len(self.numbers),
            "expected": max(self.expected, len(self.numbers)),
            **_statistics(self.numbers, "mean", "std", "min", "max"),
            "labeled": {key: _statistics(own, "mean", "std") for key, own in self.labeled.items()},
        }


def _statistics(numbers: pd.Series, *names: str) -> dict[str, float | None]:
    """Return mean, sample deviation (ddof=1) or extremes; None where there is no finite one."""
    found = {name: float(getattr(numbers, name)(skipna=False)) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def numbers_of(rows: Iterable[TrialRow], metric: str) -> pd.Series:
    """Return the metric of the finished trials that have it, by name of the trial."""
    done = [row for row in rows if row.status == "done" and metric in row.metrics]
    return pd.Series({row.name: row.metrics[metric] for row in done}, dtype=float)


def read_rows(folders: TrialFolders, trials: Sequence[Trial]) -> list[TrialRow]:
    """Read the outcome of the trials from their folders."""
    return [_outcome(folders, trial) for trial in trials]


def _outcome(folders: TrialFolders, trial: Trial) -> TrialRow:
    row = TrialRow(trial.name, trial.values, folders.status(trial.name))
    if row.status == "stopped":
        record = {"epoch": None, "reason": "", **(folders.stopped(trial.name) or {})}
        epoch, reason = record.pop("epoch"), str(record.pop("reason"))
        return replace(
            row, metrics=record, epoch=None if epoch is None else int(epoch), reason=reason
        )
    if row.status != "done":
        return replace(row, error=folders.failure(trial.name) or "")
    result = folders.result(trial.name) or {}
    return replace(
        row,
        metrics={name: float(value) for name, value in result["metrics"].items()},
        selection=str(result.get("selection", "")),
        protocol=str(result.get("protocol", "")),
        seconds=float(result.get("seconds", math.nan)),
    )


def spreads(
    rows: Sequence[TrialRow], metric: str, *, over: Sequence[str] = (SEED,)
) -> list[Spread]:
    """Group the finished trials that differ only in their seeds, or in the keys ``over``."""

    def common(row: TrialRow) -> dict[str, Any]:
        return {key: value for key, value in row.values.items() if key not in over}

    keys = [json.dumps(common(row), sort_keys=True, default=str) for row in rows]
    groups = pd.DataFrame({"key": keys, "row": list(rows)}).groupby("key", sort=False)["row"]
    return [
        Spread(
            common(found.iloc[0]), numbers_of(found, metric), _labeled(found, metric), len(found)
        )
        for _, found in groups
    ]


def _labeled(rows: Iterable[TrialRow], metric: str) -> dict[str, pd.Series]:
    """Return the same metric of other epochs, by label of how the epoch was chosen."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        best = "best on test" if row.protocol == "reference" else "best on validation"
        for name, label in ((f"{metric}_last", "last epoch"), (f"{metric}_best", best)):
            if row.status == "done" and metric in row.metrics and name in row.metrics:
                found.setdefault(label, {})[row.name] = row.metrics[name]
    return {label: pd.Series(numbers, dtype=float) for label, numbers in found.items()}


def ranked(groups: Sequence[Spread], mode: str) -> list[Spread]:
    """Return the groups that have a mean, the best first."""
    found = [group for group in groups if len(group.numbers)]
    return sorted(found, key=lambda group: group.mean, reverse=mode == "max")


# --- As tables ------------------------------------------------------------------------------------


def trials_table(rows: Sequence[TrialRow]) -> pa.Table:
    """Return one row a trial: name, values, status and every number, for ``trials.parquet``."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    numbers = {f"metrics.{name}": [row.metrics.get(name) for row in rows] for name in names}
    numbers["seconds"] = [row.seconds for row in rows]
    texts = {key: [getattr(row, key) for row in rows] for key in ("selection", "error", "reason")}
    return pa.table(
        {
            "trial": pa.array([row.name for row in rows], pa.string()),
            "status": pa.array([row.status for row in rows], pa.string()),
            **{key: _value_column([row.values.get(key) for row in rows]) for key in keys_of(rows)},
            **{key: pa.array(column, pa.float64()) for key, column in numbers.items()},
            "stopped_epoch": pa.array([row.epoch for row in rows], pa.int64()),
            **{key: pa.array(column, pa.string()) for key, column in texts.items()},
        }
    )


def keys_of(rows: Iterable[TrialRow | Spread]) -> list[str]:
    """Return the keys of all values, in order."""
    return list(dict.fromkeys(key for row in rows for key in row.values))


def _value_column(values: list[Any]) -> pa.Array:
    """Return values as they are if they are of one kind, else as they are written."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([written(value) for value in values], pa.string())


def written(value: object) -> str:
    """Return a value as in YAML, short enough for a cell."""
    text = f"[{', '.join(map(written, value))}]" if isinstance(value, list | tuple) else None
    text = scalar_text(value) if text is None else text
    return text if len(text) <= WIDEST_CELL else f"…{text[1 - WIDEST_CELL :]}"


def summary_cells(
    groups: Sequence[Spread], metric: str, *, percent: bool
) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the summary: values, count, mean and deviation, extremes, others."""
    keys = keys_of(groups)
    labels = list(dict.fromkeys(label for group in groups for label in group.labeled))
    head = [*keys, "trials", f"{metric}, mean ± std", "min", "max"]
    head += [f"{label}, mean ± std" for label in labels]
    rows = []
    for group in groups:
        numbers, nothing = group.numbers, group.numbers[:0]
        more = [group.labeled.get(label, nothing) for label in labels]
        rows.append(
            [
                *(written(group.values.get(key)) for key in keys),
                group.counted,
                mean_and_deviation(numbers, percent=percent),
                shown(numbers.min(), percent=percent),
                shown(numbers.max(), percent=percent),
                *(mean_and_deviation(series, percent=percent) for series in more),
            ]
        )
    return head, rows


def stopped_cells(rows: Sequence[TrialRow]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table of the trials that were stopped early."""
    stopped = [row for row in rows if row.status == "stopped"]
    keys = keys_of(stopped)
    cells = [
        [row.name, *(written(row.values.get(key)) for key in keys), row.note] for row in stopped
    ]
    return ["stopped early", *keys, "when and why"], cells


def mean_and_deviation(numbers: pd.Series, *, percent: bool) -> str:
    """Return ``91.2 ± 0.4``; no deviation of a single number."""
    text = shown(numbers.mean(skipna=False), percent=percent)
    spread = numbers.std(skipna=False)
    return f"{text} ± {shown(spread, percent=percent)}" if math.isfinite(spread) else text


def shown(value: float, *, percent: bool) -> str:
    """Return a number for a table, ``-`` for NaN."""
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
    """Return a table for the terminal; the cells of the columns ``left`` begin at the left."""
    cells = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<" if column in left else ">" for column in range(len(head))]
    lines = [
        "  ".join(f"{c:{side}{width}}" for c, side, width in zip(row, sides, widths, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()
) -> str:
    """Return the same in Markdown."""
    marks = ["---" if column in left else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *rows))
