"""Results of a job that consists of trials: its report, ``trials.parquet``, ``result.json``."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

from recon_ray.data.format.files import parquet_bytes, write_file
from recon_ray.errors import CheckpointError
from recon_ray.figures import canvas
from recon_ray.figures.trials import Curve, draw_parameter, draw_trial_curves
from recon_ray.runs.recorder import read_records
from recon_ray.storage import join
from recon_ray.sweeps.tables import (
    DEVIATION,
    Spread,
    TrialRow,
    is_fraction,
    keys_of,
    shown,
    stopped_cells,
    summary_cells,
    text_table,
    trials_table,
    written,
)
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.tasks.registry import JobResult
from recon_ray.tasks.run import Run

TRIALS_FILE, REPORT_FILE = "trials.parquet", "report.html"
#: Charts of curves at most, and points of a curve that are drawn.
MOST_CHARTS, MOST_POINTS = 6, 400
#: Configurations that the table on the terminal shows, and failed trials that the error names.
SHOWN_GROUPS, SHOWN_FAILURES = 12, 6

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class SweepStory:
    """Content of a report.

    Attributes:
        title: Heading.
        job: Job of the trials.
        metric: Number that compares them.
        selection: How the best is chosen, and what that means.
        config: The resolved configuration as YAML.
        rows: All trials.
        groups: Configurations, the best first.
        summary: Head and rows of the summary where it is not that of the groups.
        texts: Columns of that summary that hold text.
        notes: Remarks on its lines.
        faults: What went wrong besides trials, in sentences.
        figures: Title and file of further pictures, in place of those of parameters.
    """

    title: str
    job: str
    metric: str
    selection: str
    config: str
    rows: Sequence[TrialRow]
    groups: Sequence[Spread]
    summary: Table | None = None
    texts: Sequence[int] = ()
    notes: Sequence[str] = ()
    faults: Sequence[str] = ()
    figures: Sequence[tuple[str, Path]] = ()

    @property
    def is_percent(self) -> bool:
        """Return whether the metric is shown in percent."""
        return is_fraction(self.metric, self.rows)

    def cells(self, groups: Sequence[Spread]) -> Table:
        """Return head and rows of the summary of some configurations."""
        return summary_cells(groups, self.metric, percent=self.is_percent)


def finish_trials(
    run: Run,
    story: SweepStory,
    *,
    table: str | None = None,
    metrics: Mapping[str, float] | None = None,
    **more: Any,  # noqa: ANN401 - further records of the job
) -> JobResult:
    """Write report, ``trials.parquet`` and ``result.json``; a failed trial fails the job.

    By default the table for the terminal is that of the best configurations with the trials that
    were stopped early, and the metrics are those of the best one; ``more`` are further records of
    ``result.json``, whose status is ``incomplete`` while anything is to be run again.
    """
    rows, folders = story.rows, TrialFolders(run.folder.uri)
    run.folder.write(REPORT_FILE, report_page(run.folder.local, folders, story))
    write_file(run.folder.local / TRIALS_FILE, parquet_bytes(trials_table(rows)))
    if table is None:
        table = "\n".join([text_table(*story.cells(story.groups[:SHOWN_GROUPS])), *story.notes])
        head, cells = stopped_cells(rows)
        if cells:
            more_cells = f"\nand {len(cells) - SHOWN_GROUPS} more, see the report"
            own = text_table(head, cells[:SHOWN_GROUPS], left=[len(head) - 1])
            table += f"\n\n{own}{more_cells if len(cells) > SHOWN_GROUPS else ''}"
    if metrics is None:
        metrics = mean_metrics({story.metric: story.groups[0]} if story.groups else {})
    counted = Counter(row.status for row in rows)
    faults = [*story.faults, *_failure(rows, folders)]
    result = run.finish(
        metrics,
        table=f"{table}\n\n{join(run.folder.place, REPORT_FILE)}",
        selection=story.selection,
        counts={
            "trials": len(rows),
            **{status: counted[status] for status in ("done", "stopped", "failed", "waiting")},
        },
        trials=[_record(row, folders) for row in rows],
        summary=[group.record() for group in story.groups],
        deviation=DEVIATION,
        metric=story.metric,
        notes=list(story.notes),
        report=REPORT_FILE,
        status="incomplete" if faults else "done",
        **more,
    )
    return JobResult(result.table, result.result_path, "\n".join(faults) or None)


def mean_metrics(groups: Mapping[str, Spread]) -> dict[str, float]:
    """Return mean and deviation of every group that has numbers, as ``<name>``, ``<name>_std``."""
    numbers: dict[str, float] = {}
    for name, group in groups.items():
        numbers |= {name: group.mean, f"{name}_std": group.deviation}
    return {name: value for name, value in numbers.items() if value == value}


def _record(row: TrialRow, folders: TrialFolders) -> dict[str, Any]:
    return {
        "trial": row.name,
        "status": row.status,
        "values": dict(row.values),
        "metrics": dict(row.metrics),
        "selection": row.selection,
        "seconds": row.seconds,
        "error": row.error or None,
        "epoch": row.epoch,
        "reason": row.reason or None,
        "config": join(folders.storage, row.name, "config.yaml"),
    }


def _failure(rows: Sequence[TrialRow], folders: TrialFolders) -> Iterator[str]:
    """Return a sentence on the trials that have no result, if there are any."""
    failed = [row for row in rows if row.status in ("failed", "waiting")]
    if not failed:
        return
    names = ", ".join(row.name for row in failed[:SHOWN_FAILURES])
    more = f" and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    reason = next((f"; {row.name}: {row.error}" for row in failed if row.error), "")
    what, log = ("failed", "failure.txt") if reason else ("did not end", "trial.log")
    yield (
        f"{len(failed)} of {len(rows)} trials {what} ({names}{more}){reason}; see {log} of each in "
        f"{folders.storage}; the same command runs only them again"
    )


# --- The page -------------------------------------------------------------------------------------


def report_page(local: Path, folders: TrialFolders, story: SweepStory) -> str:
    """Draw the figures of the trials to ``figures/`` and return the page with all of it."""
    environment = Environment(
        loader=PackageLoader("recon_ray.sweeps", ""), autoescape=True, trim_blocks=True
    )
    summary = story.summary or (story.cells(story.groups) if story.groups else None)
    figures = {
        "Pictures" if story.figures else "Parameters": (
            story.figures or _parameter_figures(local, story)
        ),
        "Curves": _curve_figures(local, folders, story),
    }
    return environment.get_template("report.html.j2").render(
        story=story,
        canvas=canvas,
        deviation=DEVIATION,
        summary=summary,
        trials=_trial_cells(story),
        figures={
            heading: [(alt, base64.b64encode(path.read_bytes()).decode()) for alt, path in pictures]
            for heading, pictures in figures.items()
        },
    )


def _trial_cells(story: SweepStory) -> Table:
    keys, cells = keys_of(story.rows), []
    for row in story.rows:
        values = [written(row.values[key]) if key in row.values else "" for key in keys]
        number = shown(row.metrics.get(story.metric, float("nan")), percent=story.is_percent)
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        cells.append([row.name, row.status, *values, number, seconds, row.note])
    return ["trial", "status", *keys, story.metric, "seconds", "note"], cells


def _parameter_figures(local: Path, story: SweepStory) -> list[tuple[str, Path]]:
    """Draw one chart an option that was varied."""
    figures = []
    done = [r for r in story.rows if r.status == "done" and story.metric in r.metrics]
    for key in keys_of(done):
        own = [row.values.get(key) for row in done]
        values = [v if type(v) in (int, float) else written(v) for v in own]
        if len({*values}) == 1 and len({str(row.values.get(key)) for row in story.rows}) == 1:
            continue  # the same in all trials
        results = [row.metrics[story.metric] for row in done]
        path = local / "figures" / f"by_{key.replace('.', '_')}.png"
        draw_parameter(path, key, values, results, story.metric)
        figures.append((f"{story.metric} by {key}", path))
    return figures


def _curve_figures(local: Path, folders: TrialFolders, story: SweepStory) -> list[tuple[str, Path]]:
    """Draw one chart a record: the loss of training, and what was validated."""
    group_of = {name: _title(group) for group in story.groups for name in group.numbers.index}
    best = list(dict.fromkeys(_title(group) for group in story.groups))
    curves: dict[str, list[Curve]] = {}
    for row in story.rows:
        frame, group = pd.DataFrame(_records(folders, row.name)), group_of.get(row.name, row.status)
        for name in frame.columns:
            if name == "train/loss" or name.startswith("val/"):
                values = frame.set_index("step")[name].dropna()
                values = values[:: max(1, len(values) // MOST_POINTS)]
                curves.setdefault(name, []).append(Curve(group, values.index, values))
    figures = []
    for name in sorted(curves)[:MOST_CHARTS]:
        if max(len(curve.steps) for curve in curves[name]) > 1:
            path = local / "figures" / f"curves_{name.replace('/', '_')}.png"
            drawn = {curve.group for curve in curves[name]}
            colored = [group for group in best if group in drawn][: len(canvas.SERIES_COLORS)]
            draw_trial_curves(path, curves[name], name, shown=colored)
            figures.append((name, path))
    return figures


def _records(folders: TrialFolders, name: str) -> list[dict[str, Any]]:
    try:
        return read_records(folders.folder(name))
    except (CheckpointError, json.JSONDecodeError):
        return []


def _title(group: Spread) -> str:
    parts = [f"{key.rpartition('.')[2]} {written(value)}" for key, value in group.values.items()]
    return ", ".join(parts) or "all seeds"
