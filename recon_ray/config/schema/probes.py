"""Judging a pre-trained model without training it: zero-shot, and probes on its features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.schema.base import (
    Count,
    Location,
    NonNegative,
    Positive,
    ProtocolConfig,
    Section,
)
from recon_ray.config.schema.downstream import Normalization
from recon_ray.config.schema.training import TextTeacherSection
from recon_ray.config.schema.weights import ForeignModelSection


class EvaluatedSetSection(Section):
    """The prepared set that is evaluated on."""

    path: Location = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    num_points: Count = Field(1024, description="Points of a cloud that the model is given.")
    normalize: Normalization = Field(
        "auto",
        description="Center and scale each stored cloud (whole), the chosen points (subset), or "
        "none; auto is what the set's card says, else whole.",
    )
    limit: Count | None = Field(None, description="Use at most this many shapes a split.")
    verify: bool = Field(True, description="Compare the SHA-256 of every shard first.")


class TextOnlySection(Section):
    """The frozen text encoder of the classes."""

    text: TextTeacherSection = Field(TextTeacherSection(), description="Text teacher.")


class ZeroshotSection(Section):
    """How classes are told from texts."""

    kind: Literal["full", "text", "image"] = Field(
        "full",
        description="Projected token that is compared with the texts: text, image, or full, which "
        "adds ratio times the text token to the image token.",
    )
    ratio: NonNegative = Field(0.25, description="Weight of the text token (kind=full).")
    splits: tuple[str, ...] = Field(
        ("test",), min_length=1, description="Splits that are classified, together."
    )
    classes: tuple[str, ...] | dict[str, str] | None = Field(
        None,
        description="Names to choose from: a list, which holds the set's classes and any others, "
        "or a mapping of some of its classes to what the prompts say of them; by default the texts "
        "of the set's card.",
    )
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")

    @model_validator(mode="after")
    def _are_classes(self) -> ZeroshotSection:
        if (
            self.classes is not None
            and len(self.classes) < 2
            and not isinstance(self.classes, dict)
        ):
            raise ValueError("zeroshot.classes needs two names or more to choose from")
        if isinstance(self.classes, tuple) and len({*self.classes}) < len(self.classes):
            raise ValueError("zeroshot.classes: a name is there twice")
        return self


class ZeroshotConfig(ProtocolConfig):
    """jobs/zeroshot.py: classify shapes by the texts of their classes, without training."""

    init_from: Location | None = Field(
        None,
        description="Weights of a pre-training: run folder, checkpoint, file or published name.",
    )
    data: EvaluatedSetSection = Field(EvaluatedSetSection(), description="What is classified.")
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="What the shapes in a foreign file do not tell."
    )
    teacher: TextOnlySection = Field(
        TextOnlySection(), description="The text teacher of the pre-training."
    )
    zeroshot: ZeroshotSection = Field(ZeroshotSection(), description="How classes are told.")

    @model_validator(mode="after")
    def _has_weights(self) -> ZeroshotConfig:
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
        "with protocol=reference: what training added is the difference.",
    )
    train_split: str = Field("train", description="Split that the probes learn from.")
    test_split: str = Field("test", description="Split that they are tested on.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")


class LinearProbeConfig(ProtocolConfig):
    """jobs/linear_probe.py: linear SVM, nearest neighbors, logistic regression on features."""

    init_from: Location | None = Field(
        None,
        description="Weights with an encoder: run folder, checkpoint, file or published name.",
    )
    data: EvaluatedSetSection = Field(EvaluatedSetSection(), description="What is classified.")
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="What the shapes in a foreign file do not tell."
    )
    probe: ProbeSection = Field(ProbeSection(), description="The probes.")

    @model_validator(mode="after")
    def _has_weights(self) -> LinearProbeConfig:
        if self.init_from is None:
            raise ValueError("init_from=<run folder or file of weights> must be given")
        return self
