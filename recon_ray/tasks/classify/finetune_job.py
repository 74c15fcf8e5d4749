"""Parts of ``jobs/finetune.py``: set, task, measurement, result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from recon_ray.cluster.training_job import TrainingJob
from recon_ray.data.format.held_out import hold_out
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.storage import join
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.confusion import class_lines, confusion_records, overall_accuracy
from recon_ray.tasks.classify.episodes import open_episode
from recon_ray.tasks.classify.task import (
    AccuracyEvaluation,
    ClassificationTask,
    classifier_of,
    validation_split,
)
from recon_ray.tasks.config_checks import (
    check_classes,
    check_labels,
    check_points,
    check_start,
    describe_set,
    find_set,
)
from recon_ray.tasks.driver import Training, measure, run_training, training_counts
from recon_ray.tasks.point_pipeline import pipeline_of
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run
from recon_ray.tasks.split_checks import compare_splits, held_out
from recon_ray.tasks.start_weights import describe_weights, resolve
from recon_ray.train.settings import FitSettings
from recon_ray.weights.find import load_start
from recon_ray.weights.load import compare
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


def finetune(job: Job[FinetuneConfig]) -> JobResult:
    """Train a classifier, measure it on the test split, and write ``result.json``."""
    return run_training(
        replace(job, config=resolve(job.config)),
        Training(
            open_set=open_set, plan=plan, label=lambda config: config.train.tune, finish=_measure
        ),
    )


def open_set(config: FinetuneConfig) -> PreparedSet:
    """Open the prepared set and refuse what cannot be learned or measured.

    Raises:
        ConfigError: Naming the option.
        DataError: If the set is damaged.
    """
    data = config.data
    prepared = open_episode(
        config, find_set("data.path", data.path, data.version).checked(data.verify)
    )
    if data.validation_fraction is not None:
        prepared = _hold_out(config, prepared)
    check_classes(prepared)
    check_points(prepared, data.num_points, published=config.flags.published_num_points)
    count = len(prepared.classes)
    for split in data.train_splits:
        check_labels(prepared, "data.train_splits", split, count)
    check_labels(prepared, "data.test_split", data.test_split, count)
    if data.validation_split is not None:
        check_labels(prepared, "data.validation_split", data.validation_split, count)
    return prepared


def _hold_out(config: FinetuneConfig, prepared: PreparedSet) -> PreparedSet:
    """Divide the training split."""
    name, fraction = config.data.validation_split, config.data.validation_fraction
    assert name is not None
    assert fraction is not None
    if name in prepared.splits:
        raise ConfigError(
            f"data.validation_split={name}: {prepared.path} has a split of this name already; "
            "leave out data.validation_fraction to use it, or choose another name"
        )
    return hold_out(prepared, config.data.train_splits[0], name, fraction)


def make_task(config: FinetuneConfig, prepared: PreparedSet) -> tuple[ClassificationTask, str]:
    """Decide the classifier and compare it with the weights that it starts from.

    Returns:
        The task, and what became of the weights, in a sentence.

    Raises:
        CheckpointError: If the weights cannot be read or do not fit.
        ConfigError: If the sizes of the classifier do not fit each other or the clouds.
    """
    weights = None
    if config.init_from is not None:
        place, weights = load_start(config.init_from, published=config.model.published)
        config = config.model_copy(update={"init_from": place})
    kind, architecture = classifier_of(config, weights, len(prepared.classes))
    pipeline = pipeline_of(
        prepared.manifest.get("card"),
        num_points=config.data.num_points,
        skips_origin=config.flags.skips_origin,
        normalize=config.data.normalize,
        augment=config.data.augment,
    )
    axis = prepared.manifest.get("source_up_axis", "y")
    start = None if weights is None else describe_weights(weights)
    task = ClassificationTask(config, kind, architecture, pipeline, prepared.classes, axis, start)
    report = _check_model(task, weights)
    logger.info(
        "%s, normalize=%s, augment=%s", describe_set(prepared, config.data.test_split),
        pipeline.normalize, pipeline.augment,
    )  # fmt: skip
    return task, report


def _check_model(task: ClassificationTask, weights: LoadedWeights | None) -> str:
    for name in ("num_groups", "group_size"):
        if task.sizes.get(name, 0) > task.pipeline.num_points:
            raise ConfigError(
                f"model.{name}={task.sizes[name]} is more than data.num_points="
                f"{task.pipeline.num_points}; lower it, or draw more points"
            )
    try:
        with torch.device("meta"):
            model = _fresh_model(task)
    except ValueError as error:
        raise ConfigError(f"model: {error}; change model.*") from error
    if weights is None:
        return "from scratch"
    return compare(model, weights).summary()


def _fresh_model(task: ClassificationTask) -> nn.Module:
    fresh = replace(task, config=task.config.model_copy(update={"init_from": None}))
    return fresh.stored_model(fresh.build())


def plan(run: Run, config: FinetuneConfig, prepared: PreparedSet) -> TrainingJob:
    """Make the task, refuse a checkpoint to start from that does not fit it."""
    task, report = make_task(config, prepared)
    check_start(run, lambda: _fresh_model(task))
    logger.info("%s", report)
    watched = validation_split(config)
    return TrainingJob(
        make_task=partial(replace, task),
        settings=FitSettings(
            config,
            validate_every_epochs=None if watched is None else config.eval.every_epochs,
            validate_from_epoch=int(config.flags.validates_epoch_zero),
            select="accuracy",
        ),
        options=task.batch_options(),
        prepared=prepared,
        folder=run.folder,
        evaluation_splits=() if watched is None else (watched,),
        split_counts=compare_splits(
            prepared, config.data.train_splits, held_out(config.data), limit=config.data.limit
        ),
        smallest_batch=1 if task.sizes["head"] == "linear" else 2,
    )


def _measure(run: Run, training: TrainingJob, fitted: dict[str, float]) -> Callable[[], JobResult]:
    """Measure the last checkpoint on the test split, and the best one if one was chosen."""
    config, task = training.config, training.make_task()
    assert isinstance(config, FinetuneConfig)
    assert isinstance(task, ClassificationTask)
    store = CheckpointStore(run.folder.checkpoints)
    best, last = store.best(), store.newest()
    assert last is not None
    names = {"last": last} | ({} if best is None else {"best": best["name"]})
    found = measure(
        run,
        partial(
            AccuracyEvaluation,
            {name: join(run.folder.checkpoints, step) for name, step in names.items()},
            config.data.test_split,
            task.pipeline.test(),
            len(task.classes),
            config.eval.batch_size,
        ),
        training.prepared,
        (config.data.test_split,),
        training.options,
    )
    matrices = {name: np.array(matrix) for name, matrix in found.items()}
    return partial(_finish, run, training, task, fitted, matrices, best)


def selection(config: FinetuneConfig, best: dict[str, Any] | None) -> str:
    """Return how the accuracy was chosen, for ``result.json``."""
    test = config.data.test_split
    if best is None:
        return f"last step; nothing chosen on {test!r}"
    epoch = int(best["epoch"])
    if config.flags.selects_on_test:
        return f"best epoch ({epoch}) on {test!r}, on which it is measured too (published habit)"
    return f"best epoch ({epoch}) on {config.data.validation_split!r}, measured on {test!r}"


def _finish(
    run: Run,
    training: TrainingJob,
    task: ClassificationTask,
    fitted: dict[str, float],
    matrices: dict[str, np.ndarray],
    best: dict[str, Any] | None,
) -> JobResult:
    from recon_ray.tasks.run_figures import draw_classification  # matplotlib, after the workers

    config, prepared, classes = task.config, training.prepared, training.prepared.classes
    matrix = matrices["last" if best is None else "best"]
    validated = {key: fitted.pop(f"accuracy_{key}", None) for key in ("last", "best")}
    metrics = {"accuracy": overall_accuracy(matrix)}
    metrics |= {f"accuracy_{k}": overall_accuracy(m) for k, m in matrices.items()}
    if config.data.validation_split is not None:
        named = {f"validation_accuracy_{key}": value for key, value in validated.items()}
        metrics |= {key: value for key, value in named.items() if value is not None}
    metrics["chance"] = 1 / len(classes)
    counts = training_counts(training, fitted)
    metrics |= fitted
    return run.finish(
        metrics,
        table=_summary(metrics, matrix, classes),
        selection=selection(config, best),
        counts=counts,
        draw=partial(draw_classification, run.folder, matrix, classes),
        prepared=prepared,
        card=(prepared.manifest.get("card") or {}).get("name"),
        weights=task.start,
        **confusion_records(matrix, classes),
    )


def _summary(metrics: dict[str, float], matrix: np.ndarray, classes: list[str]) -> str:
    lines = [f"{'':28}{'accuracy':>12}{'shapes':>8}", *class_lines(matrix, classes)]
    for key in ("accuracy_last", "accuracy_best"):
        if key in metrics:
            lines.append(f"{key.replace('_', ', '):28}{metrics[key]:>12.1%}")
    lines.append(f"{'chance':28}{metrics['chance']:>12.1%}")
    return "\n".join(lines)
