"""Options of ``zeroshot``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count, NonNegative, Section, TeacherName
from recon_ray.config.sections.training import TextTeacherSection
from recon_ray.tasks.linear_probe.config import FrozenWeightsConfig


class TrainedTextSection(TextTeacherSection):
    """The text teacher of the training, or another one in its space."""

    name: TeacherName | Literal["auto"] | None = Field(
        "auto",
        description="open_clip:<arch>[:<tag or file>], descriptor, table:<file> (.npz, .parquet), "
        "or null for none; auto is that of the training.",
    )


class TextOnlySection(Section):
    """The frozen text encoder of the classes."""

    text: TrainedTextSection = Field(TrainedTextSection(), description="Text teacher.")


class ZeroshotSection(Section):
    """Classification by texts."""

    kind: Literal["auto", "full", "text", "image"] = Field(
        "auto",
        description="Projected token that is compared with the texts: text, image, or full, which "
        "adds ratio times the text token to the image token; auto is full where both teachers were "
        "the same model, else the one that the training had.",
    )
    ratio: NonNegative = Field(0.25, description="Weight of the text token (kind=full).")
    splits: tuple[str, ...] = Field(
        ("test",), min_length=1, description="Splits that are classified, together."
    )
    classes: tuple[str, ...] | dict[str, str] | None = Field(
        None,
        description="Names to choose from: a list of the set's classes and any others, or a "
        "mapping of some of its classes to their texts in the prompts; by default the texts of the "
        "set's card.",
    )
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")

    @model_validator(mode="after")
    def _are_classes(self) -> ZeroshotSection:
        if isinstance(self.classes, tuple):
            if len(self.classes) < 2:
                raise ValueError("zeroshot.classes needs two names or more to choose from")
            if len({*self.classes}) < len(self.classes):
                raise ValueError("zeroshot.classes: a name is there twice")
        return self


class ZeroshotConfig(FrozenWeightsConfig):
    """jobs/zeroshot.py: classify shapes by the texts of their classes, without training."""

    teacher: TextOnlySection = Field(
        TextOnlySection(), description="The text teacher of the pre-training."
    )
    zeroshot: ZeroshotSection = Field(ZeroshotSection(), description="The classification.")
