"""The published table beside our numbers: every line says what it was measured on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recon_ray.reproduce.paper import Line
from recon_ray.reproduce.plan import RowPlan
from recon_ray.sweeps.fewshot.job import with_episode
from recon_ray.sweeps.nested_config import option
from recon_ray.sweeps.tables import (
    Spread,
    TrialRow,
    markdown_table,
    mean_and_deviation,
    shown,
    text_table,
)

HEAD = ("", "ours, mean ± std", "best", "runs", "published", "measured on", "notes")
#: Columns of texts.
TEXTS = (0, 5, 6)
GENUINE = "published set, full length"
#: What the number of every run is called in the records of all runs.
SCORE = "accuracy or mIoU"
#: Number of an epoch, which differs from run to run.
_NUMBER = re.compile(r" \(\d+\)")


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
        marks = [note.partition(":")[0] for note in self.notes]
        if len(self.spread.numbers) < self.runs:
            marks.append("incomplete")
        return ", ".join(dict.fromkeys(marks)) or GENUINE

    def cells(self) -> list[str]:
        """The line's cells, as :data:`HEAD` names them, but for the last one."""
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

    def remarks(self) -> list[str]:
        """What belongs to the numbers."""
        return [text for text in (self.selection, *self.notes, self.absent) if text]

    def record(self) -> dict[str, Any]:
        """Return it as JSON: numbers are fractions of 1."""
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
        told = [_NUMBER.sub("", row.selection) for row in done if row.selection]
        selection = line.selection if done and line.selection else "; ".join(dict.fromkeys(told))
        protocol = str(getattr(plan.config, "protocol", ""))
        more = [] if protocol == "reference" else [f"protocol {protocol}"]
        if plan.scaled:
            more.append(f"scaled down: {', '.join(plan.scaled)}")
        found.append(
            TableLine(
                line,
                plan.row.name,
                metric,
                spread,
                len(own),
                selection,
                protocol,
                (*notes, *more),
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


def numbered(lines: Sequence[TableLine]) -> tuple[list[list[str]], list[str]]:
    """Return the cells of all lines, and the remarks that the numbers in the last cell name."""
    remarks = list(dict.fromkeys(text for line in lines for text in line.remarks()))
    cells = [
        [*line.cells(), " ".join(str(remarks.index(text) + 1) for text in line.remarks())]
        for line in lines
    ]
    return cells, [f"[{number}] {text}" for number, text in enumerate(remarks, 1)]


def text_of(lines: Sequence[TableLine]) -> str:
    """The table for the terminal, and what belongs to its lines."""
    cells, remarks = numbered(lines)
    return "\n".join([text_table(HEAD, cells, left=TEXTS), "", *remarks])


def markdown_of(lines: Sequence[TableLine], title: str, deviation: str) -> str:
    """The same as a page of Markdown."""
    cells, remarks = numbered(lines)
    table = markdown_table(HEAD, cells, left=TEXTS)
    listed = [f"- {remark}" for remark in remarks]
    return "\n".join([f"# {title}", "", table, "", f"std: {deviation}.", "", *listed, ""])


def table_of(lines: Sequence[TableLine]) -> pa.Table:
    """The lines for ``table.parquet``; numbers are fractions of 1, published ones percent."""
    records = [line.record() for line in lines]
    for record in records:
        record["notes"] = "; ".join(record["notes"])
        del record["values"]
    return pa.Table.from_pylist(records)
