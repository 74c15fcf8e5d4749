"""The driver of ``jobs/reproduce.py``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recon_ray.cli import Job, JobResult
from recon_ray.cluster.ledger import Ledger
from recon_ray.cluster.trials import Report, Trial, TrialJob
from recon_ray.config.help import dump_yaml
from recon_ray.config.schema import PretrainConfig, ReproduceConfig
from recon_ray.data.files import parquet_bytes, write_file
from recon_ray.errors import ConfigError, ReconError
from recon_ray.programs import pretrain
from recon_ray.programs.checks import check_model
from recon_ray.programs.episode_sets import SharedClouds
from recon_ray.programs.fewshot import with_episode
from recon_ray.programs.inner_jobs import option
from recon_ray.programs.report import SweepStory, write_report
from recon_ray.programs.reproduce_checks import (
    check_row,
    hashes_of,
    pretraining_notes,
    read_episodes_of,
    set_notes,
    verify_sets,
    weights_notes,
)
from recon_ray.programs.reproduce_estimates import plan_text
from recon_ray.programs.reproduce_plan import PRETRAIN, RowPlan, TablePlan, plan_table
from recon_ray.programs.reproduce_table import (
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
from recon_ray.programs.run import Run, open_run, refuse_other_config, with_name
from recon_ray.programs.sweep import finish_trials
from recon_ray.programs.trial_runs import TrialWork, run_trials
from recon_ray.programs.trial_tables import DEVIATION, TrialRow, read_rows, spreads
from recon_ray.visualize.trials import draw_beside

logger = logging.getLogger(__name__)

TABLE_FILE, MARKDOWN_FILE, SETS_FILE = "table.parquet", "table.md", "sets.json"
SELECTION = (
    "Every line is the mean over its runs, none left out, and the best of them; how each run's own "
    "number was chosen stands with the line."
)


def reproduce(job: Job[ReproduceConfig]) -> JobResult:
    """Show the plan, run what is not done, and write the table."""
    # The runs lie in the run's folder, whose name may still have to be made.
    named = with_name("reproduce", job.config, label="table")
    ledger = _ledger(f"{named.run.storage.rstrip('/')}/{named.run.name}")
    table = plan_table(named, job.origins, ledger.storage)
    run = open_run("reproduce", table.config, label="table", resume=table.config.resume)
    has_weights = table.pretrain is None or _is_done(run, ledger, PRETRAIN)
    fault = None if has_weights else _pretraining_fault(table)
    if fault is not None and not job.dry_run:
        raise fault
    table = _checked(table, has_weights=has_weights)
    text = plan_text(
        table,
        ledger,
        fresh=run.resume == "never",
        has_weights=has_weights,
        fault="" if fault is None else str(fault),
    )
    if job.dry_run:
        return JobResult(f"dry run: nothing was run\n{text}")
    logger.info("the plan:\n%s", text)
    table = replace(table, rows=tuple(verify_sets(table.rows)))
    _begin(run, ledger, table)
    if table.pretrain is not None and not has_weights:
        _pretrain(run, table.pretrain)
        table = _checked(table, has_weights=True)
    _run_rows(run, ledger, table)
    return _finish(run, ledger, table)


def _ledger(uri: str) -> Ledger:
    return Ledger(uri if "://" in uri else str(Path(uri).absolute()))


def _is_done(run: Run, ledger: Ledger, name: str) -> bool:
    return run.resume != "never" and ledger.status(name) == "done"


def _pretraining_fault(table: TablePlan) -> ReconError | None:
    """What is missing for the pre-training, without which there is nothing to start from."""
    config = table.pretrain
    assert config is not None
    try:
        check_model(config)
        pretrain.make_task(config, pretrain.open_set(config))
    except ReconError as error:
        return type(error)(f"{PRETRAIN}.{error}")
    return None


def _checked(table: TablePlan, *, has_weights: bool) -> TablePlan:
    """See which rows can be run; those by voting need the ones that they follow."""
    plans: dict[str, RowPlan] = {}
    for plan in table.rows:
        checked = check_row(plan, has_weights=has_weights or not _is_own(table, plan))
        if plan.row.follows is not None and checked.is_run:
            before = plans[plan.row.follows]
            checked = replace(checked, missing=before.missing, broken=before.broken)
        plans[plan.row.name] = checked
    return replace(table, rows=tuple(plans.values()))


def _is_own(table: TablePlan, plan: RowPlan) -> bool:
    """Whether a row starts from the pre-training of this table."""
    own = table.pretrain
    start = f"{own.run.storage}/{own.run.name}" if own is not None else None
    return start is not None and option(plan.config, "init_from") == start


def _begin(run: Run, ledger: Ledger, table: TablePlan) -> None:
    """Begin the run and note which sets it is measured on.

    Raises:
        ConfigError: If finished runs are of another configuration, or a set was prepared again
            since.
    """
    now = hashes_of(table.rows)
    text = None if run.resume == "never" else run.folder.read(SETS_FILE)
    before: dict[str, str] = {} if text is None else json.loads(text)
    works = _works(ledger, table.rows)
    for plan in table.rows:
        for trial in plan.trials:
            if plan.is_run and _is_done(run, ledger, trial.name):
                refuse_other_config(
                    ledger.folder(trial.name), works[plan.row.name].config_of(trial)
                )
    changed = [name for name, value in now.items() if before.get(name, value) != value]
    if changed:
        raise ConfigError(
            f"sets.{changed[0]}.path: the set was prepared again since {ledger.uri} was begun, "
            "whose finished runs would not belong to it; choose another run.name, or resume=never"
        )
    run.begin()
    run.folder.write(SETS_FILE, json.dumps({**before, **now}, indent=2) + "\n")


# --- Running --------------------------------------------------------------------------------------


def _pretrain(run: Run, config: PretrainConfig) -> None:
    logger.info("pre-training first, in %s/%s", config.run.storage, config.run.name)
    pretrain.pretrain(Job("pretrain", config, {}, ()))


@dataclass(frozen=True)
class TableWork:
    """What the runs of all rows do; picklable.

    Attributes:
        works: What those of a row do.
        row_of: Row of every run.
    """

    works: Mapping[str, TrialWork]
    row_of: Mapping[str, str]

    def __call__(
        self,
        trial: Trial,
        shared: Any,  # noqa: ANN401 - clouds of the episodes, or nothing
        threads: int,
        report: Report,
    ) -> dict[str, float]:
        """Run the job of the run's row."""
        return self.works[self.row_of[trial.name]](trial, shared, threads, report)


def _run_rows(run: Run, ledger: Ledger, table: TablePlan) -> None:
    """Run all rows at once, then those that evaluate what the others have trained."""
    plans = [plan for plan in table.rows if plan.is_run]
    shared = next((read_episodes_of(plan) for plan in plans if plan.episodes), None)
    first = [plan for plan in plans if plan.row.follows is None]
    job = _trial_job(ledger, table.config, plans, shared)
    run_trials(job, table.config.cluster, [t for plan in first for t in plan.trials], run=run)
    then = [
        trial
        for plan in plans
        if plan.row.follows is not None
        for trial in plan.trials
        if ledger.status(Path(str(trial.values["init_from"])).name) == "done"
    ]
    if not then:
        return
    job = _trial_job(ledger, table.config, plans, None)
    run_trials(job, table.config.cluster, then, run=run)


def _trial_job(
    ledger: Ledger,
    config: ReproduceConfig,
    plans: Sequence[RowPlan],
    shared: SharedClouds | None,
) -> TrialJob:
    return TrialJob(
        run=TableWork(
            _works(ledger, plans), {t.name: plan.row.name for plan in plans for t in plan.trials}
        ),
        folder=ledger.uri,
        section="reproduce",
        options=config.reproduce,
        metric=SCORE,
        mode="max",
        device=config.runtime.device,
        shared=shared,
        shared_bytes=0 if shared is None else shared.nbytes,
    )


def _works(ledger: Ledger, plans: Sequence[RowPlan]) -> dict[str, TrialWork]:
    return {
        plan.row.name: TrialWork(
            plan.row.job,
            plan.config,
            ledger.storage,
            "val/instance_miou" if plan.row.job == "partseg" else "val/accuracy",
        )
        for plan in plans
    }


# --- What came out --------------------------------------------------------------------------------


def _finish(run: Run, ledger: Ledger, table: TablePlan) -> JobResult:
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


#: Values that make no other group of runs.
OVER = ("run.seed", "init_from", "fold", "train.global_batch_size")


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
    if _is_own(table, plan) and table.pretrain is not None:
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
