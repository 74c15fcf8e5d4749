"""Fine-tuning a classifier, and evaluating one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import (
    Count,
    FilledCount,
    Fraction,
    Location,
    Positive,
    ProtocolConfig,
    Section,
    VerifyOption,
)
from recon_ray.config.sections.data import SetSection
from recon_ray.config.sections.foreign_model import (
    PUBLISHED,
    ForeignModelSection,
    PublishedName,
)
from recon_ray.config.sections.training import OptimSection, TrainingConfig, TrainSection
from recon_ray.protocols import ProtocolName

Normalization = Literal["auto", "whole", "subset", "none"]

_NORMALIZE = (
    "Center and scale to the unit sphere the whole stored cloud, the drawn subset of its points, "
    "or neither; auto is that of the set's card, else whole."
)


class DownstreamModelSection(Section):
    """Sizes of a model for a downstream task; an unset one is that of init_from, or the preset."""

    published: PublishedName | None = Field(None, description=PUBLISHED)
    preset: Literal["nano", "tiny", "small", "base"] | None = Field(
        None, description="Named sizes; by default those of init_from, else base."
    )
    embed_dim: Count | None = Field(None, description="Width of the transformer.")
    depth: Count | None = Field(None, description="Encoder blocks.")
    num_heads: Count | None = Field(None, description="Attention heads; must divide embed_dim.")
    num_groups: Count | None = Field(None, description="Point patches a cloud.")
    group_size: Count | None = Field(None, description="Points in a patch.")
    drop_path: Fraction | None = Field(None, description="Stochastic depth of the last block.")

    def overrides(self) -> dict[str, Any]:
        """Return the architecture options that are given."""
        given = self.model_dump(exclude={"kind", "preset", "published"})
        return {name: value for name, value in given.items() if value is not None}


class ClassifierSection(DownstreamModelSection):
    """The classifier. An empty value keeps that of init_from, else of the preset."""

    kind: Literal["auto", "classifier", "twotower"] = Field(
        "auto", description="Which classifier; auto is the one that fits init_from."
    )
    dropout: Fraction | None = Field(None, description="Dropout in the three-layer head.")
    stream: Literal["ALL", "MDM", "CMC"] | None = Field(
        None, description="Towers that a two-tower classifier reads; by default both."
    )


class ClassificationDataSection(SetSection):
    """The training set, and the pipeline of its clouds."""

    num_points: FilledCount = Field(
        None,
        description="Points drawn from each stored cloud; by default as init_from was trained, "
        "else 1024.",
    )
    validation_split: str | None = Field(
        None,
        description="Split that chooses the best epoch under protocol=sound; null takes the last "
        "epoch. protocol=reference chooses on the test split.",
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Hold out this part of every class of the training split, the same shapes in "
        "every run, as data.validation_split (in one process: cluster.workers=0).",
    )
    test_split: str = Field("test", description="Split that is measured.")
    normalize: Normalization = Field("auto", description=_NORMALIZE)
    augment: Literal["auto", "rotate", "scale_translate", "none"] = Field(
        "auto",
        description="Augmentation in training: turn about the up axis, or stretch and shift; auto "
        "is the published one of the set (scale_translate for ModelNet, else rotate).",
    )
    episode: tuple[Count, Count, Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="[way, shot, fold] of a few-shot episode that is learned in place of the whole "
        "set (jobs/fewshot.py runs all of them).",
    )
    episodes: Location | None = Field(
        None,
        description="Folder of episodes (jobs/prepare.py source=fewshot); by default data.path.",
    )


def refuse_trained_splits(data: SetSection) -> None:
    """Refuse to measure on a split that is trained on.

    Raises:
        ValueError: Naming the option.
    """
    for key in ("validation_split", "test_split"):
        name = getattr(data, key)
        if name in data.train_splits:
            raise ValueError(
                f"data.{key}={name} is one of data.train_splits; choose a held-out split"
            )


class ClassificationTrainSection(TrainSection):
    """Trained parameters, length, batch, logging and commits."""

    tune: Literal["full", "linear", "mlp3", "probe"] = Field(
        "full",
        description="Train everything; or the head (linear: one layer, mlp3: three) with class "
        "token and class position, as published; or a linear head alone on a frozen encoder "
        "(probe).",
    )
    global_batch_size: Count = Field(
        32,
        description="Shapes an optimizer step, over all workers; never depends on their number.",
    )
    clip_norm: Positive | None = Field(
        10.0, description="Clip the gradient's L2 norm; null for none."
    )


class ClassificationEvalSection(Section):
    """Validation while training, and the measurement at the end."""

    every_epochs: Count = Field(1, description="Epochs between two validations.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")


class FinetuneConfig(TrainingConfig):
    """jobs/finetune.py: train a classifier on a prepared set, from pre-trained weights or none."""

    default_num_points: ClassVar[int] = 1024

    init_from: Location | None = Field(
        None,
        description="Weights to start from: run folder, checkpoint, .safetensors or .pth file, or "
        "name of published weights; null starts from scratch.",
    )
    data: ClassificationDataSection = Field(
        ClassificationDataSection(), description="What is learned."
    )
    model: ClassifierSection = Field(ClassifierSection(), description="The classifier.")
    train: ClassificationTrainSection = Field(
        ClassificationTrainSection(), description="What is trained, length and batch."
    )
    optim: OptimSection = Field(OptimSection(lr=2e-5), description="Optimizer.")
    eval: ClassificationEvalSection = Field(
        ClassificationEvalSection(), description="Validation and measurement."
    )

    @model_validator(mode="after")
    def _measures_what_is_not_trained(self) -> FinetuneConfig:
        refuse_trained_splits(self.data)
        if self.flags.selects_on_test and self.data.validation_split is not None:
            raise ValueError(
                f"data.validation_split={self.data.validation_split} is not used by protocol="
                "reference, which chooses on the test split; leave it out, or protocol=sound"
            )
        if self.data.validation_split == self.data.test_split:
            raise ValueError(
                f"data.validation_split={self.data.validation_split} is data.test_split; choose "
                "another split, or null, or protocol=reference, which chooses on the test split"
            )
        return self

    @model_validator(mode="after")
    def _holds_out_here(self) -> FinetuneConfig:
        data = self.data
        if data.validation_fraction is None:
            return self
        given = f"data.validation_fraction={data.validation_fraction}"
        if data.validation_split is None:
            raise ValueError(
                f"{given} needs a name for what is held out: data.validation_split=val"
            )
        if len(data.train_splits) > 1 or data.episode is not None:
            raise ValueError(
                f"{given} divides one training split; leave it out with several data.train_splits "
                "or data.episode"
            )
        if self.cluster.workers != 0:
            raise ValueError(f"{given} is held out in one process; set cluster.workers=0")
        return self

    @model_validator(mode="after")
    def _learns_an_episode_here(self) -> FinetuneConfig:
        if self.data.episode is not None and self.cluster.workers != 0:
            raise ValueError(
                f"data.episode={list(self.data.episode)} is learned in one process; set "
                "cluster.workers=0"
            )
        return self


class EvaluatedDataSection(Section):
    """The evaluated set."""

    path: Location = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    split: str = Field("test", description="Split that is measured.")
    num_points: FilledCount = Field(
        None, description="Points drawn from each stored cloud; by default as in the fine-tuning."
    )
    normalize: Normalization = Field("auto", description=_NORMALIZE)
    verify: VerifyOption = Field(
        "read",
        description="When the SHA-256 of the shards is compared with the manifest: as each is "
        "first read (read), of all of them first (all), or never (open).",
    )


class VotingSection(Section):
    """Plain accuracy, and voting over random subsets of points."""

    votes: Annotated[int, Field(ge=0)] = Field(
        0, description="Rounds of voting; 0 for plain accuracy only (paper: 299)."
    )
    repeats: Count = Field(
        10, description="Random subsets of a cloud whose logits are averaged in a round."
    )
    transform: Literal["auto", "rotate", "scale", "none"] = Field(
        "auto",
        description="What is done to each subset: turn about the up axis, stretch, or nothing; "
        "auto is the published one (scale for ModelNet, rotate for PB_T50_RS, else none).",
    )
    batch_size: Count = Field(64, description="Clouds a worker encodes at once.")
    save_every_seconds: Positive = Field(
        30.0, description="Seconds between two records of finished rounds, which a resume skips."
    )


class EvaluateConfig(ProtocolConfig):
    """jobs/evaluate.py: accuracy of a fine-tuned classifier, plain and by voting."""

    protocol: ProtocolName = Field(
        "sound", description="reference reports the best round of voting, sound their mean."
    )
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto continues the run of this name, never sets it aside."
    )
    init_from: Location | None = Field(
        None,
        description="The classifier: run folder, checkpoint, .safetensors or .pth file, or name of "
        "published weights.",
    )
    data: EvaluatedDataSection = Field(EvaluatedDataSection(), description="What is classified.")
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="Sizes that the shapes in a foreign file do not show."
    )
    eval: VotingSection = Field(VotingSection(), description="Plain accuracy and voting.")
