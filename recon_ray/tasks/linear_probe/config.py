"""Options of ``linear_probe``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from recon_ray.config.sections.common import (
    Count,
    FilledCount,
    Location,
    Positive,
    ProtocolConfig,
    Section,
    VerifyOption,
)
from recon_ray.config.sections.foreign_model import ForeignModelSection
from recon_ray.tasks.classify.config import Normalization

UP_AXIS = (
    "Axis that points up in the files, which are turned to y up; auto is that of the files of the "
    "set that the model was trained on, else y."
)


class EvaluatedSetSection(Section):
    """The prepared set that is evaluated on."""

    path: Location = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    num_points: FilledCount = Field(
        None,
        description="Points of a cloud that the model reads; by default as it was trained.",
    )
    normalize: Normalization = Field(
        "auto",
        description="Center and scale each stored cloud (whole), the chosen points (subset), or "
        "none; auto is that of the set's card, else of the training.",
    )
    limit: Count | None = Field(None, description="Use at most this many shapes a split.")
    verify: VerifyOption = Field(
        "read",
        description="When the SHA-256 of the shards is compared with the manifest: as each is "
        "first read (read), of all of them first (all), or never (open).",
    )


class FrozenWeightsConfig(ProtocolConfig):
    """Options of a job that reads shapes with frozen weights."""

    init_from: Location | None = Field(
        None,
        description="Weights of a pre-training: run folder, checkpoint, file or published name.",
    )
    data: EvaluatedSetSection = Field(EvaluatedSetSection(), description="Shapes that are read.")
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="Sizes that a foreign file of weights does not hold."
    )

    @model_validator(mode="after")
    def _has_weights(self) -> FrozenWeightsConfig:
        if self.init_from is None:
            raise ValueError("init_from=<run folder or file of weights> must be given")
        return self


class ProbeSection(Section):
    """Probes on frozen features."""

    svm_c: Positive = Field(0.075, description="C of the linear SVM (paper: 0.075).")
    knn: tuple[Count, ...] = Field(
        (1, 5, 20),
        min_length=1,
        description="Neighbors; the number for knn_accuracy is chosen on the training features.",
    )
    logistic: bool = Field(True, description="Also fit a logistic regression.")
    shots: Annotated[int, Field(ge=0)] = Field(
        5, description="Labels a class of the few-label SVM; 0 for none."
    )
    draws: Count = Field(10, description="Random draws that the few-label SVM is averaged over.")
    untrained: bool = Field(
        True,
        description="Also probe an untrained network of the same architecture, drawn as published "
        "with protocol=reference: the difference is the gain of training.",
    )
    train_split: str = Field("train", description="Split that the probes are fitted to.")
    test_split: str = Field("test", description="Split that they are tested on.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")


class LinearProbeConfig(FrozenWeightsConfig):
    """jobs/linear_probe.py: linear SVM, nearest neighbors, logistic regression on features."""

    probe: ProbeSection = Field(ProbeSection(), description="The probes.")
