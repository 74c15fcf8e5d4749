"""The driver of ``jobs/sweep.py``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import yaml

from recon_ray.config.fields import nearest
from recon_ray.config.help import dump_yaml
from recon_ray.data.format.files import parquet_bytes, write_file
from recon_ray.errors import ReconError
from recon_ray.runs.storage import join
from recon_ray.sweeps.config import SweepConfig
from recon_ray.sweeps.nested_config import option
from recon_ray.sweeps.optuna_search import OptunaSource
from recon_ray.sweeps.ray_tune import run_on_ray
from recon_ray.sweeps.report import REPORT_FILE, SweepStory, write_report
from recon_ray.sweeps.search_space import Domain
from recon_ray.sweeps.sweep_plan import Plan, makes_set, plan_sweep
from recon_ray.sweeps.tables import (
    DEVIATION,
    Spread,
    TrialRow,
    is_fraction,
    ranked,
    read_rows,
    spreads,
    summary_cells,
    text_table,
    trials_table,
)
from recon_ray.sweeps.trial import TrialWork, announce, refuse_stale, run_trials
from recon_ray.sweeps.trial_folders import Ledger
from recon_ray.sweeps.trial_placement import (
    EarlyStopping,
    Trial,
    TrialJob,
    plan_trials,
    trial_session,
)
from recon_ray.sweeps.trial_progress import TrialProgress
from recon_ray.tasks.input_hashes import SETS, WEIGHTS
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import open_set
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run

logger = logging.getLogger(__name__)

TRIALS_FILE = "trials.parquet"
#: Configurations that the table on the terminal shows, and failed trials that the error names.
SHOWN_GROUPS, SHOWN_FAILURES = 12, 6


def sweep(job: Job[SweepConfig]) -> JobResult:
    """Run the trials, compare them, and write tables and report."""
    plan = plan_sweep(job.config, job.origins)
    config = plan.config
    if job.dry_run:
        return _dry_run(plan)
    run = open_run("sweep", config, label=config.job, resume=config.resume)
    trial_job = _trial_job(plan, run.folder.place)
    if isinstance(plan.base, PretrainConfig) and makes_set(plan.base):
        open_set(plan.base)  # once, before the trials find none and make it side by side
    trials = plan.trials
    if config.sweep.search == "optuna":
        trials = _search(run, plan, trial_job)
    else:
        _refuse_stale(run, plan, trial_job, trials)
        run_trials(trial_job, config.cluster, trials, run=run)
    return _finish(run, plan, read_rows(trial_job.ledger, trials))


def _refuse_stale(run: Run, plan: Plan, job: TrialJob, trials: Sequence[Trial]) -> None:
    names = {name: f"config.{name}" for name in (*SETS, WEIGHTS)}
    work = _work(plan, job.ledger)
    refuse_stale(run, job.ledger, trials, work.config_of, called=names)


def _dry_run(plan: Plan) -> JobResult:
    head = ["trial", *plan.space]
    rows = [[t.name, *map(str, t.values.values())] for t in plan.trials]
    kind = "one process each" if not plan.is_nested else "a Ray Train run each"
    count = len(plan.trials) or plan.config.sweep.samples
    lines = [
        f"dry run: {count} trials of jobs/{plan.config.job}.py, {kind}; every value is legal, "
        "nothing was run",
        text_table(head, rows) if rows else "values are proposed by Optuna while it runs",
    ]
    return JobResult("\n".join(lines))


# --- Running --------------------------------------------------------------------------------------


def _trial_job(plan: Plan, place: str) -> TrialJob:
    options, base = plan.config.sweep, plan.base
    ledger = Ledger(place)
    stopping = None
    if options.scheduler != "none":
        stopping = EarlyStopping(
            options.scheduler,
            options.watch,
            options.watch_mode,
            int(option(base, "train.epochs")),
            options.grace_epochs,
            options.reduction_factor,
        )
    return TrialJob(
        run=_work(plan, ledger),
        folder=ledger.uri,
        section="sweep",
        options=options,
        metric=plan.metric,
        mode=options.mode,
        device=base.runtime.device,
        inner=base.cluster if plan.is_nested else None,
        stopping=stopping,
    )


def _work(plan: Plan, ledger: Ledger) -> TrialWork:
    options = plan.config.sweep
    return TrialWork(
        plan.config.job,
        plan.base,
        ledger.storage,
        options.watch,
        reports_all=options.scheduler != "none",
        is_nested=plan.is_nested,
    )


def _search(run: Run, plan: Plan, job: TrialJob) -> list[Trial]:
    """Let Optuna propose the trials; those on disk are told to it first."""
    ledger, options = job.ledger, plan.config.sweep
    names = [] if run.resume == "never" else ledger.names()
    begun = [(name, _values_on_disk(ledger, name, plan.space)) for name in names]
    _refuse_stale(run, plan, job, [Trial(name, values) for name, values in begun])
    earlier, unfinished = [], []
    for name, values in begun:
        if ledger.status(name) in ("done", "stopped"):
            result = ledger.result(name) or {"metrics": {}}
            earlier.append((values, result["metrics"].get(plan.metric)))
        else:
            unfinished.append((name, values))
    left = options.samples - len(earlier)
    logger.info("%d trials, %d of them are done", options.samples, len(earlier))
    if left > 0:
        board = TrialProgress(
            options.samples, plan.metric, options.mode == "max", finished=len(earlier)
        )
        with trial_session(job, plan.config.cluster, left):
            source = OptunaSource(
                plan.space,
                count=options.samples,
                seed=options.seed,
                metric=plan.metric,
                mode=options.mode,
                earlier=earlier,
                unfinished=unfinished,
            )
            fitting = plan_trials(job, plan.config.cluster, left)
            run.begin()
            announce(fitting)
            run_on_ray(job, fitting, board, source=source)
    else:
        run.begin()
    names = ledger.names()
    return [Trial(name, _values_on_disk(ledger, name, plan.space)) for name in names]


def _values_on_disk(ledger: Ledger, name: str, space: Mapping[str, Domain]) -> dict[str, Any]:
    """The values of a trial, from its own configuration."""
    content = yaml.safe_load(ledger.folder(name).read("config.yaml") or "{}")
    values = {}
    for key in space:
        value: Any = content
        for part in key.split("."):
            value = value[part]
        values[key] = value
    return values


# --- What came out --------------------------------------------------------------------------------


def _finish(run: Run, plan: Plan, rows: list[TrialRow]) -> JobResult:
    config, metric = plan.config, plan.metric
    groups = ranked(spreads(rows, metric), config.sweep.mode)
    _check_metric(rows, metric)
    text = _selection(plan, rows)
    story = SweepStory(
        title=f"Sweep {run.config.run.name}",
        job=config.job,
        metric=metric,
        mode=config.sweep.mode,
        selection=text,
        config=dump_yaml(run.config),
        rows=rows,
        groups=groups,
    )
    report = write_report(run.folder, Ledger(run.folder.uri), story)
    return finish_trials(run, rows, groups, story, report=report)


def finish_trials(
    run: Run,
    rows: Sequence[TrialRow],
    groups: Sequence[Spread],
    story: SweepStory,
    *,
    report: str,
    table: str | None = None,
    metrics: Mapping[str, float] | None = None,
    more: Mapping[str, Any] | None = None,
) -> JobResult:
    """Write ``trials.parquet`` and ``result.json``; a failed trial fails the job.

    Args:
        run: The run.
        rows: All trials.
        groups: Configurations, the best first.
        story: What the report told.
        report: Path or URI of its file.
        table: Table for the terminal; by default the best configurations.
        metrics: Numbers of the whole; by default those of the best configuration.
        more: Further records of ``result.json``.
    """
    write_file(run.folder.local / TRIALS_FILE, parquet_bytes(trials_table(rows)))
    percent = is_fraction(story.metric, rows)
    if table is None:
        table = text_table(*summary_cells(groups[:SHOWN_GROUPS], story.metric, percent=percent))
    failed = [row for row in rows if row.status in ("failed", "waiting")]
    counts = {
        status: sum(row.status == status for row in rows)
        for status in ("done", "stopped", "failed", "waiting")
    }
    result = run.finish(
        dict(_best(groups, story.metric) if metrics is None else metrics),
        table=f"{table}\n\n{report}",
        selection=story.selection,
        counts={"trials": len(rows), **counts},
        trials=[_record(row, Ledger(run.folder.uri)) for row in rows],
        summary=[group.record() for group in groups],
        deviation=DEVIATION,
        metric=story.metric,
        report=REPORT_FILE,
        **(more or {}),
    )
    failure = _failure(failed, len(rows), run.folder.uri) if failed else None
    return JobResult(result.table, result.result_path, failure)


def _best(groups: Sequence[Spread], metric: str) -> dict[str, float]:
    if not groups:
        return {}
    best = groups[0]
    numbers = {metric: best.mean, f"{metric}_std": best.deviation}
    return {name: value for name, value in numbers.items() if value == value}


def _record(row: TrialRow, ledger: Ledger) -> dict[str, Any]:
    return {
        "trial": row.name,
        "status": row.status,
        "values": dict(row.values),
        "metrics": dict(row.metrics),
        "selection": row.selection,
        "seconds": row.seconds,
        "error": row.error or None,
        "config": join(ledger.storage, row.name, "config.yaml"),
    }


def _failure(failed: Sequence[TrialRow], total: int, uri: str) -> str:
    names = ", ".join(row.name for row in failed[:SHOWN_FAILURES])
    more = f" and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    first = next((row for row in failed if row.error), None)
    reason = "" if first is None else f"; {first.name}: {first.error}"
    return (
        f"{len(failed)} of {total} trials failed ({names}{more}){reason}; each has a failure.txt "
        f"in {join(uri, 'trials')}, and the same command runs only them again"
    )


def _selection(plan: Plan, rows: Sequence[TrialRow]) -> str:
    """What the numbers of the trials are, and what choosing among them means."""
    own = sorted({row.selection for row in rows if row.selection})
    text = f"{plan.metric} of each trial: {'; '.join(own) or 'none is done'}"
    if [*plan.space] == ["run.seed"]:
        return f"{text}. Mean over all seeds, none is left out."
    text += f". Configurations are ranked by its mean ({plan.config.sweep.mode})."
    if plan.metric.startswith("validation_"):
        return text
    return (
        f"{text} The ranking looks at the shapes that {plan.metric} is measured on: the first "
        "one's number is optimistic."
    )


def _check_metric(rows: Sequence[TrialRow], metric: str) -> None:
    """Refuse a metric that no trial has.

    Raises:
        ReconError: Naming those that there are.
    """
    done = [row for row in rows if row.status == "done"]
    names = sorted({name for row in done for name in row.metrics})
    if not done or metric in names:
        return
    near = get_close_matches(metric, names, n=1) or nearest(metric, names)
    hint = f"did you mean {near[0]}?" if near else f"they report {', '.join(names)}"
    raise ReconError(
        f"sweep.metric={metric}: no trial reports it; {hint} The same command with another "
        "sweep.metric makes the tables without running anything again"
    )
