"""Driver of ``jobs/sweep.py``: the trials of a sweep, their tables and the report."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import reduce
from operator import getitem

import yaml

from recon_ray.config.fields import nearest, option
from recon_ray.config.help import dump_yaml
from recon_ray.errors import ReconError
from recon_ray.sweeps.config import SweepConfig
from recon_ray.sweeps.optuna_search import OptunaSource
from recon_ray.sweeps.report import SweepStory, finish_trials
from recon_ray.sweeps.sweep_plan import Plan, makes_set, plan_sweep
from recon_ray.sweeps.tables import TrialRow, ranked, read_rows, spreads, text_table
from recon_ray.sweeps.trial import TrialWork, refuse_stale, run_trials
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial, TrialJob
from recon_ray.tasks.input_hashes import SETS, WEIGHTS
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import open_set
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run


def sweep(job: Job[SweepConfig]) -> JobResult:
    """Run the trials, compare them, and write tables and report."""
    plan = plan_sweep(job.config, job.origins)
    config = plan.config
    if job.dry_run:
        return _dry_run(plan)
    run = open_run("sweep", config, label=config.job, resume=config.resume)
    folders = TrialFolders(run.folder.place)
    work = TrialWork(
        config.job,
        plan.base,
        folders.storage,
        config.sweep.watch,
        reports_all=config.sweep.is_stopping,
        is_nested=plan.is_nested,
    )
    trial_job = _trial_job(plan, folders, work)
    if isinstance(plan.base, PretrainConfig) and makes_set(plan.base):
        open_set(plan.base)  # once, before the trials find none and make it side by side
    is_search = config.sweep.search == "optuna"
    trials = _trials_on_disk(run, plan, folders) if is_search else plan.trials
    called = {name: f"config.{name}" for name in (*SETS, WEIGHTS)}
    refuse_stale(run, folders, trials, work.config_of, called=called)
    if is_search:
        source, samples = _optuna(plan, folders, trials), config.sweep.samples
        run_trials(trial_job, config.cluster, trials, run=run, source=source, samples=samples)
        trials = _trials_on_disk(run, plan, folders)
    else:
        run_trials(trial_job, config.cluster, trials, run=run)
    return _finish(run, plan, read_rows(folders, trials))


def _dry_run(plan: Plan) -> JobResult:
    head = ["trial", *plan.space]
    rows = [[t.name, *map(str, t.values.values())] for t in plan.trials]
    table = text_table(head, rows) if rows else "values are proposed by Optuna while it runs"
    kind = "one process each" if not plan.is_nested else "a Ray Train run each"
    what = f"{len(rows) or plan.config.sweep.samples} trials of jobs/{plan.config.job}.py, {kind}"
    return JobResult(f"dry run: {what}; every value is legal, nothing was run\n{table}")


# --- Running --------------------------------------------------------------------------------------


def _trial_job(plan: Plan, folders: TrialFolders, work: TrialWork) -> TrialJob:
    options, base = plan.config.sweep, plan.base
    return TrialJob(
        run=work,
        folders=folders,
        section="sweep",
        options=options,
        metric=plan.metric,
        mode=options.mode,
        device=base.runtime.device,
        inner=base.cluster if plan.is_nested else None,
        epochs=int(option(base, "train.epochs")) if options.is_stopping else 0,
    )


def _optuna(plan: Plan, folders: TrialFolders, begun: Sequence[Trial]) -> OptunaSource:
    """Return Optuna's proposals after the trials on disk."""
    options, earlier, unfinished = plan.config.sweep, [], []
    for trial in begun:
        if folders.has_ended(trial.name):
            metrics = (folders.result(trial.name) or {"metrics": {}})["metrics"]
            earlier.append((trial.values, metrics.get(plan.metric)))
        else:
            unfinished.append((trial.name, trial.values))
    return OptunaSource(plan.space, options, plan.metric, earlier=earlier, unfinished=unfinished)


def _trials_on_disk(run: Run, plan: Plan, folders: TrialFolders) -> list[Trial]:
    """Return the trials that were begun, with the values of their own configurations."""
    trials = []
    for name in [] if run.resume == "never" and not run.has_begun else folders.names():
        content = yaml.safe_load(folders.folder(name).read("config.yaml") or "{}")
        values = {key: reduce(getitem, key.split("."), content) for key in plan.space}
        trials.append(Trial(name, values))
    return trials


# --- Results --------------------------------------------------------------------------------------


def _finish(run: Run, plan: Plan, rows: list[TrialRow]) -> JobResult:
    config, metric = plan.config, plan.metric
    _check_metric(rows, metric)
    story = SweepStory(
        title=f"Sweep {run.config.run.name}",
        job=config.job,
        metric=metric,
        selection=_selection(plan, rows),
        config=dump_yaml(run.config),
        rows=rows,
        groups=ranked(spreads(rows, metric), config.sweep.mode),
    )
    return finish_trials(run, story)


def _selection(plan: Plan, rows: Sequence[TrialRow]) -> str:
    """Return what the numbers of the trials are, and what choosing among them means."""
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
