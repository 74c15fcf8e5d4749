"""Driver of ``jobs/reproduce.py``: the runs of the published table that are not done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from recon_ray.errors import ReconError
from recon_ray.reproduce.config import ReproduceConfig
from recon_ray.reproduce.plan import (
    PRETRAIN,
    RowPlan,
    TablePlan,
    check_rows,
    disk_of,
    plan_table,
    plan_text,
    read_episodes_of,
    verify_sets,
)
from recon_ray.reproduce.table import SCORE, finish_table
from recon_ray.storage import absolute, join, split
from recon_ray.sweeps.trial import TrialWork, refuse_stale, run_trials
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial, TrialJob
from recon_ray.tasks.config_checks import check_model
from recon_ray.tasks.input_hashes import SETS, inputs_of
from recon_ray.tasks.pretrain import job as pretrain
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run, refuse_other_config, with_name
from recon_ray.tasks.start_weights import resolve

logger = logging.getLogger(__name__)


def reproduce(job: Job[ReproduceConfig]) -> JobResult:
    """Show the plan, run what is not done, and write the table."""
    # The runs lie in the run's folder, whose name may still have to be made.
    named = with_name("reproduce", job.config, label="table")
    folders = TrialFolders(absolute(join(named.run.storage, str(named.run.name))))
    table = plan_table(named, job.origins, folders.storage)
    run = open_run("reproduce", table.config, label="table", resume=table.config.resume)
    has_weights = table.pretrain is None or _is_done(run, folders, PRETRAIN)
    fault = None if has_weights else _pretraining_fault(table)
    if fault is not None and not job.dry_run:
        raise fault
    table = check_rows(table, has_weights=has_weights)
    fresh = run.resume == "never"
    disk = disk_of(table, folders, fresh=fresh, has_weights=has_weights)
    text = plan_text(
        table,
        folders,
        disk,
        fresh=fresh,
        has_weights=has_weights,
        fault=str(fault or ""),
    )
    if job.dry_run:
        return JobResult(f"dry run: nothing was run\n{text}")
    logger.info("the plan:\n%s", text)
    disk.warn()
    table = replace(table, rows=tuple(verify_sets(table.rows)))
    _begin(run, folders, table)
    if table.pretrain is not None and not has_weights:
        place = join(table.pretrain.run.storage, PRETRAIN)
        logger.info("pre-training first, in %s", place)
        pretrain.pretrain(Job("pretrain", table.pretrain))
        table = check_rows(table, has_weights=True)
    _run_rows(run, folders, table)
    return finish_table(run, folders, table)


def _is_done(run: Run, folders: TrialFolders, name: str) -> bool:
    return run.resume != "never" and folders.status(name) == "done"


def _pretraining_fault(table: TablePlan) -> ReconError | None:
    """Return the reason why the pre-training cannot run, without which nothing can start."""
    config = table.pretrain
    assert config is not None
    try:
        check_model(config)
        pretrain.make_task(config, pretrain.open_set(config))
    except ReconError as error:
        return type(error)(f"{PRETRAIN}.{error}")
    return None


def _begin(run: Run, folders: TrialFolders, table: TablePlan) -> None:
    """Begin the run unless what is done in it belongs to something else.

    Raises:
        ConfigError: If finished runs are of another configuration, or a set was prepared again, or
            weights trained again, since.
    """
    works = _works(folders, table.rows)
    own = table.pretrain
    if own is not None:
        called = {name: f"{PRETRAIN}.{name}" for name in SETS}
        refuse_stale(run, folders, [Trial(PRETRAIN, {})], lambda _: own, called=called)
    for plan in table.rows:
        if not plan.is_run:
            continue
        config_of = works[plan.row.name].config_of
        for trial in plan.trials:
            if _is_done(run, folders, trial.name):
                config = resolve(config_of(trial))
                refuse_other_config(folders.folder(trial.name), config, inputs_of(config))
        called = {"data.path": f"sets.{plan.row.set}.path", "data.episodes": "sets.episodes"}
        refuse_stale(run, folders, plan.trials, config_of, called=called)
    run.begin()


# --- Running --------------------------------------------------------------------------------------


def _run_rows(run: Run, folders: TrialFolders, table: TablePlan) -> None:
    """Run all rows at once, then those that evaluate what the others have trained."""
    plans = [plan for plan in table.rows if plan.is_run]
    shared = next((read_episodes_of(plan) for plan in plans if plan.episodes), None)
    first = [plan for plan in plans if plan.row.follows is None]
    works = _works(folders, plans)
    work_of = {t.name: works[plan.row.name] for plan in plans for t in plan.trials}
    job = TrialJob(
        run=lambda trial, *others: work_of[trial.name](trial, *others),
        folders=folders,
        section="reproduce",
        options=table.config.reproduce,
        metric=SCORE,
        device=table.config.runtime.device,
        shared=shared,
    )
    before = {trial.name: trial for plan in first for trial in plan.trials}
    run_trials(job, table.config.cluster, [*before.values()], run=run)
    then = {
        trial.name: trial
        for plan in plans
        if plan.row.follows is not None
        for trial in plan.trials
        if folders.status(split(str(trial.values["init_from"]))[1]) == "done"
    }
    if then:
        shared_by_none = replace(job, shared=None)
        run_trials(shared_by_none, table.config.cluster, [*then.values()], run=run)


def _works(folders: TrialFolders, plans: Sequence[RowPlan]) -> dict[str, TrialWork]:
    return {
        plan.row.name: TrialWork(
            plan.row.job,
            plan.config,
            folders.storage,
            "val/instance_miou" if plan.row.job == "partseg" else "val/accuracy",
        )
        for plan in plans
    }
