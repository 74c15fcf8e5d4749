"""Classification: training from pre-trained weights or none, and accuracy of what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recon_ray.data.loading.batches import Batch, BatchOptions
from recon_ray.errors import CheckpointError
from recon_ray.losses.downstream import classification_losses
from recon_ray.models.classifier import Protocol, is_head_parameter
from recon_ray.models.presets import MODELS, arguments_of, preset_sizes, whole_arguments
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.confusion import confusion_matrix, overall_accuracy
from recon_ray.tasks.feature_extraction import PointChoice, Tally, extract_features
from recon_ray.tasks.point_pipeline import CloudPipeline
from recon_ray.train.optim import parameter_groups
from recon_ray.train.runtime import EvaluationRuntime, Runtime
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build, check_arguments, encoder_sizes, initialize
from recon_ray.weights.weight_files import LoadedWeights

CLASSIFIERS = ("classifier", "twotower_classifier")
"""Kinds of models that give logits of classes."""


class ClassificationModule(nn.Module):
    """A classifier with its loss; the training loop calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, source: SampleGenerator) -> dict[str, Tensor]:
        """Return the named losses of a batch."""
        return classification_losses(self.model(batch["points"], source), batch["label"])


@dataclass(eq=False)
class ClassificationTask:
    """Training of one classifier on one prepared set.

    Attributes:
        config: The job's configuration; ``init_from`` can be read by every worker.
        kind: Kind of model, one of :data:`CLASSIFIERS`.
        sizes: Its constructor arguments.
        pipeline: How clouds are brought to it.
        classes: Class names in label order.
        up_axis: Axis that pointed up in the files of the set.
        start: Record of the weights that it starts from; None is from scratch.
    """

    name = "finetune"

    config: FinetuneConfig
    kind: str
    sizes: dict[str, Any]
    pipeline: CloudPipeline
    classes: list[str]
    up_axis: str = "y"
    start: dict[str, Any] | None = None

    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of the classifier."""
        return whole_arguments(self.kind, self.sizes)

    def records(self) -> dict[str, Any]:
        """Return the records that later jobs with the classifier take over."""
        points, normalize = self.pipeline.num_points, self.pipeline.normalize
        return {
            "classes": self.classes,
            "num_points": points,
            "normalize": normalize,
            "up_axis": self.up_axis,
        }

    def build(self) -> nn.Module:
        """Make the classifier with its loss and start it from the weights.

        Raises:
            CheckpointError: If these cannot be read or do not fit.
        """
        model = MODELS[self.kind](**self.sizes)
        if self.config.init_from is not None:
            initialize(model, find_weights(self.config.init_from))
        assert isinstance(model, Protocol)
        model.set_protocol(self.config.train.tune)
        return ClassificationModule(model)

    def stored_model(self, module: nn.Module) -> nn.Module:
        """Return the classifier without its loss."""
        assert isinstance(module, ClassificationModule)
        return module.model

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Groups with the head at ten times the rate.

        The published two-tower run has no such group (its rule goes by the model's name), which
        protocol reference repeats.
        """
        optim = self.config.optim
        without = self.config.flags.single_group_head and self.kind == "twotower_classifier"
        return parameter_groups(
            self.stored_model(module),
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            head=None if without else is_head_parameter,
        )

    def batch_options(self) -> BatchOptions:
        """Return the content of a batch."""
        return BatchOptions(seed=self.config.run.seed)

    def on_device(self, device: torch.device) -> None:
        """Do nothing: there is only the model."""

    def prepare_on_device(self, batch: Batch, source: SampleGenerator) -> Batch:
        """Draw points and augment them."""
        return {"points": self.pipeline.train(batch["points"], source), "label": batch["label"]}

    def evaluate(self, module: nn.Module, runtime: Runtime, *, when: str) -> dict[str, float]:
        """Return nothing: the checkpoints are measured after the training."""
        return {}

    def validate(self, module: nn.Module, runtime: Runtime, *, epoch: int) -> dict[str, float]:
        """Accuracy on the split that chooses the best epoch."""
        split = validation_split(self.config)
        assert split is not None
        matrix = confusion_of(
            self.stored_model(module),
            runtime,
            split,
            self.pipeline.test(),
            num_classes=len(self.classes),
            batch_size=self.config.eval.batch_size,
        )
        return {"accuracy": overall_accuracy(matrix)}


def validation_split(config: FinetuneConfig) -> str | None:
    """Return the split that chooses the best epoch: the test split in the published runs."""
    data = config.data
    return data.test_split if config.flags.selects_on_test else data.validation_split


def confusion_of(
    model: nn.Module,
    runtime: EvaluationRuntime,
    split: str,
    choice: PointChoice,
    *,
    num_classes: int,
    batch_size: int,
    tally: Tally | None = None,
) -> np.ndarray:
    """Classify every labeled cloud of a split once, whatever the number of workers.

    Returns:
        (C, C) of :func:`confusion_matrix`, the same on every rank.
    """
    found = extract_features(
        lambda points: {"predicted": model(points).argmax(dim=-1)},
        runtime,
        split,
        choice,
        batch_size=batch_size,
        tally=tally,
    )
    return confusion_matrix(found["label"], found["predicted"], num_classes)


@dataclass(frozen=True)
class AccuracyEvaluation:
    """Accuracy of several checkpoints of one classifier on a whole split.

    Attributes:
        checkpoints: Name to folder or file of weights.
        split: The split.
        choice: Which points are read.
        num_classes: Classes of the set.
        batch_size: Clouds a worker encodes at once.
    """

    checkpoints: dict[str, str]
    split: str
    choice: PointChoice
    num_classes: int
    batch_size: int

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Return the confusion matrix of each, as lists; the same folder is evaluated once."""
        matrices: dict[str, Any] = {}
        for folder in dict.fromkeys(self.checkpoints.values()):
            model, _ = build(find_weights(folder))
            matrix = confusion_of(
                runtime.inference.place(model, runtime.device),
                runtime,
                self.split,
                self.choice,
                num_classes=self.num_classes,
                batch_size=self.batch_size,
            )
            matrices[folder] = matrix.tolist()
        return {name: matrices[folder] for name, folder in self.checkpoints.items()}


def classifier_of(
    config: FinetuneConfig, weights: LoadedWeights | None, num_classes: int
) -> tuple[str, dict[str, Any]]:
    """Decide the kind of classifier and its constructor arguments.

    Explicit options win over the preset, the preset over the sizes of the weights.

    Raises:
        CheckpointError: If the weights are of a family that no classifier can start from.
    """
    section, flags = config.model, config.flags
    two = section.kind == "twotower" or (
        section.kind == "auto" and weights is not None and weights.kind.startswith("twotower")
    )
    kind = "twotower_classifier" if two else "classifier"
    sizes = {} if weights is None else encoder_sizes(weights)
    if section.preset is not None or weights is None:
        sizes |= preset_sizes(section.preset or "base", kind)
    head = "linear" if config.train.tune in ("linear", "probe") else "mlp"
    arguments = {**sizes, "num_classes": num_classes, "head": head}
    given = section.overrides()
    if flags.skips_origin:
        arguments["fps_min_sq_norm"] = flags.min_sq_norm
    if flags.torch_init:
        arguments["init"] = "reference"
    if two and flags.drops_first_patches:
        arguments["drop_first_patches"] = True
    unknown = sorted(given.keys() - arguments_of(kind))
    if unknown:
        raise CheckpointError(f"model.{unknown[0]}: a {kind} has none; leave it out")
    arguments |= given
    if weights is not None:
        check_arguments(kind, weights, arguments)
    return kind, arguments
