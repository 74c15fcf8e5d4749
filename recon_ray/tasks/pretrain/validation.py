"""Validation while pre-training: accuracy of frozen features on a labeled set after each epoch.

The value is that of the linear-probe or the zero-shot job on the checkpoint of that epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.models.cloud import svm_pool
from recon_ray.models.recon import Recon
from recon_ray.protocols import SOUND, ProtocolFlags
from recon_ray.tasks.config_checks import check_batch, check_points, class_texts, find_set
from recon_ray.tasks.feature_extraction import (
    Normalization,
    PointChoice,
    extract_features,
    without_last_batch,
)
from recon_ray.tasks.linear_probe.probes import REFERENCE_BATCH, svm_accuracy
from recon_ray.tasks.point_pipeline import pipeline_of, trained_normalization
from recon_ray.tasks.pretrain.config import PretrainConfig, ValidationSection
from recon_ray.tasks.start_weights import zeroshot_kind
from recon_ray.tasks.teacher_features import SOURCE
from recon_ray.tasks.zeroshot.evaluation import (
    accuracy,
    class_vectors,
    encode_texts,
    zeroshot_predictions,
)
from recon_ray.teachers.protocol import TextTeacher
from recon_ray.train.runtime import EvaluationRuntime

#: Prefix of the names of a validation's tables in the runtime.
TABLE = "validation/"


@dataclass(frozen=True)
class ValidationPlan:
    """Set, splits and points of a validation; picklable.

    Attributes:
        options: Its section of the configuration.
        texts: Text of each class of that set.
        choice: Choice of the points.
        svm_c: Inverse regularization of the SVM.
        token: Kind of zero-shot.
        flags: Published habits that are repeated.
        seed: Seed of the shapes that are left out.
    """

    options: ValidationSection
    texts: Sequence[str]
    choice: PointChoice
    svm_c: float
    token: Literal["full", "text", "image"] = "text"
    flags: ProtocolFlags = SOUND
    seed: int = 0

    @property
    def metric(self) -> str:
        """Name of the value that chooses the best epoch."""
        return f"validation_{self.options.kind}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the set that are read."""
        both = self.options.train_split, self.options.test_split
        if self.options.kind == "svm" or self.flags.validates_all_splits:
            return both
        return both[1:]

    @property
    def training_batch(self) -> int | None:
        """Shapes of the batches that training shapes must fill; None where all are used."""
        if not self.flags.drops_last_batch:
            return None
        return REFERENCE_BATCH if self.options.kind == "svm" else self.options.batch_size


class Validation:
    """Computation of the value after an epoch."""

    def __init__(self, plan: ValidationPlan) -> None:
        self.plan = plan
        self._vectors: Tensor | None = None

    def encode_classes(self, teacher: TextTeacher, device: torch.device) -> None:
        """Encode the class texts once; every rank calls it."""
        self._vectors = class_vectors(encode_texts(teacher, self.plan.texts, device))

    def run(self, model: Recon, runtime: EvaluationRuntime) -> dict[str, float]:
        """Return the value; on rank 0 only, though every rank calls it.

        Raises:
            ConfigError: If the limit leaves too few shapes.
        """
        plan = self.plan
        found = [self._extract(model, runtime, split) for split in plan.splits]
        if plan.training_batch is not None:
            found[0] = without_last_batch(found[0], plan.training_batch, seed=plan.seed)
        self._check(found)
        if runtime.rank != 0:
            return {}
        if plan.options.kind == "svm":
            train, test = found
            data = (train["features"], train["label"], test["features"], test["label"])
            dual = plan.flags.dual_svm
            return {plan.metric: svm_accuracy(*data, c=plan.svm_c, dual=dual)}
        assert self._vectors is not None
        features, labels = (
            torch.from_numpy(np.concatenate([one[name] for one in found]))
            for name in ("features", "label")
        )
        return {plan.metric: accuracy(zeroshot_predictions(features, self._vectors), labels)}

    def _extract(
        self, model: Recon, runtime: EvaluationRuntime, split: str
    ) -> dict[str, np.ndarray]:
        def encode(points: Tensor) -> dict[str, Tensor]:
            tokens = model.forward_features(points)
            if self.plan.options.kind == "svm":
                return {"features": svm_pool(tokens)}
            return {"features": model.zeroshot_head(tokens, kind=self.plan.token)}

        options = self.plan.options
        return extract_features(
            encode,
            runtime,
            TABLE + split,
            self.plan.choice,
            batch_size=options.batch_size,
            limit=options.limit,
        )

    def _check(self, found: Sequence[dict[str, np.ndarray]]) -> None:
        options = self.plan.options
        classes = len(np.unique(found[0]["label"]))
        if not len(found[-1]["label"]) or (options.kind == "svm" and classes < 2):
            raise ConfigError(
                f"validation.limit={options.limit}: that leaves {classes} classes to learn from "
                f"and {len(found[-1]['label'])} shapes to test on; raise it"
            )


# -- In the driver -------------------------------------------------------------------------------


def validated_set(config: PretrainConfig, prepared: PreparedSet) -> PreparedSet | None:
    """Open the set that is validated on; None without a validation.

    Raises:
        ConfigError: If there is no such folder.
        DataError: If it is damaged.
    """
    options = config.validation
    if options.every_epochs is None:
        return None
    if options.path is None:
        return prepared
    return find_set("validation.path", options.path).checked(config.data.verify)


def validation_plan(config: PretrainConfig, prepared: PreparedSet | None) -> ValidationPlan | None:
    """Plan the validation, and refuse a set that does not fit.

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
    flags = config.flags
    plan = ValidationPlan(
        options,
        texts=list(class_texts(prepared, published=flags.published_texts).values()),
        choice=_choice(config, prepared),
        svm_c=config.eval.svm_c,
        token=zeroshot_kind(config.teacher.image.name, config.teacher.text.name),
        flags=flags,
        seed=config.run.seed,
    )
    if options.path is None and options.test_split in config.data.train_splits:
        raise ConfigError(
            f"validation.test_split={options.test_split}: it is trained on; choose a held-out "
            "split, or another set (validation.path)"
        )
    for split in plan.splits:
        _check_split(config, prepared, split)
    if flags.drops_last_batch and options.kind == "svm":
        rows = prepared.read(options.train_split, columns=["label"])["label"].to_numpy()
        check_batch(prepared, options.train_split, int((rows[: options.limit] >= 0).sum()))
    return plan


def _choice(config: PretrainConfig, prepared: PreparedSet) -> PointChoice:
    """Return the points that the job of that kind reads, by the set's card and the training."""
    flags, is_svm = config.flags, config.validation.kind == "svm"
    num_points = config.data.num_points
    published = flags.published_num_points and not is_svm
    check_points(prepared, num_points, published=published)
    card = prepared.manifest.get("card")
    trained: Normalization = "subset" if config.data.normalize else "none"
    pipeline = pipeline_of(
        card,
        num_points=num_points,
        skips_origin=flags.skips_origin,
        normalize=trained_normalization(card, trained),
    )
    if is_svm:
        return pipeline.probes(farthest=flags.fps_probe_points, seed=config.run.seed)
    return pipeline.zeroshot(resamples=flags.resamples_zeroshot, seed=config.run.seed)


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
    plan: ValidationPlan | None, prepared: PreparedSet | None
) -> Mapping[str, tuple[PreparedSet, str]]:
    """Return the splits that the workers read for it, by name of the table."""
    if plan is None or prepared is None:
        return {}
    return {TABLE + split: (prepared, split) for split in plan.splits}


def best_kept(config: PretrainConfig, metrics: Mapping[str, float]) -> str:
    """Return the addition to ``selection`` on the checkpoint that the validation chose."""
    if "best_epoch" not in metrics:
        return ""
    options = config.validation
    where = options.path or config.data.path
    return (
        f"; checkpoints/best.json names epoch {int(metrics['best_epoch'])}, the best by "
        f"{options.kind} on {options.test_split!r} of {where}"
    )
