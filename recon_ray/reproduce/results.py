"""What the runs of the published table gave: the table in every form, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from recon_ray.config.help import dump_yaml
from recon_ray.data.format.files import parquet_bytes, write_file
from recon_ray.figures.trials import draw_beside
from recon_ray.reproduce.paper_table import (
    HEAD,
    SCORE,
    TEXTS,
    TableLine,
    lines_of,
    markdown_of,
    metric_of,
    numbered,
    table_of,
    text_of,
)
from recon_ray.reproduce.plan import RowPlan, TablePlan
from recon_ray.reproduce.plan_checks import pretraining_notes, set_notes, weights_notes
from recon_ray.sweeps.fewshot.job import with_episode
from recon_ray.sweeps.job import finish_trials
from recon_ray.sweeps.nested_config import option
from recon_ray.sweeps.report import SweepStory, write_report
from recon_ray.sweeps.tables import DEVIATION, TrialRow, read_rows, spreads
from recon_ray.sweeps.trial_folders import Ledger
from recon_ray.tasks.registry import JobResult
from recon_ray.tasks.run import Run

TABLE_FILE, MARKDOWN_FILE = "table.parquet", "table.md"
SELECTION = (
    "Every line is the mean over its runs, none left out, and the best of them; how each run's own "
    "number was chosen stands with the line."
)
#: Values that make no other group of runs.
OVER = ("run.seed", "init_from", "fold", "train.global_batch_size")


def finish_table(run: Run, ledger: Ledger, table: TablePlan) -> JobResult:
    """Read what became of the runs and write the table in every form.

    Args:
        run: The run of the whole.
        ledger: The folders of the runs.
        table: The plan.

    Returns:
        What the job prints; runs that failed and sets that are damaged are its failure.
    """
    found = {
        row.name: row
        for plan in table.rows
        for row in (read_rows(ledger, plan.trials) if plan.is_run else _not_run(plan))
    }
    lines = [line for plan in table.rows for line in lines_of(plan, found, _notes(table, plan))]
    rows = _scored(table, found)
    text = text_of(lines)
    cells, remarks = numbered(lines)
    title = f"The published table: {run.config.run.name}"
    story = SweepStory(
        title=title,
        job="reproduce",
        metric=SCORE,
        mode="max",
        selection=SELECTION,
        config=dump_yaml(run.config),
        rows=rows,
        groups=spreads(rows, SCORE, over=OVER),
        summary=(HEAD, cells),
        texts=TEXTS,
        figures=[("ours beside published", _draw(run, lines))],
        notes=remarks,
    )
    write_file(run.folder.local / TABLE_FILE, parquet_bytes(table_of(lines)))
    run.folder.write(MARKDOWN_FILE, markdown_of(lines, title, DEVIATION))
    result = finish_trials(
        run,
        rows,
        story.groups,
        story,
        report=write_report(run.folder, ledger, story),
        table=text,
        metrics=_metrics(lines),
        more={"lines": [line.record() for line in lines], "budget": table.config.reproduce.budget},
    )
    return JobResult(result.table, result.result_path, _failure(table, result.failure))


def _not_run(plan: RowPlan) -> list[TrialRow]:
    return [TrialRow(trial.name, trial.values, "waiting") for trial in plan.trials]


def _scored(table: TablePlan, found: Mapping[str, TrialRow]) -> list[TrialRow]:
    """The runs that were to be done, each with its row and with its number under one name."""
    scored = []
    for plan in table.rows:
        if not plan.is_run:
            continue
        metric = metric_of(plan, plan.row.lines[0])
        for trial in plan.trials:
            row = with_episode(found[trial.name])
            number = {SCORE: row.metrics[metric]} if metric in row.metrics else {}
            values = {"row": plan.row.name, **row.values}
            values.pop("init_from", None)
            scored.append(replace(row, values=values, metrics={**number, **row.metrics}))
    return scored


def _notes(table: TablePlan, plan: RowPlan) -> list[str]:
    """What is not as published about the set and the weights of a row."""
    notes = set_notes(plan)
    if plan.row.follows is not None:
        (before,) = (one for one in table.rows if one.row.name == plan.row.follows)
        short = f"scaled down: {', '.join(before.scaled)}"
        return [*_notes(table, before), *([short] if before.scaled else [])]
    if table.starts_itself(plan) and table.pretrain is not None:
        config = table.pretrain
        names = (config.teacher.image.name, config.teacher.text.name)
        return [*notes, *pretraining_notes(config.data.path, names, table.scaled)]
    return [*notes, *weights_notes(str(option(plan.config, "init_from")))]


def _draw(run: Run, lines: Sequence[TableLine]) -> Path:
    return draw_beside(
        run.folder.local / "figures" / "beside_published.png",
        [line.line.title for line in lines],
        [[100 * value for value in line.spread.numbers] for line in lines],
        [line.line.published for line in lines],
    )


def _metrics(lines: Sequence[TableLine]) -> dict[str, float]:
    """Mean and deviation of every line that has numbers."""
    found: dict[str, float] = {}
    for line in lines:
        only = "".join(f"_{value}{key}" for key, value in line.line.only.items())
        name = f"{line.row}{only}_{line.metric}"
        pairs = ((name, line.spread.mean), (f"{name}_std", line.spread.deviation))
        found |= {key: value for key, value in pairs if value == value}
    return found


def _failure(table: TablePlan, runs: str | None) -> str | None:
    broken = [f"{plan.row.name}: {plan.broken}" for plan in table.rows if plan.broken]
    parts = [*broken, *([runs] if runs else [])]
    return "\n".join(parts) or None
