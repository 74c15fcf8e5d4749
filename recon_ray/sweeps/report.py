"""The report of a sweep: one HTML file with tables, curves and every parameter's plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ray.errors import CheckpointError
from recon_ray.figures.canvas import SERIES_COLORS
from recon_ray.figures.html_report import Report
from recon_ray.figures.trials import Curve, draw_parameter, draw_trial_curves
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records
from recon_ray.runs.storage import join
from recon_ray.sweeps.tables import (
    DEVIATION,
    Spread,
    TrialRow,
    is_fraction,
    shown,
    summary_cells,
    written,
)
from recon_ray.sweeps.trial_folders import Ledger

#: Charts of curves at most, and points of a curve that are drawn.
MOST_CHARTS, MOST_POINTS = 6, 400
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class SweepStory:
    """What a report tells.

    Attributes:
        title: Heading.
        job: Job of the trials.
        metric: What compares them.
        mode: ``max`` or ``min``.
        selection: How the best is chosen, and what that means.
        config: The resolved configuration as YAML.
        rows: All trials.
        groups: Configurations, the best first.
        summary: Heading and rows of the summary where it is not that of the groups.
        texts: Columns of that summary that hold text.
        notes: What belongs to its lines.
        figures: What each further picture shows, and its file, in place of those of parameters.
    """

    title: str
    job: str
    metric: str
    mode: str
    selection: str
    config: str
    rows: Sequence[TrialRow]
    groups: Sequence[Spread]
    summary: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    texts: Sequence[int] = ()
    notes: Sequence[str] = ()
    figures: Sequence[tuple[str, Path]] = ()


def write_report(folder: RunFolder, ledger: Ledger, story: SweepStory) -> str:
    """Draw the figures of a sweep to ``figures/`` and put all of it in one file.

    Returns:
        Path or URI of the file.
    """
    report = Report(story.title)
    counts = Counter(row.status for row in story.rows)
    counted = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    report.text(f"{len(story.rows)} trials of jobs/{story.job}.py: {counted}.")
    report.text(story.selection)
    for row in story.rows:
        if row.status == "failed":
            report.text(f"{row.name} failed: {row.error}", kind="bad")
    _add_summary(report, story)
    if story.figures:
        _add_figures(report, "Pictures", story.figures)
    else:
        _add_figures(report, "Parameters", _parameter_figures(folder.local, story))
    _add_figures(report, "Curves", _curve_figures(folder.local, ledger, story))
    _add_trials(report, story)
    report.heading("Configuration")
    report.folded("config.yaml of all of it; every trial's folder has its own", story.config)
    folder.write(REPORT_FILE, report.render())
    return join(folder.place, REPORT_FILE)


def _add_summary(report: Report, story: SweepStory) -> None:
    if story.summary is None and not story.groups:
        return
    report.heading("Summary")
    if story.summary is None:
        percent = is_fraction(story.metric, story.rows)
        head, cells = summary_cells(story.groups, story.metric, percent=percent)
        report.table(head, cells, marked=(0,))
    else:
        report.table(*story.summary, texts=story.texts)
    note = f"std: {DEVIATION}."
    if any(row.status == "stopped" for row in story.rows):
        note += " Trials that were stopped early are left out here and in the plots of parameters."
    report.text(note, kind="note")
    for text in story.notes:
        report.text(text, kind="note")


def _add_figures(report: Report, heading: str, figures: Sequence[tuple[str, Path]]) -> None:
    if figures:
        report.heading(heading)
        report.figures(figures)


def _add_trials(report: Report, story: SweepStory) -> None:
    keys = list(dict.fromkeys(key for row in story.rows for key in row.values))
    percent = is_fraction(story.metric, story.rows)
    head = ["trial", "status", *keys, story.metric, "seconds"]
    cells = []
    for row in story.rows:
        value = row.metrics.get(story.metric, float("nan"))
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        values = [written(row.values[key]) if key in row.values else "" for key in keys]
        number = shown(value, percent=percent)
        cells.append([row.name, row.status, *values, number, seconds])
    report.heading("Trials")
    report.table(head, cells)


def _parameter_figures(local: Path, story: SweepStory) -> list[tuple[str, Path]]:
    """One chart an option that was varied."""
    figures = []
    done = [r for r in story.rows if r.status == "done" and story.metric in r.metrics]
    for key in dict.fromkeys(key for row in done for key in row.values):
        values = [_axis_value(row.values.get(key)) for row in done]
        if len({*values}) == 1 and len({str(row.values.get(key)) for row in story.rows}) == 1:
            continue  # the same in all trials
        results = [row.metrics[story.metric] for row in done]
        path = local / "figures" / f"by_{key.replace('.', '_')}.png"
        draw_parameter(path, key, values, results, story.metric)
        figures.append((f"{story.metric} by {key}", path))
    return figures


def _axis_value(value: Any) -> Any:  # noqa: ANN401 - any option's value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else written(value)


def _curve_figures(local: Path, ledger: Ledger, story: SweepStory) -> list[tuple[str, Path]]:
    """One chart a record: the loss of training, and what was validated."""
    group_of = {name: _group_name(group) for group in story.groups for name in group.trials}
    best = list(dict.fromkeys(_group_name(group) for group in story.groups))
    curves: dict[str, list[Curve]] = {}
    for row in story.rows:
        records = _records(ledger, row.name)
        for name in dict.fromkeys(name for record in records for name in record):
            if name == "train/loss" or name.startswith("val/"):
                curve = _curve(group_of.get(row.name, row.status), records, name)
                curves.setdefault(name, []).append(curve)
    figures = []
    for name in sorted(curves)[:MOST_CHARTS]:
        if max(len(curve.steps) for curve in curves[name]) > 1:
            path = local / "figures" / f"curves_{name.replace('/', '_')}.png"
            drawn = {curve.group for curve in curves[name]}
            colored = [group for group in best if group in drawn][: len(SERIES_COLORS)]
            draw_trial_curves(path, curves[name], name, shown=colored)
            figures.append((name, path))
    return figures


def _records(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    try:
        return read_records(ledger.folder(name))
    except (CheckpointError, json.JSONDecodeError):
        return []


def _curve(group: str, records: Sequence[dict[str, Any]], name: str) -> Curve:
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    points = points[:: max(1, len(points) // MOST_POINTS)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return Curve(group, steps, values)


def _group_name(group: Spread) -> str:
    parts = [f"{key.rpartition('.')[2]} {written(value)}" for key, value in group.values.items()]
    return ", ".join(parts) or "all seeds"
