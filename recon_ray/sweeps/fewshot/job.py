"""Driver of ``jobs/fewshot.py``: fine-tuning on every episode, averaged over the folds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from recon_ray.config.help import dump_yaml
from recon_ray.config.loader import override
from recon_ray.data.format.published import unlike_published
from recon_ray.errors import ConfigError
from recon_ray.sweeps.disk import DiskEstimate
from recon_ray.sweeps.fewshot.config import FewshotConfig
from recon_ray.sweeps.report import SweepStory, finish_trials, mean_metrics
from recon_ray.sweeps.tables import (
    DEVIATION,
    Spread,
    TrialRow,
    is_fraction,
    read_rows,
    spreads,
    summary_cells,
    text_table,
)
from recon_ray.sweeps.trial import TrialWork, refuse_stale, run_trials
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial, TrialJob
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.episodes import SharedClouds, read_clouds, shared_clouds
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run
from recon_ray.tasks.start_weights import resolve

logger = logging.getLogger(__name__)

METRIC = "accuracy"
#: Cards of the sets that the published numbers are of: the whole one, and its published episodes.
PUBLISHED_ON = ("modelnet40", "fewshot")
#: Published mean and deviation by (way, shot), in percent; the kind of deviation is not stated.
PUBLISHED = {
    (5, 10): (97.3, 1.9),
    (5, 20): (98.9, 1.2),
    (10, 10): (93.3, 3.9),
    (10, 20): (95.8, 3.0),
}


def fewshot(job: Job[FewshotConfig]) -> JobResult:
    """Fine-tune on every episode and average over the folds."""
    config = resolve(job.config)  # refused here rather than in every trial
    prepared = find_set("data.path", config.data.path).checked(config.data.verify)
    base = fold_config(config)
    trials = [fold_trial(base, episode) for episode in config.fewshot.episodes]
    shared = read_clouds(base, prepared, config.fewshot.episodes)
    megabytes = shared.nbytes / 1e6
    if job.dry_run:
        clouds = f"{shared.count} clouds in all ({megabytes:.1f} MB)"
        head = f"dry run: {len(trials)} episodes with {clouds}, nothing was run"
        disk = _disk(base, trials, shared, config.run.storage)
        return JobResult("\n".join([head, *(f"  {trial.name}" for trial in trials), str(disk)]))
    run = open_run("fewshot", config, label=config.train.tune, resume=config.resume)
    folders = TrialFolders(run.folder.place)
    work = TrialWork("finetune", base, folders.storage, "val/accuracy")
    refuse_stale(run, folders, trials, work.config_of, called={})
    left = [t for t in trials if run.resume == "never" or not folders.has_ended(t.name)]
    _disk(base, left, shared, config.run.storage).warn()
    logger.info("%d episodes share %d clouds (%.1f MB)", len(trials), shared.count, megabytes)
    trial_job = TrialJob(
        run=work,
        folders=folders,
        section="fewshot",
        options=config.fewshot,
        metric=METRIC,
        device=config.runtime.device,
        shared=shared,
    )
    run_trials(trial_job, config.cluster, trials, run=run)
    is_theirs = not unlike_published(prepared, PUBLISHED_ON)
    return _finish(run, [with_episode(row) for row in read_rows(folders, trials)], is_theirs)


def _disk(
    base: FinetuneConfig, trials: Sequence[Trial], shared: SharedClouds, storage: str
) -> DiskEstimate:
    with shared_clouds(shared):
        return DiskEstimate(storage, [override(base, trial.values) for trial in trials])


def fold_config(config: FewshotConfig) -> FinetuneConfig:
    """Return the configuration of jobs/finetune.py that all folds have in common."""
    options = {name: getattr(config, name) for name in FinetuneConfig.model_fields}
    options["cluster"] = config.cluster.model_copy(update={"workers": 0})
    options["data"] = config.data.model_copy(update={"verify": "open"})  # the driver does it, once
    return FinetuneConfig(**{**options, "resume": "auto"})


def fold_trial(base: FinetuneConfig, episode: tuple[int, int, int]) -> Trial:
    """Return the trial of one fold.

    The published runs leave out what does not fill the last batch of an epoch. Under protocol sound
    the batch is the largest one that leaves nothing out, up to ``train.global_batch_size``.
    """
    way, shot, fold = episode
    values: dict[str, Any] = {"data.episode": list(episode)}
    if not base.flags.drops_last_batch:
        most = min(base.train.global_batch_size, way * shot)
        whole = [size for size in range(1, most + 1) if way * shot % size == 0]
        if max(whole) == 1 < way * shot:
            raise ConfigError(
                f"train.global_batch_size={most}: an episode of {way} x {shot} shapes is no whole "
                f"number of such batches, nor of smaller ones; raise it to {way * shot}"
            )
        values["train.global_batch_size"] = max(whole)
    elif base.train.global_batch_size > way * shot:
        raise ConfigError(
            f"train.global_batch_size={base.train.global_batch_size}: an episode of {way} x {shot} "
            "shapes does not fill a batch; lower it, or set protocol=sound"
        )
    return Trial(f"{way}way_{shot}shot_{fold:02d}", values)


# --- Results --------------------------------------------------------------------------------------


def _finish(run: Run, rows: list[TrialRow], is_theirs: bool) -> JobResult:
    groups = spreads(rows, METRIC, over=("fold", "train.global_batch_size"))
    head, cells = summary_cells(groups, METRIC, percent=is_fraction(METRIC, rows))
    kind = ""
    if is_theirs:
        head = [*head, "published (ModelNet40), mean ± std in %"]
        cells = [[*line, _published(group)] for line, group in zip(cells, groups, strict=True)]
        kind = "; the published kind is not stated"
    summary = head, cells
    own = sorted({row.selection for row in rows if row.selection})
    story = SweepStory(
        title=f"Few-shot {run.config.run.name}",
        job="finetune",
        metric=METRIC,
        selection=f"mean over the folds; each fold: {'; '.join(own) or 'none is done'}",
        config=dump_yaml(run.config),
        rows=rows,
        groups=groups,
        summary=summary,
    )
    named = {f"{METRIC}_{g.values['way']}way_{g.values['shot']}shot": g for g in groups}
    metrics = mean_metrics(named)
    means = [metrics[name] for name in named if name in metrics]
    whole = {METRIC: fmean(means)} if means else {}
    table = f"{text_table(*summary)}\nstd: {DEVIATION}{kind}"
    return finish_trials(run, story, table=table, metrics=whole | metrics)


def with_episode(row: TrialRow) -> TrialRow:
    """Return the row with way, shot and fold of its episode, if any, as values of their own."""
    if "data.episode" not in row.values:
        return row
    way, shot, fold = row.values["data.episode"]
    more = {key: value for key, value in row.values.items() if key != "data.episode"}
    return replace(row, values={"way": way, "shot": shot, "fold": fold, **more})


def _published(group: Spread) -> str:
    found = PUBLISHED.get((group.values["way"], group.values["shot"]))
    return "-" if found is None else f"{found[0]} ± {found[1]}"
