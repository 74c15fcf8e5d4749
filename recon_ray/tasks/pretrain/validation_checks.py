"""Validation while pre-training: what is refused before it starts, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.tasks.classify.classifier_checks import check_batch, check_points, class_texts
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.feature_extraction import PointChoice
from recon_ray.tasks.point_pipeline import pipeline_of
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.task import PretrainTask
from recon_ray.tasks.pretrain.validation import TABLE, ValidationPlan
from recon_ray.tasks.teacher_features import SOURCE


def validated_set(config: PretrainConfig, prepared: PreparedSet) -> PreparedSet | None:
    """Open the set that is validated on; None without a validation.

    Raises:
        ConfigError: If there is no such folder.
        DataError: If it is damaged.
    """
    options = config.validation
    if options.every_epochs is None:
        return None
    return prepared if options.path is None else find_set("validation.path", Path(options.path))


def validation_plan(config: PretrainConfig, prepared: PreparedSet | None) -> ValidationPlan | None:
    """Say what is validated on, and refuse a set that does not fit.

    Args:
        config: The job's configuration.
        prepared: What :func:`validated_set` gave.

    Raises:
        ConfigError: Naming the option.
    """
    if prepared is None:
        return None
    options = config.validation
    if options.kind == "zeroshot" and config.teacher.text.name in (None, SOURCE):
        raise ConfigError(
            f"validation.kind=zeroshot: it needs a text teacher to encode the classes, found "
            f"teacher.text.name={config.teacher.text.name or 'null'}; name one, or "
            "validation.kind=svm"
        )
    follows = config.protocol == "reference"
    plan = ValidationPlan(
        options,
        texts=list(class_texts(prepared, follows_reference=follows).values()),
        choice=_choice(config, prepared),
        svm_c=config.eval.svm_c,
        follows_reference=follows,
        seed=config.run.seed,
    )
    if options.path is None and options.test_split in config.data.train_splits:
        raise ConfigError(
            f"validation.test_split={options.test_split}: it is trained on; choose a held-out "
            "split, or another set (validation.path)"
        )
    for split in plan.splits:
        _check_split(config, prepared, split)
    if follows and options.kind == "svm":
        rows = prepared.read(options.train_split, columns=["label"])["label"].to_numpy()
        check_batch(prepared, options.train_split, int((rows[: options.limit] >= 0).sum()))
    return plan


def _choice(config: PretrainConfig, prepared: PreparedSet) -> PointChoice:
    """Which points are read: those that the job of that kind reads, by the set's card.

    Only where the set that is trained on is not normalized, it is not for its validation either.
    """
    follows, is_svm = config.protocol == "reference", config.validation.kind == "svm"
    num_points = config.data.num_points
    check_points(prepared, num_points, follows_reference=follows and not is_svm)
    is_raw = config.validation.path is None and not config.data.normalize
    pipeline = pipeline_of(
        prepared.manifest.get("card"),
        num_points=num_points,
        follows_reference=follows,
        normalize="none" if is_raw else "auto",
    )
    if is_svm:
        return pipeline.test()
    return pipeline.zeroshot(follows_reference=follows, seed=config.run.seed)


def _check_split(config: PretrainConfig, prepared: PreparedSet, split: str) -> None:
    options, path = config.validation, prepared.path
    key = "train_split" if split == options.train_split else "test_split"
    if split not in prepared.splits or prepared.splits[split].rows == 0:
        filled = [name for name, found in prepared.splits.items() if found.rows]
        raise ConfigError(
            f"validation.{key}={split}: {path} has no shapes in it, only in {', '.join(filled)}; "
            "choose another split"
        )
    if len(prepared.classes) < 2:
        raise ConfigError(
            f"validation.path={path}: it has {len(prepared.classes)} classes, two or more are "
            "needed; give a set with classes"
        )


def validation_tables(
    task: PretrainTask, prepared: PreparedSet | None
) -> Mapping[str, tuple[PreparedSet, str]]:
    """The splits that the workers read for it, by name of the table."""
    if task.validation is None or prepared is None:
        return {}
    return {TABLE + split: (prepared, split) for split in task.validation.plan.splits}


def best_kept(config: PretrainConfig, metrics: Mapping[str, float]) -> str:
    """What ``result.json`` adds on the checkpoint that the validation chose."""
    if "best_epoch" not in metrics:
        return ""
    options = config.validation
    where = options.path or config.data.path
    return (
        f"; checkpoints/best.json names epoch {int(metrics['best_epoch'])}, the best by "
        f"{options.kind} on {options.test_split!r} of {where}"
    )
