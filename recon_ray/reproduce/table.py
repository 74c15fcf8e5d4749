"""The published table beside our numbers: every line states what it was measured on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from recon_ray.config.help import dump_yaml
from recon_ray.data.format.files import parquet_bytes, write_file
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, DataError
from recon_ray.figures.trials import draw_beside
from recon_ray.reproduce.paper import PRETRAINED_ON, PRETRAINING, Line
from recon_ray.reproduce.plan import RowPlan, TablePlan, scaled_down
from recon_ray.runs.folder import RunFolder
from recon_ray.sweeps.fewshot.job import with_episode
from recon_ray.sweeps.nested_config import option
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

TABLE_FILE, MARKDOWN_FILE = "table.parquet", "table.md"
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
    def name(self) -> str:
        """Name of the number in the metrics of the table."""
        only = "".join(f"_{value}{key}" for key, value in self.line.only.items())
        return f"{self.row}{only}_{self.metric}"

    @property
    def measured(self) -> str:
        """Whether the number can be compared with the published one, in few words."""
        if self.spread.numbers.empty:
            return self.absent.partition(":")[0] or "not run"
        marks = [note.partition(":")[0] for note in self.notes]
        if len(self.spread.numbers) < self.runs:
            marks.append("incomplete")
        return ", ".join(dict.fromkeys(marks)) or GENUINE

    def cells(self) -> list[str]:
        """Return the line's cells, as :data:`HEAD` names them, but for the last one."""
        numbers = self.spread.numbers
        best = numbers.max() if len(numbers) > 1 else math.nan
        return [
            self.line.title,
            mean_and_deviation(numbers, percent=True),
            shown(best, percent=True),
            f"{len(numbers)}/{self.runs}",
            self.line.shown(),
            self.measured,
        ]

    def remarks(self) -> list[str]:
        """Return what belongs to the numbers."""
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
        spread = Spread(dict(line.only), numbers_of(own, metric))
        done = [row for row in own if row.name in spread.numbers.index]
        stated = [_NUMBER.sub("", row.selection) for row in done if row.selection]
        selection = line.selection if done and line.selection else "; ".join(dict.fromkeys(stated))
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
    """Return the name of a line's number: that of voting is what the protocol reports."""
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


def table_of(lines: Sequence[TableLine]) -> pa.Table:
    """Return the lines for ``table.parquet``: fractions of 1, published numbers in percent."""
    records = [line.record() for line in lines]
    for record in records:
        record["notes"] = "; ".join(record["notes"])
        del record["values"]
    return pa.Table.from_pylist(records)


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
    """Return what is not as published about the set and the weights of a row."""
    notes = set_notes(plan)
    if plan.row.follows is not None:
        (before,) = (one for one in table.rows if one.row.name == plan.row.follows)
        short = f"scaled down: {', '.join(before.scaled)}"
        return [*_notes(table, before), *([short] if before.scaled else [])]
    if table.starts_itself(plan) and table.pretrain is not None:
        config = table.pretrain
        names = (config.teacher.image.name, config.teacher.text.name)
        scaled = scaled_down(config, PRETRAINING)
        return [*notes, *_pretraining_notes(config.data.path, names, scaled)]
    return [*notes, *_weights_notes(str(option(plan.config, "init_from")))]


# --- All of it ------------------------------------------------------------------------------------


def finish_table(run: Run, folders: TrialFolders, table: TablePlan) -> JobResult:
    """Read what became of the runs and write the table in every form.

    Args:
        run: The run of the whole.
        folders: The folders of the runs.
        table: The plan.

    Returns:
        What the job prints; runs that failed and sets that are damaged are its failure.
    """
    found = {
        row.name: row
        for plan in table.rows
        for row in (
            read_rows(folders, plan.trials)
            if plan.is_run
            else [TrialRow(trial.name, trial.values, "waiting") for trial in plan.trials]
        )
    }
    lines = [line for plan in table.rows for line in lines_of(plan, found, _notes(table, plan))]
    rows = _scored(table, found)
    cells, remarks = numbered(lines)
    title = f"The published table: {run.config.run.name}"
    write_file(run.folder.local / TABLE_FILE, parquet_bytes(table_of(lines)))
    listed = [f"- {remark}" for remark in remarks]
    page = [f"# {title}", "", markdown_table(HEAD, cells, left=TEXTS), "", f"std: {DEVIATION}.", ""]
    run.folder.write(MARKDOWN_FILE, "\n".join([*page, *listed, ""]))
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
    is_full = not any(plan.scaled for plan in table.rows)
    result = finish_trials(
        run,
        story,
        table="\n".join([text_table(HEAD, cells, left=TEXTS), "", *remarks]),
        metrics=mean_metrics({line.name: line.spread for line in lines}),
        lines=[line.record() for line in lines],
        budget="full" if is_full else "scaled down",
    )
    broken = [f"{plan.row.name}: {plan.broken}" for plan in table.rows if plan.broken]
    failures = [*broken, *([result.failure] if result.failure else [])]
    return JobResult(result.table, result.result_path, "\n".join(failures) or None)


def _scored(table: TablePlan, found: Mapping[str, TrialRow]) -> list[TrialRow]:
    """Return the runs that were to be done, each with its row, its number under one name."""
    scored = []
    for plan in table.rows:
        metric = metric_of(plan, plan.row.lines[0])
        for trial in plan.trials if plan.is_run else ():
            row = with_episode(found[trial.name])
            number = {SCORE: row.metrics[metric]} if metric in row.metrics else {}
            values = {"row": plan.row.name, **row.values}
            values.pop("init_from", None)
            scored.append(replace(row, values=values, metrics={**number, **row.metrics}))
    return scored
