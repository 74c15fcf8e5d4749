"""Validation while pre-training: what is refused before it starts, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recon_ray.config.schema import PretrainConfig
from recon_ray.data.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.programs.checks import find_set, texts_of
from recon_ray.tasks.pretrain import PretrainTask, evaluation_points
from recon_ray.tasks.teachers import SOURCE
from recon_ray.tasks.validation import TABLE, ValidationPlan


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
    plan = ValidationPlan(
        options,
        texts=texts_of(prepared, "category"),
        choice=evaluation_points(config),
        svm_c=config.eval.svm_c,
        follows_reference=config.protocol == "reference",
    )
    if options.path is None and options.test_split in config.data.train_splits:
        raise ConfigError(
            f"validation.test_split={options.test_split}: it is trained on; choose a held-out "
            "split, or another set (validation.path)"
        )
    for split in plan.splits:
        _check_split(config, prepared, split)
    return plan


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
    if config.data.num_points > prepared.num_points:
        raise ConfigError(
            f"validation.path={path}: it holds {prepared.num_points} points a shape, fewer than "
            f"data.num_points={config.data.num_points}; prepare it again with more"
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
