"""Part segmentation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count, FilledCount, Fraction, Location, Section
from recon_ray.config.sections.data import SetSection
from recon_ray.config.sections.training import OptimSection, TrainingConfig, TrainSection
from recon_ray.tasks.classify.config import DownstreamModelSection, refuse_trained_splits


class PartsegDataSection(SetSection):
    """The prepared set with part labels."""

    num_points: FilledCount = Field(
        None,
        description="Points of a cloud that the encoder is given; by default as init_from was "
        "trained for parts (test=only), else 2048.",
    )
    train_splits: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("train", "val"), description="Splits that are trained on, together."
    )
    test_split: str = Field("test", description="Split that is scored at the end.")
    validation_split: str | None = Field(
        None,
        description="Split by which the best epoch is chosen; by default none, and the last epoch "
        "counts (protocol=sound), or the test split (protocol=reference).",
    )


class PartsegModelSection(DownstreamModelSection):
    """A preset and its overrides; sizes that the weights of init_from fix come from them."""

    num_groups: Count | None = Field(None, description="Point patches a cloud (paper: 128).")
    dropout: Fraction | None = Field(None, description="Dropout in the head (paper: 0.5).")
    feature_blocks: tuple[int, ...] | None = Field(
        None, description="Blocks whose patches are read (from 0); paper: 3, 7, 11 of 12."
    )
    propagation_widths: tuple[Count, Count] | None = Field(
        None, description="Widths of the layers that carry features to the points."
    )
    head_widths: tuple[Count, Count] | None = Field(
        None, description="Widths of the hidden layers of the head."
    )


class PartsegEvalSection(Section):
    """Scoring."""

    batch_size: Count = Field(32, description="Shapes a worker encodes at once.")
    every_epochs: Count = Field(1, description="Epochs between two validations.")
    limit: Count | None = Field(None, description="Score at most this many shapes of a split.")


class PartsegConfig(TrainingConfig):
    """jobs/partseg.py: label the points of shapes with parts."""

    default_num_points: ClassVar[int] = 2048
    points_record: ClassVar[str] = "part_points"

    init_from: Location | None = Field(
        None,
        description="Weights that training starts from, or that test=only scores: run folder, "
        "checkpoint, file or published name; null starts from scratch.",
    )
    test: Literal["after", "only"] = Field(
        "after", description="Score after training, or only score the weights of init_from."
    )
    data: PartsegDataSection = Field(PartsegDataSection(), description="What is read.")
    model: PartsegModelSection = Field(PartsegModelSection(), description="The model.")
    train: TrainSection = Field(
        TrainSection(global_batch_size=16, clip_norm=10.0), description="Length and batch."
    )
    optim: OptimSection = Field(OptimSection(lr=1e-4), description="Optimizer.")
    eval: PartsegEvalSection = Field(PartsegEvalSection(), description="Scoring.")

    @property
    def selection_split(self) -> str | None:
        """Split by which the best epoch is chosen; None where the last one counts."""
        if self.data.validation_split is None and self.flags.selects_on_test:
            return self.data.test_split
        return self.data.validation_split

    @model_validator(mode="after")
    def _has_weights(self) -> PartsegConfig:
        if self.test == "only" and self.init_from is None:
            raise ValueError("test=only needs init_from=<weights of a part segmentation model>")
        return self

    @model_validator(mode="after")
    def _holds_out(self) -> PartsegConfig:
        refuse_trained_splits(self.data)
        return self
