"""The driver of ``jobs/reproduce.py``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recon_ray.errors import ReconError
from recon_ray.reproduce.config import ReproduceConfig
from recon_ray.reproduce.estimates import plan_text
from recon_ray.reproduce.paper_table import SCORE
from recon_ray.reproduce.plan import PRETRAIN, RowPlan, TablePlan, plan_table
from recon_ray.reproduce.plan_checks import check_row, read_episodes_of, verify_sets
from recon_ray.reproduce.results import finish_table
from recon_ray.runs.storage import absolute, join, split
from recon_ray.sweeps.trial import TrialWork, refuse_stale, run_trials
from recon_ray.sweeps.trial_folders import Ledger
from recon_ray.sweeps.trial_placement import Report, Trial, TrialJob
from recon_ray.tasks.classify.episodes import SharedClouds
from recon_ray.tasks.config_checks import check_model
from recon_ray.tasks.input_hashes import SETS
from recon_ray.tasks.pretrain import job as pretrain
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run, refuse_other_config, with_name

logger = logging.getLogger(__name__)


def reproduce(job: Job[ReproduceConfig]) -> JobResult:
    """Show the plan, run what is not done, and write the table."""
    # The runs lie in the run's folder, whose name may still have to be made.
    named = with_name("reproduce", job.config, label="table")
    ledger = Ledger(absolute(join(named.run.storage, str(named.run.name))))
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
    return finish_table(run, ledger, table)


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
        checked = check_row(plan, has_weights=has_weights or not table.starts_itself(plan))
        if plan.row.follows is not None and checked.is_run:
            before = plans[plan.row.follows]
            checked = replace(checked, missing=before.missing, broken=before.broken)
        plans[plan.row.name] = checked
    return replace(table, rows=tuple(plans.values()))


def _begin(run: Run, ledger: Ledger, table: TablePlan) -> None:
    """Begin the run unless what is done in it belongs to something else.

    Raises:
        ConfigError: If finished runs are of another configuration, or a set was prepared again, or
            weights trained again, since.
    """
    works = _works(ledger, table.rows)
    own = table.pretrain
    if own is not None:
        called = {name: f"{PRETRAIN}.{name}" for name in SETS}
        refuse_stale(run, ledger, [Trial(PRETRAIN, {})], lambda _: own, called=called)
    for plan in table.rows:
        if not plan.is_run:
            continue
        config_of = works[plan.row.name].config_of
        for trial in plan.trials:
            if _is_done(run, ledger, trial.name):
                refuse_other_config(ledger.folder(trial.name), config_of(trial))
        called = {"data.path": f"sets.{plan.row.set}.path", "data.episodes": "sets.episodes"}
        refuse_stale(run, ledger, plan.trials, config_of, called=called)
    run.begin()


# --- Running --------------------------------------------------------------------------------------


def _pretrain(run: Run, config: PretrainConfig) -> None:
    logger.info("pre-training first, in %s", join(config.run.storage, str(config.run.name)))
    pretrain.pretrain(Job("pretrain", config))


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
        if ledger.status(split(str(trial.values["init_from"]))[1]) == "done"
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
