"""The published table beside our numbers: every line states what it was measured on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from recon_ray.config.fields import option
from recon_ray.config.help import dump_yaml
from recon_ray.data.format.files import parquet_bytes, write_file
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, DataError
from recon_ray.figures.trials import draw_beside
from recon_ray.reproduce.paper import PRETRAINED_ON, Line
from recon_ray.reproduce.plan import RowPlan, TablePlan
from recon_ray.runs.folder import RunFolder
from recon_ray.sweeps.fewshot.job import with_episode
from recon_ray.sweeps.report import SweepStory, finish_trials, mean_metrics
from recon_ray.sweeps.tables import (
    DEVIATION,
    Spread,
    TrialRow,
    markdown_table,
    mean_and_deviation,
    numbers_of,
    read_rows,
    shown,
    spreads,
    text_table,
)
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.tasks.registry import JobResult
from recon_ray.tasks.run import Run
from recon_ray.weights.catalog import CATALOG

HEAD = ("", "ours, mean ± std", "best", "runs", "published", "measured on", "notes")
#: Columns of texts.
TEXTS = (0, 5, 6)
GENUINE = "published set, full length"
#: Name of every run's number in the records of all runs.
SCORE = "accuracy or mIoU"
SELECTION = (
    "Every line is the mean over its runs, none left out, and the best of them; how each run's own "
    "number was chosen stands with the line."
)
#: Values that make no other group of runs.
OVER = ("run.seed", "init_from", "fold", "train.global_batch_size")
#: Teachers without weights, which stand in for real ones.
STAND_IN_TEACHER = "descriptor"
#: Number of an epoch, which differs from run to run.
_NUMBER = re.compile(r" \(\d+\)")


@dataclass(frozen=True)
class TableLine:
    """One line of the table with our numbers.

    Attributes:
        plan: The row that it belongs to.
        line: What is measured, and what was published.
        rows: Outcome of its runs.
        notes: What is not as published.
    """

    plan: RowPlan
    line: Line
    rows: Sequence[TrialRow]
    notes: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the number in the metrics of the table."""
        only = "".join(f"_{value}{key}" for key, value in self.line.only.items())
        return f"{self.plan.row.name}{only}_{metric_of(self.plan, self.line)}"

    @property
    def spread(self) -> Spread:
        """Our numbers, as fractions of 1."""
        return Spread(dict(self.line.only), numbers_of(self.rows, metric_of(self.plan, self.line)))

    @property
    def measured(self) -> str:
        """Return in few words whether the number compares with the published one."""
        count = len(self.spread.numbers)
        if not count:
            return self.absent.partition(":")[0] or "not run"
        marks = [note.partition(":")[0] for note in self.notes]
        marks += ["incomplete"] if count < len(self.rows) else []
        return ", ".join(dict.fromkeys(marks)) or GENUINE

    @property
    def selection(self) -> str:
        """Return how the numbers were chosen, by the runs' records."""
        done = [row for row in self.rows if row.name in self.spread.numbers.index]
        if done and self.line.selection:
            return self.line.selection
        return "; ".join(dict.fromkeys(_NUMBER.sub("", r.selection) for r in done if r.selection))

    @property
    def absent(self) -> str:
        """Reason why there is no number, or not all of them."""
        if self.plan.missing or self.plan.broken:
            is_missing = bool(self.plan.missing)
            return f"skipped: {self.plan.missing}" if is_missing else f"failed: {self.plan.broken}"
        failed = [row for row in self.rows if row.status == "failed"]
        if failed:
            first = f"{failed[0].name}: {failed[0].error}"
            return f"failed: {len(failed)} of {len(self.rows)} runs ({first})"
        waiting = sum(row.status == "waiting" for row in self.rows)
        return f"not run: {waiting} of {len(self.rows)} runs" if waiting else ""

    def cells(self) -> list[str]:
        """Return the line's cells, as :data:`HEAD` names them, but for the last one."""
        numbers = self.spread.numbers
        best = numbers.max() if len(numbers) > 1 else math.nan
        return [
            self.line.title,
            mean_and_deviation(numbers, percent=True),
            shown(best, percent=True),
            f"{len(numbers)}/{len(self.rows)}",
            self.line.shown(),
            self.measured,
        ]

    def remarks(self) -> list[str]:
        """Return what belongs to the numbers."""
        return [text for text in (self.selection, *self.notes, self.absent) if text]

    def record(self) -> dict[str, Any]:
        """Return it as JSON: numbers are fractions of 1."""
        return {
            "row": self.plan.row.name,
            "title": self.line.title,
            "metric": metric_of(self.plan, self.line),
            **{key: value for key, value in self.spread.record().items() if key != "labeled"},
            "expected_runs": len(self.rows),
            "published_percent": self.line.published,
            "published_std_percent": self.line.deviation,
            "measured": self.measured,
            "protocol": option(self.plan.config, "protocol"),
            "selection": self.selection,
            "notes": list(self.notes),
            "absent": self.absent or None,
        }


def metric_of(plan: RowPlan, line: Line) -> str:
    """Return the name of a line's number: that of voting is what the protocol reports."""
    if line.metric != "accuracy_vote":
        return line.metric
    best = option(plan.config, "flags").best_vote
    return "accuracy_vote_max" if best else "accuracy_vote_mean"


def numbered(lines: Sequence[TableLine]) -> tuple[list[list[str]], list[str]]:
    """Return the cells of all lines, and the remarks that the numbers in the last cell name."""
    remarks = list(dict.fromkeys(text for line in lines for text in line.remarks()))
    cells = [
        [*line.cells(), " ".join(str(remarks.index(text) + 1) for text in line.remarks())]
        for line in lines
    ]
    return cells, [f"[{number}] {text}" for number, text in enumerate(remarks, 1)]


# --- What is genuine ------------------------------------------------------------------------------


def set_notes(plan: RowPlan) -> list[str]:
    """Return what is not the published set about a row's: nothing, if it is all of it."""
    if plan.path is None or not plan.is_run:
        return []
    manifest = PreparedSet.open(plan.path).manifest
    rows = {name: int(split["rows"]) for name, split in manifest["splits"].items()}
    counted = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    card, source = manifest.get("card") or {}, str(manifest["source"])
    is_known = card.get("name") in (plan.row.source, plan.row.set)
    if plan.stand_in or (plan.stand_in is None and not is_known):
        return [f"stand-in: {card.get('title') or source} ({counted})"]
    published = card.get("counts", {}) if is_known else {}
    partial = [
        f"{name} {rows.get(name, 0):,} of {count:,}"
        for name, count in published.items()
        if rows.get(name, 0) != count
    ]
    return [f"part of the set: {', '.join(partial)}"] if partial else []


def _weights_notes(spec: str) -> list[str]:
    """Return how weights of another run were pre-trained otherwise than the published ones."""
    if spec in CATALOG:
        return []
    try:
        result = json.loads(RunFolder(spec).read("result.json") or "{}")
        names = [teacher["name"] for teacher in result["teachers"].values() if teacher]
        return _pretraining_notes(str(result["data"]), names)
    except (OSError, ValueError, KeyError, TypeError, DataError, CheckpointError):
        return [f"unknown pre-training: {spec} has no record of it"]


def _pretraining_notes(
    path: str, teachers: Sequence[str | None], scaled: Sequence[str] = ()
) -> list[str]:
    """Return what is not as published about a pre-training on a set."""
    parts = list(scaled)
    if any(str(name).startswith(STAND_IN_TEACHER) for name in teachers):
        parts.insert(0, "descriptor teachers")
    manifest = PreparedSet.open(path).manifest
    card = manifest.get("card") or {}
    if card.get("name") != PRETRAINED_ON:
        parts.insert(0, str(card.get("title") or manifest["source"]))
    return [f"other pre-training: {', '.join(parts)}"] if parts else []


def _notes(table: TablePlan, plan: RowPlan) -> list[str]:
    """Return what is not as published about a row: set, weights, protocol, length."""
    protocol = option(plan.config, "protocol")
    other = [] if protocol == "reference" else [f"protocol {protocol}"]
    return [*_origin_notes(table, plan), *other, *_length_notes(plan)]


def _origin_notes(table: TablePlan, plan: RowPlan) -> list[str]:
    if plan.row.follows is not None:
        (before,) = (one for one in table.rows if one.row.name == plan.row.follows)
        return [*_origin_notes(table, before), *_length_notes(before)]
    own = table.pretrain
    if own is None or not table.starts_itself(plan):
        return [*set_notes(plan), *_weights_notes(str(option(plan.config, "init_from")))]
    names = (own.teacher.image.name, own.teacher.text.name)
    return [*set_notes(plan), *_pretraining_notes(own.data.path, names, table.scaled)]


def _length_notes(plan: RowPlan) -> list[str]:
    return [f"scaled down: {', '.join(plan.scaled)}"] if plan.scaled else []


# --- All of it ------------------------------------------------------------------------------------


def finish_table(run: Run, folders: TrialFolders, table: TablePlan) -> JobResult:
    """Read the outcome of the runs and write the table in every form.

    Returns:
        What the job prints; runs that failed and sets that are damaged are its failure.
    """
    lines, rows = [], []
    for plan in table.rows:
        waiting = [TrialRow(trial.name, trial.values, "waiting") for trial in plan.trials]
        found = read_rows(folders, plan.trials) if plan.is_run else waiting
        own = [with_episode(row) for row in found]
        rows += [_scored(plan, row) for row in own] if plan.is_run else []
        notes = _notes(table, plan)
        for line in plan.row.lines:
            among = [row for row in own if line.only.items() <= row.values.items()]
            lines.append(TableLine(plan, line, among, notes))
    cells, remarks = numbered(lines)
    title = f"The published table: {run.config.run.name}"
    # Numbers are fractions of 1, published ones percent.
    records = [{**line.record(), "notes": "; ".join(line.notes)} for line in lines]
    columns = pa.Table.from_pylist(records).drop_columns(["values"])
    write_file(run.folder.local / "table.parquet", parquet_bytes(columns))
    listed = [f"- {remark}" for remark in remarks]
    page = [f"# {title}", "", markdown_table(HEAD, cells, left=TEXTS), "", f"std: {DEVIATION}.", ""]
    run.folder.write("table.md", "\n".join([*page, *listed, ""]))
    picture = draw_beside(
        run.folder.local / "figures" / "beside_published.png",
        [line.line.title for line in lines],
        [[100 * value for value in line.spread.numbers] for line in lines],
        [line.line.published for line in lines],
    )
    story = SweepStory(
        title=title,
        job="reproduce",
        metric=SCORE,
        selection=SELECTION,
        config=dump_yaml(run.config),
        rows=rows,
        groups=spreads(rows, SCORE, over=OVER),
        summary=(HEAD, cells),
        texts=TEXTS,
        figures=[("ours beside published", picture)],
        notes=remarks,
    )
    is_short = table.scaled or any(plan.scaled for plan in table.rows)
    result = finish_trials(
        run,
        story,
        table="\n".join([text_table(HEAD, cells, left=TEXTS), "", *remarks]),
        metrics=mean_metrics({line.name: line.spread for line in lines}),
        lines=[line.record() for line in lines],
        budget="scaled down" if is_short else "full",
    )
    broken = [f"{plan.row.name}: {plan.broken}" for plan in table.rows if plan.broken]
    failures = [*broken, *([result.failure] if result.failure else [])]
    return JobResult(result.table, result.result_path, "\n".join(failures) or None)


def _scored(plan: RowPlan, row: TrialRow) -> TrialRow:
    """Return a run with the row among its values, and with its number under one name."""
    metric = metric_of(plan, plan.row.lines[0])
    number = {SCORE: row.metrics[metric]} if metric in row.metrics else {}
    own = {key: value for key, value in row.values.items() if key != "init_from"}
    values = {"row": plan.row.name, **own}
    return replace(row, values=values, metrics={**number, **row.metrics})
