"""Pre-training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count, Location, Positive, Section
from recon_ray.config.sections.data import DataSection, PrepareSection
from recon_ray.config.sections.training import ModelSection, TeacherSection, TrainingConfig

_NOT_PROBED = (
    "probes features of ReCon, which model.kind=twotower does not have (fine-tuning measures it: "
    "configs/finetune/scan_hardest_twotower.yaml)"
)


class LossSection(Section):
    """Losses that are summed."""

    chamfer: Literal["l1", "l2"] = Field(
        "l2", description="Chamfer distance: squared (l2) or plain (l1)."
    )
    self_contrast: bool = Field(
        False,
        description="Add the self-contrast of the class token over the categories that a worker "
        "holds at once.",
    )


class PretrainEvalSection(Section):
    """Evaluation on held-out shapes before and after pre-training."""

    enabled: bool = Field(True, description="Evaluate before and after training.")
    split: str = Field("test", description="Held-out split.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")
    shots: Count = Field(5, description="Labels a class of the small linear probe.")
    draws: Count = Field(10, description="Random draws that the small probe is averaged over.")
    svm_c: Positive = Field(0.075, description="C of the linear SVM (paper: 0.075).")
    limit: Count | None = Field(None, description="Use at most this many shapes a split.")


class ValidationSection(Section):
    """Validation on a labeled set while pre-training; the best checkpoint is kept.

    The value is the one of jobs/linear_probe.py or jobs/zeroshot.py on the same set.
    """

    every_epochs: Count | None = Field(
        None, description="Epochs between two validations; null for none."
    )
    path: Location | None = Field(
        None, description="Folder of the prepared set; by default the one that is trained on."
    )
    kind: Literal["svm", "zeroshot"] = Field(
        "svm",
        description="Linear SVM on frozen features, or zero-shot accuracy by the text teacher.",
    )
    train_split: str = Field("train", description="Split that the SVM learns from.")
    test_split: str = Field("test", description="Split that is measured.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")
    limit: Count | None = Field(None, description="Use at most this many shapes a split.")


class PretrainConfig(TrainingConfig):
    """jobs/pretrain.py: ReCon pre-training on a prepared set."""

    data: DataSection = Field(DataSection(), description="What is read.")
    prepare: PrepareSection = Field(PrepareSection(), description="How data.create makes the set.")
    model: ModelSection = Field(ModelSection(), description="The student.")
    teacher: TeacherSection = Field(TeacherSection(), description="The teachers.")
    loss: LossSection = Field(LossSection(), description="Losses.")
    eval: PretrainEvalSection = Field(
        PretrainEvalSection(), description="Evaluation before and after."
    )
    validation: ValidationSection = Field(
        ValidationSection(), description="Validation while training."
    )

    @model_validator(mode="after")
    def _two_towers_have_what_they_need(self) -> PretrainConfig:
        """The ablation has both teachers, no class token and no published features."""
        if self.model.kind != "twotower":
            return self
        for name in ("image", "text"):
            if getattr(self.teacher, name).name is None:
                raise ValueError(
                    f"model.kind=twotower distills from both teachers, found teacher.{name}.name="
                    "null; name one"
                )
        if self.loss.self_contrast:
            raise ValueError(
                "model.kind=twotower has no class token for loss.self_contrast=true; leave it out"
            )
        if self.eval.enabled:
            raise ValueError(f"eval.enabled=true {_NOT_PROBED}; set eval.enabled=false")
        if self.validation.every_epochs is not None:
            every = self.validation.every_epochs
            raise ValueError(f"validation.every_epochs={every} {_NOT_PROBED}; leave it out")
        return self
