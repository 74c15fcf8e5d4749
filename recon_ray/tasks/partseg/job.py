"""Parts of ``jobs/partseg.py``: set, task, measurement, result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from recon_ray.cluster.training_job import TrainingJob
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.models.partseg import PartSegmenter
from recon_ray.models.presets import preset_sizes
from recon_ray.storage import Place
from recon_ray.tasks.config_checks import check_start, find_set
from recon_ray.tasks.driver import Training, measure, run_evaluation, run_training, training_counts
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.partseg.iou import PartTable, category_lines
from recon_ray.tasks.partseg.part_table import read_part_table
from recon_ray.tasks.partseg.task import PartEvaluation, PartSegmentationTask, Scoring
from recon_ray.tasks.predictions import PREDICTIONS, with_names
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run
from recon_ray.tasks.split_checks import compare_splits, held_out
from recon_ray.tasks.start_weights import describe_weights, open_start, resolve
from recon_ray.train.settings import FitSettings
from recon_ray.weights.find import load_start
from recon_ray.weights.load import check_arguments, compare, construct, encoder_sizes
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


def partseg(job: Job[PartsegConfig]) -> JobResult:
    """Train and score, or only score, and write ``result.json``."""
    if job.config.test == "only":
        return _score_only(job)
    config = resolve(job.config)
    return run_training(
        replace(job, config=config),
        Training(
            open_set=open_set,
            plan=plan,
            label=lambda config: Place.of(config.data.path).name,
            finish=_measure,
            dry_run={"eval": {"limit": config.eval.batch_size}},
        ),
    )


def open_set(config: PartsegConfig) -> PreparedSet:
    """Open the prepared set and check its splits and part labels.

    Raises:
        ConfigError: If there is no such folder, or no such splits or part labels in it.
        DataError: If it is damaged.
    """
    prepared, data = find_set("data.path", config.data.path, config.data.version), config.data
    if not prepared.layout.part_labels:
        raise ConfigError(
            f"data.path={data.path}: its shapes have no part labels; prepare a set that has, "
            "source=shapenetpart for example"
        )
    for key, name in _named_splits(config).items():
        rows = prepared.splits[name].rows if name in prepared.splits else None
        if not rows:
            there = ", ".join(f"{split.name} {split.rows}" for split in prepared.splits.values())
            fault = "it has no such split" if rows is None else "that split is empty"
            raise ConfigError(f"{key}: {fault} in {data.path} (it has {there}); choose another")
    return prepared.checked(data.verify)


def _named_splits(config: PartsegConfig) -> dict[str, str]:
    """Splits that are read, by the option that names each."""
    data = config.data
    used = {f"data.test_split={data.test_split}": data.test_split}
    if data.validation_split is not None:
        used[f"data.validation_split={data.validation_split}"] = data.validation_split
    if config.test == "after":
        used |= {f"data.train_splits: {name}": name for name in data.train_splits}
    return used


def part_table(config: PartsegConfig, prepared: PreparedSet) -> PartTable:
    """Read the parts of the splits that are used.

    Raises:
        DataError: If a label is not one of the set's parts.
    """
    return read_part_table(prepared, list(dict.fromkeys(_named_splits(config).values())))


# -- Model ---------------------------------------------------------------------------------------


def model_sizes(
    config: PartsegConfig, table: PartTable, weights: LoadedWeights | None
) -> dict[str, Any]:
    """Constructor arguments: options, else the weights' sizes, else the preset's.

    Raises:
        ConfigError: If they do not fit each other.
        CheckpointError: If the weights do not fit them.
    """
    model, sizes = config.model, {} if weights is None else _sizes_of(weights)
    if model.preset is not None or weights is None:
        sizes |= preset_sizes(model.preset or "base", "partseg")
    sizes |= model.overrides()
    sizes |= {"num_parts": table.num_parts, "num_categories": len(table.categories)}
    if config.flags.skips_origin:
        sizes["fps_min_sq_norm"] = config.flags.min_sq_norm
    if config.flags.torch_init:
        sizes["init"] = "reference"
    sparse = _meta_model(sizes)
    if max(sparse.num_groups, sparse.group_size) > config.data.num_points:
        raise ConfigError(
            f"data.num_points={config.data.num_points} is less than the model's "
            f"{sparse.num_groups} patches of {sparse.group_size} points ask for; raise it"
        )
    if weights is not None:
        check_arguments("partseg", weights, sizes)
        logger.info("init_from: %s", compare(sparse, weights).summary())
    return sizes


def _sizes_of(weights: LoadedWeights) -> dict[str, Any]:
    if weights.kind == "partseg":
        return {**weights.architecture}
    # The published part segmentation has twice the patches of the pre-training that it starts from.
    return {name: value for name, value in encoder_sizes(weights).items() if name != "num_groups"}


def _meta_model(sizes: dict[str, Any]) -> PartSegmenter:
    try:
        with torch.device("meta"):
            return PartSegmenter(**sizes)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def scoring_of(config: PartsegConfig, prepared: PreparedSet, table: PartTable) -> Scoring:
    """Return the scoring of the splits, by protocol."""
    return Scoring(
        table,
        num_points=config.data.num_points,
        batch_size=config.eval.batch_size,
        draw="replacement" if config.flags.repeats_points else "own",
        seed=config.run.seed,
        limit=config.eval.limit,
        has_valid_points=prepared.layout.valid_points,
    )


# -- Training ------------------------------------------------------------------------------------


def plan(run: Run, config: PartsegConfig, prepared: PreparedSet) -> TrainingJob:
    """Make the task, refuse a checkpoint to start from that does not fit it."""
    task = make_task(config, prepared)
    check_start(run, lambda: PartSegmenter(**task.sizes))
    selects = config.selection_split is not None
    test = config.data.test_split
    return TrainingJob(
        make_task=partial(replace, task),
        settings=FitSettings(
            config,
            extra_epoch=False,
            double_step=config.flags.double_step,
            validate_every_epochs=config.eval.every_epochs if selects else None,
            select="instance_miou" if selects else None,
        ),
        options=task.scoring.options,
        prepared=prepared,
        folder=run.folder,
        evaluation_splits=tuple(dict.fromkeys((test, config.selection_split or test))),
        split_counts=compare_splits(
            prepared,
            config.data.train_splits,
            held_out(config.data, limit=config.eval.limit),
            limit=config.data.limit,
        ),
        smallest_batch=2,  # of the category's norm
    )


def make_task(config: PartsegConfig, prepared: PreparedSet) -> PartSegmentationTask:
    """Decide the model and compare it with the weights that it starts from.

    Raises:
        CheckpointError: If the weights cannot be read or do not fit.
        ConfigError: If the sizes of the model do not fit each other or the clouds.
        DataError: If a label is not one of the set's parts.
    """
    table, place, weights = part_table(config, prepared), None, None
    if config.init_from is not None:
        place, weights = load_start(config.init_from, published=config.model.published)
    sizes = model_sizes(config, table, weights)
    scoring = scoring_of(config, prepared, table)
    start = None if weights is None else describe_weights(weights)
    return PartSegmentationTask(config, sizes, scoring, place, start)


# -- Scores --------------------------------------------------------------------------------------


def _measure(run: Run, training: TrainingJob, metrics: dict[str, float]) -> Callable[[], JobResult]:
    """Score the test split with the checkpoint that counts."""
    config, task = training.config, training.make_task()
    assert isinstance(config, PartsegConfig)
    assert isinstance(task, PartSegmentationTask)
    test = config.data.test_split
    # The best checkpoint is scored on the points on which it was found to be the best.
    scoring = replace(task.scoring, epoch=int(metrics.get("best_epoch", 0)))
    make = partial(PartEvaluation, run.folder.place, {}, test, scoring)
    found = measure(run, make, training.prepared, [test], with_names(task.scoring.options))
    selection, split = "last epoch; nothing was chosen on the test split", config.selection_split
    if split is not None:
        where = "the test split itself" if split == test else f"split {split}"
        selection = f"epoch with the best instance mIoU on {where}"
    counts = training_counts(training, metrics)
    metrics |= found["metrics"]
    prepared, start = training.prepared, task.start
    return lambda: _record(run, config, prepared, found, metrics, counts, selection, start)


def _score_only(job: Job[PartsegConfig]) -> JobResult:
    config, place, weights = open_start(job.config, **job.config.model.overrides())
    prepared = open_set(config)
    table = part_table(config, prepared)
    if weights.kind != "partseg":
        raise CheckpointError(
            f"init_from={config.init_from}: it holds a {weights.kind} model, and test=only scores "
            "part segmentation models; train one from it with test=after"
        )
    with torch.device("meta"):
        sparse = construct("partseg", weights)
    assert isinstance(sparse, PartSegmenter)
    compare(sparse, weights, strict=True)
    if (sparse.num_parts, sparse.num_categories) != (table.num_parts, len(table.categories)):
        raise CheckpointError(
            f"init_from={config.init_from}: its model has {sparse.num_parts} parts of "
            f"{sparse.num_categories} categories, {prepared.path} has {table.num_parts} of "
            f"{len(table.categories)}; give the set that it was trained for"
        )
    scoring, test = scoring_of(config, prepared, table), config.data.test_split
    selection = f"the weights of init_from ({weights.source}) as they are"
    return run_evaluation(
        replace(job, config=config),
        partial(PartEvaluation, place, weights.sizes, test, scoring),
        prepared,
        [test],
        options=with_names(scoring.options),
        label=f"test-{prepared.path.name}",
        resume=config.resume,
        fits="the weights fit the set, nothing was scored",
        verify="open",  # done when the set was opened
        finish=lambda run, found: _record(
            run,
            config,
            prepared,
            found,
            found["metrics"],
            {},
            selection,
            describe_weights(weights),
        ),
    )


def _record(
    run: Run,
    config: PartsegConfig,
    prepared: PreparedSet,
    found: dict[str, Any],
    metrics: dict[str, float],
    counts: dict[str, int],
    selection: str,
    weights: dict[str, Any] | None,
) -> JobResult:
    rows = {name: split.rows for name, split in prepared.splits.items()}
    return run.finish(
        metrics,
        table=summary(metrics, found["categories"]),
        selection=selection,
        counts={"samples": rows, "classes": len(prepared.classes), **counts},
        prepared=prepared,
        per_category=found["categories"],
        predictions=PREDICTIONS,
        weights=weights,
    )


def summary(metrics: dict[str, float], categories: dict[str, dict[str, Any]]) -> str:
    """Short table of the scores, and one line for every category."""
    titles = {
        "instance_miou": "instance mIoU",
        "class_miou": "class mIoU",
        "accuracy": "accuracy of points",
        "class_average_accuracy": "mean accuracy of parts",
    }
    lines = [f"{'':28}{'before':>10}{'after':>10}"]
    for name, title in titles.items():
        before = metrics.get(f"{name}_before")
        first = "-" if before is None else f"{before:.1%}"
        lines.append(f"{title:28}{first:>10}{metrics[name]:>10.1%}")
    return "\n".join([*lines, "", *category_lines(categories)])
