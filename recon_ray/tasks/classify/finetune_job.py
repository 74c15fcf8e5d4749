"""The driver of ``jobs/finetune.py``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recon_ray.cluster.evaluate import evaluate
from recon_ray.cluster.training_job import TrainingJob
from recon_ray.data.format.held_out import hold_out
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.storage import join
from recon_ray.tasks.classify.classifier_checks import (
    check_classes,
    check_labels,
    check_points,
    class_lines,
    confusion_records,
    describe_set,
    load_start,
)
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.confusion import overall_accuracy
from recon_ray.tasks.classify.episodes import open_episode
from recon_ray.tasks.classify.task import (
    AccuracyEvaluation,
    ClassificationTask,
    classifier_of,
    validation_split,
)
from recon_ray.tasks.config_checks import check_start, find_set, use_ops
from recon_ray.tasks.point_pipeline import pipeline_of
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run, open_run
from recon_ray.tasks.training_run import fit_settings, job_of, train, training_rows
from recon_ray.weights.load import compare
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What training and measuring gave.

    Attributes:
        fitted: Numbers of the training loop.
        matrices: Name of a checkpoint (``last``, ``best``) to its confusion matrix.
        selected: The checkpoint whose accuracy is the run's.
        best: What chose it, if a validation did.
    """

    fitted: dict[str, float]
    matrices: dict[str, np.ndarray]
    selected: str
    best: dict[str, Any] | None


def finetune(job: Job[FinetuneConfig]) -> JobResult:
    """Train a classifier, measure it on the test split, and write ``result.json``."""
    config = job.config
    if job.dry_run:
        return _dry_run(config)
    prepared = open_set(config)
    run = open_run("finetune", config, label=config.train.tune, resume=config.resume)
    outcome = _train(run, config, prepared)
    assert outcome is not None
    return _finish(run, config, prepared, outcome)


def open_set(config: FinetuneConfig) -> PreparedSet:
    """Open the prepared set and refuse what cannot be learned or measured.

    Raises:
        ConfigError: Naming the option.
        DataError: If the set is damaged.
    """
    data = config.data
    prepared = open_episode(config, find_set("data.path", Path(data.path)))
    if data.validation_fraction is not None:
        prepared = _hold_out(config, prepared)
    check_classes(prepared)
    is_reference = config.protocol == "reference"
    check_points(prepared, data.num_points, follows_reference=is_reference)
    count = len(prepared.classes)
    for split in data.train_splits:
        check_labels(prepared, "data.train_splits", split, count)
    check_labels(prepared, "data.test_split", data.test_split, count)
    if data.validation_split is not None:
        check_labels(prepared, "data.validation_split", data.validation_split, count)
    if data.verify:
        prepared.verify_hashes()
    return prepared


def _hold_out(config: FinetuneConfig, prepared: PreparedSet) -> PreparedSet:
    """Divide the training split.

    Raises:
        ConfigError: If the name of what is held out is taken.
        DataError: If nothing can be held out.
    """
    name, fraction = config.data.validation_split, config.data.validation_fraction
    assert name is not None
    assert fraction is not None
    if name in prepared.splits:
        raise ConfigError(
            f"data.validation_split={name}: {prepared.path} has a split of this name already; "
            "leave out data.validation_fraction to use it, or choose another name"
        )
    return hold_out(prepared, config.data.train_splits[0], name, fraction)


def make_task(
    config: FinetuneConfig, prepared: PreparedSet
) -> tuple[Callable[[], ClassificationTask], str]:
    """Decide the classifier and compare it with the weights that it starts from.

    Returns:
        What makes the task in a worker, and what became of the weights, in a sentence.

    Raises:
        CheckpointError: If the weights cannot be read or do not fit.
        ConfigError: If the sizes of the classifier do not fit each other or the clouds.
    """
    place, weights = load_start(config.init_from, **_foreign_sizes(config))
    config = config.model_copy(update={"init_from": place})
    kind, architecture = classifier_of(config, weights, len(prepared.classes))
    card = prepared.manifest.get("card")
    pipeline = pipeline_of(
        card,
        num_points=config.data.num_points,
        follows_reference=config.protocol == "reference",
        normalize=config.data.normalize,
        augment=config.data.augment,
    )
    make = partial(
        ClassificationTask,
        config,
        kind=kind,
        architecture=architecture,
        pipeline=pipeline,
        classes=prepared.classes,
    )
    report = _check_model(make(), weights)
    logger.info(
        "%s, normalize=%s, augment=%s", describe_set(prepared, config.data.test_split),
        pipeline.normalize, pipeline.augment,
    )  # fmt: skip
    return make, report


def _foreign_sizes(config: FinetuneConfig) -> dict[str, Any]:
    """What a file's shapes do not tell, as far as the configuration gives it."""
    section = config.model
    return {"num_heads": section.num_heads, "num_groups": section.num_groups}


def _check_model(task: ClassificationTask, weights: LoadedWeights | None) -> str:
    arguments = task.architecture()
    for name in ("num_groups", "group_size"):
        if arguments.get(name, 0) > task.pipeline.num_points:
            raise ConfigError(
                f"model.{name}={arguments[name]} is more than data.num_points="
                f"{task.pipeline.num_points}; lower it, or draw more points"
            )
    fresh = replace_config(task, init_from=None)
    try:
        with torch.device("meta"):
            model = fresh.stored_model(fresh.build())
    except ValueError as error:
        raise ConfigError(f"model: {error}; change model.*") from error
    if weights is None:
        return "from scratch"
    return compare(model, weights).summary()


def replace_config(task: ClassificationTask, **values: Any) -> ClassificationTask:  # noqa: ANN401
    """Return the same task with other options of the configuration."""
    return ClassificationTask(
        task.config.model_copy(update=values),
        kind=task.kind,
        architecture=task.architecture(),
        pipeline=task.pipeline,
        classes=task.classes,
    )


def training_job(
    run: Run, config: FinetuneConfig, prepared: PreparedSet, make: Callable[[], ClassificationTask]
) -> TrainingJob:
    """Translate the configuration for the trainer."""
    watched = validation_split(config)
    return job_of(
        run,
        config,
        prepared,
        make_task=make,
        settings=fit_settings(
            config,
            validate_every_epochs=None if watched is None else config.eval.every_epochs,
            validate_from_epoch=1 if config.protocol == "reference" else 0,
            select="accuracy",
        ),
        options=make().batch_options(),
        evaluation_splits=() if watched is None else (watched,),
    )


def _train(
    run: Run, config: FinetuneConfig, prepared: PreparedSet, *, measure: bool = True
) -> Outcome:
    """Check everything, begin the run, train, measure."""
    use_ops(config)
    make, report = make_task(config, prepared)
    check_start(run, replace_config(make(), init_from=None))
    job = training_job(run, config, prepared, make)

    def begin() -> None:
        run.begin()
        logger.info("%s", report)

    then = partial(_measure, run, config, prepared, make(), measure=measure)
    return train(job, config, begin=begin, then=then)


def _measure(
    run: Run,
    config: FinetuneConfig,
    prepared: PreparedSet,
    task: ClassificationTask,
    fitted: dict[str, float],
    *,
    measure: bool,
) -> Outcome:
    """Accuracy on the test split of the last checkpoint, and of the best one if one was chosen."""
    store = CheckpointStore(run.folder.checkpoints)
    best, last = store.best(), store.names()[-1]
    names = {"last": last} | ({} if best is None else {"best": best["name"]})
    selected = "last" if best is None else "best"
    if not measure:
        return Outcome(fitted, {}, selected, best)
    found = evaluate(
        partial(
            AccuracyEvaluation,
            {name: join(run.folder.checkpoints, step) for name, step in names.items()},
            config.data.test_split,
            task.pipeline.test(),
            len(prepared.classes),
            config.eval.batch_size,
        ),
        prepared,
        (config.data.test_split,),
        options=task.batch_options(),
        folder=run.folder,
        cluster=config.cluster,
        runtime=config.runtime,
    )
    matrices = {name: np.array(matrix) for name, matrix in found.items()}
    return Outcome(fitted, matrices, selected, best)


def selection(config: FinetuneConfig, best: dict[str, Any] | None) -> str:
    """How the accuracy was chosen, for ``result.json``."""
    test = config.data.test_split
    if best is None:
        return f"last step; nothing chosen on {test!r}"
    epoch = int(best["epoch"])
    if config.protocol == "reference":
        return f"best epoch ({epoch}) on {test!r}, on which it is measured too (published habit)"
    return f"best epoch ({epoch}) on {config.data.validation_split!r}, measured on {test!r}"


def _finish(run: Run, config: FinetuneConfig, prepared: PreparedSet, outcome: Outcome) -> JobResult:
    from recon_ray.tasks.run_figures import draw_classification  # matplotlib, after the workers

    fitted, matrix = dict(outcome.fitted), outcome.matrices[outcome.selected]
    validated = {key: fitted.pop(f"accuracy_{key}", None) for key in ("last", "best")}
    metrics = {"accuracy": overall_accuracy(matrix)}
    metrics |= {f"accuracy_{k}": overall_accuracy(m) for k, m in outcome.matrices.items()}
    if config.data.validation_split is not None:
        named = {f"validation_accuracy_{key}": value for key, value in validated.items()}
        metrics |= {key: value for key, value in named.items() if value is not None}
    metrics["chance"] = 1 / len(prepared.classes)
    counts = {
        "samples": {name: split.rows for name, split in prepared.splits.items()},
        "training_samples": training_rows(config, prepared),
        "classes": len(prepared.classes),
        "steps": int(fitted.pop("steps")),
        "epochs": int(fitted.pop("epochs")),
        "workers": config.cluster.max_workers,
    }
    metrics |= fitted
    return run.finish(
        metrics,
        table=_summary(metrics, matrix, prepared.classes),
        selection=selection(config, outcome.best),
        counts=counts,
        draw=partial(draw_classification, run.folder, matrix, prepared.classes),
        protocol=config.protocol,
        init_from=config.init_from,
        data=str(prepared.path),
        card=(prepared.manifest.get("card") or {}).get("name"),
        **confusion_records(matrix, prepared.classes),
    )


def _summary(metrics: dict[str, float], matrix: np.ndarray, classes: list[str]) -> str:
    lines = [f"{'':28}{'accuracy':>12}{'shapes':>8}", *class_lines(matrix, classes)]
    for key in ("accuracy_last", "accuracy_best"):
        if key in metrics:
            lines.append(f"{key.replace('_', ', '):28}{metrics[key]:>12.1%}")
    lines.append(f"{'chance':28}{metrics['chance']:>12.1%}")
    return "\n".join(lines)


def _dry_run(config: FinetuneConfig) -> JobResult:
    """Build everything, take one step in a throw-away run, report size and time."""
    with tempfile.TemporaryDirectory(prefix="recon-dry-run-") as storage:
        update: dict[str, Any] = {
            "run": config.run.model_copy(update={"storage": storage, "name": "dry-run"}),
            "train": config.train.model_copy(update={"steps": 1}),
        }
        config = config.model_copy(update=update)
        prepared = open_set(config)
        run = open_run("finetune", config, label=config.train.tune)
        started = time.monotonic()
        fitted = _train(run, config, prepared, measure=False).fitted
        seconds = time.monotonic() - started
    make, report = make_task(config, prepared)
    task = replace_config(make(), init_from=None)
    model = task.stored_model(task.build())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = training_rows(config, prepared)
    batch = config.train.global_batch_size
    lines = [
        "dry run: one step was taken, nothing is kept",
        report,
        f"{'parameters':28}{sum(p.numel() for p in model.parameters()):>20,}",
        f"{'trained ones':28}{trained:>20,}",
        f"{'training samples':28}{rows:>20,}",
        f"{'steps an epoch':28}{rows // batch:>20,}",
        f"{'loss of the step':28}{fitted['loss_first']:>20.4f}",
        f"{'seconds of the step':28}{batch / fitted['samples_per_second']:>20.2f}",
        f"{'peak memory of a worker, GB':28}{fitted['peak_memory_bytes'] / 1e9:>20.2f}",
        f"{'seconds with start-up':28}{seconds:>20.1f}",
    ]
    return JobResult("\n".join(lines))
