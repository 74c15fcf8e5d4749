"""The published table beside our numbers: every line says what it was measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recon_ray.programs.fewshot import with_episode
from recon_ray.programs.inner_jobs import option
from recon_ray.programs.paper import Line
from recon_ray.programs.reproduce_plan import RowPlan
from recon_ray.programs.trial_tables import (
    Spread,
    TrialRow,
    markdown_table,
    mean_and_deviation,
    shown,
    text_table,
)

HEAD = ("", "ours, mean ± std", "best", "runs", "published", "measured")
GENUINE = "as published"
#: What the number of every run is called in the records of all runs.
SCORE = "accuracy or mIoU"


@dataclass(frozen=True)
class TableLine:
    """One line of the table with our numbers.

    Attributes:
        line: What is measured, and what was published.
        row: Name of its row.
        metric: The number of ``result.json`` that was read.
        spread: Our numbers.
        runs: Runs that there should be.
        selection: How the numbers were chosen, by the runs themselves.
        protocol: ``reference`` or ``sound``.
        notes: What is not as published.
        absent: Why there is no number, or not all of them.
    """

    line: Line
    row: str
    metric: str
    spread: Spread
    runs: int
    selection: str
    protocol: str
    notes: tuple[str, ...]
    absent: str = ""

    @property
    def measured(self) -> str:
        """In few words, whether the number can be compared with the published one."""
        if not self.spread.numbers:
            return self.absent.partition(":")[0] or "not run"
        words = [note.partition(":")[0] for note in self.notes]
        kinds = ("stand-in", "part of the set", "pre-trained")
        marks = [kind for kind in kinds if any(word.startswith(kind) for word in words)]
        marks = ["other pre-training" if mark == "pre-trained" else mark for mark in marks]
        if any(not word.startswith(kinds) for word in words):
            marks.append("scaled down")
        if len(self.spread.numbers) < self.runs:
            marks.append("incomplete")
        return ", ".join(marks) or GENUINE

    def cells(self) -> list[str]:
        """The line's cells, as :data:`HEAD` names them."""
        numbers = self.spread.numbers
        best = max(numbers, default=math.nan)
        return [
            self.line.title,
            mean_and_deviation(numbers, percent=True),
            shown(best, percent=True) if len(numbers) > 1 else "-",
            f"{len(numbers)}/{self.runs}",
            self.line.shown(),
            self.measured,
        ]

    def details(self) -> str:
        """What else belongs to the numbers, in a sentence."""
        parts = [self.selection, *self.notes, self.absent]
        return "; ".join(part for part in parts if part)

    def record(self) -> dict[str, Any]:
        """Give it as JSON: numbers are fractions of 1."""
        return {
            "row": self.row,
            "title": self.line.title,
            "metric": self.metric,
            **{key: value for key, value in self.spread.record().items() if key != "labeled"},
            "expected_runs": self.runs,
            "published_percent": self.line.published,
            "published_std_percent": self.line.deviation,
            "measured": self.measured,
            "protocol": self.protocol,
            "selection": self.selection,
            "notes": list(self.notes),
            "absent": self.absent or None,
        }


def lines_of(plan: RowPlan, rows: Mapping[str, TrialRow], notes: Sequence[str]) -> list[TableLine]:
    """Fill the lines of a row with the numbers of its runs.

    Args:
        plan: The row.
        rows: What became of every run, by name.
        notes: What is not as published about set and weights.
    """
    found = []
    for line in plan.row.lines:
        metric = metric_of(plan, line)
        own = [with_episode(rows[trial.name]) for trial in plan.trials]
        own = [row for row in own if all(row.values.get(k) == v for k, v in line.only.items())]
        done = [row for row in own if row.status == "done" and metric in row.metrics]
        spread = Spread(
            dict(line.only),
            tuple(row.metrics[metric] for row in done),
            tuple(row.name for row in done),
        )
        selection = "; ".join(dict.fromkeys(row.selection for row in done if row.selection))
        found.append(
            TableLine(
                line,
                plan.row.name,
                metric,
                spread,
                len(own),
                selection,
                str(getattr(plan.config, "protocol", "")),
                (*notes, *plan.scaled),
                _absent(plan, own),
            )
        )
    return found


def metric_of(plan: RowPlan, line: Line) -> str:
    """Name of a line's number: that of voting is what the protocol reports."""
    if line.metric != "accuracy_vote":
        return line.metric
    is_reference = option(plan.config, "protocol") == "reference"
    return "accuracy_vote_max" if is_reference else "accuracy_vote_mean"


def _absent(plan: RowPlan, rows: Sequence[TrialRow]) -> str:
    if plan.missing:
        return f"skipped: {plan.missing}"
    if plan.broken:
        return f"failed: {plan.broken}"
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        return f"failed: {len(failed)} of {len(rows)} runs ({failed[0].name}: {failed[0].error})"
    waiting = [row for row in rows if row.status == "waiting"]
    return f"not run: {len(waiting)} of {len(rows)} runs" if waiting else ""


def text_of(lines: Sequence[TableLine]) -> str:
    """The table for the terminal, and what belongs to its lines."""
    details = [f"  {line.line.title}: {line.details()}" for line in lines if line.details()]
    return "\n".join(
        [text_table(HEAD, [line.cells() for line in lines], left=(0, 5)), "", *details]
    )


def markdown_of(lines: Sequence[TableLine], title: str, deviation: str) -> str:
    """The same as a page of Markdown."""
    details = [f"- {line.line.title}: {line.details()}" for line in lines if line.details()]
    table = markdown_table(HEAD, [line.cells() for line in lines])
    return "\n".join([f"# {title}", "", table, "", f"std: {deviation}.", "", *details, ""])


def table_of(lines: Sequence[TableLine]) -> pa.Table:
    """The lines for ``table.parquet``; numbers are fractions of 1, published ones percent."""
    records = [line.record() for line in lines]
    for record in records:
        record["notes"] = "; ".join(record["notes"])
        del record["values"]
    return pa.Table.from_pylist(records)
