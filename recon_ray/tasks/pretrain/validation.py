"""Validation while pre-training: how well frozen features do on a labeled set after each epoch.

The value is what the linear-probe or the zero-shot job measures on the checkpoint of that epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon_ray.errors import ConfigError
from recon_ray.models.cloud import svm_pool
from recon_ray.models.recon import Recon
from recon_ray.tasks.feature_extraction import PointChoice, extract_features, without_last_batch
from recon_ray.tasks.linear_probe.probes import REFERENCE_BATCH, svm_accuracy
from recon_ray.tasks.pretrain.config import ValidationSection
from recon_ray.tasks.zeroshot.evaluation import (
    accuracy,
    class_vectors,
    encode_texts,
    zeroshot_predictions,
)
from recon_ray.teachers.protocol import TextTeacher
from recon_ray.train.runtime import EvaluationRuntime

#: Prefix of the tables that a validation asks the runtime for.
TABLE = "validation/"


@dataclass(frozen=True)
class ValidationPlan:
    """What is validated on; picklable.

    Attributes:
        options: Its section of the configuration.
        texts: What a text teacher reads of each class of that set.
        choice: Which points are read.
        svm_c: Inverse regularization of the SVM.
        follows_reference: Whether zero-shot reads the training split too, training shapes that fill
            no last batch are left out, and the SVM is solved as published.
        seed: Seed of the shapes that are left out.
    """

    options: ValidationSection
    texts: Sequence[str]
    choice: PointChoice
    svm_c: float
    follows_reference: bool = False
    seed: int = 0

    @property
    def metric(self) -> str:
        """Name of the value that chooses the best epoch."""
        return f"validation_{self.options.kind}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the set that are read."""
        both = self.options.train_split, self.options.test_split
        if self.options.kind == "svm" or self.follows_reference:
            return both
        return both[1:]

    @property
    def training_batch(self) -> int | None:
        """Shapes of the batches that training shapes must fill; None where all are used."""
        if not self.follows_reference:
            return None
        return REFERENCE_BATCH if self.options.kind == "svm" else self.options.batch_size


class Validation:
    """Computes the value after an epoch.

    Args:
        plan: What is validated on.
    """

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
            follows = plan.follows_reference
            return {plan.metric: svm_accuracy(*data, c=plan.svm_c, follows_reference=follows)}
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
            return {"features": model.zeroshot_head(tokens, kind=zeroshot_kind(model))}

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


def zeroshot_kind(model: Recon) -> str:
    """Both tokens where their teachers share a space, else the text token."""
    image, text = model.image_proj, model.text_proj
    if image is None or text is None:
        return "text"
    return "full" if image.out_features == text.out_features else "text"
