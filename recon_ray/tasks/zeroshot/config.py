"""Options of ``zeroshot``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import (
    Count,
    Location,
    NonNegative,
    ProtocolConfig,
    Section,
)
from recon_ray.config.sections.foreign_model import ForeignModelSection
from recon_ray.config.sections.training import TextTeacherSection
from recon_ray.tasks.linear_probe.config import EvaluatedSetSection


class TextOnlySection(Section):
    """The frozen text encoder of the classes."""

    text: TextTeacherSection = Field(TextTeacherSection(), description="Text teacher.")


class ZeroshotSection(Section):
    """Classification by texts."""

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
        description="Names to choose from: a list of the set's classes and any others, or a "
        "mapping of some of its classes to their texts in the prompts; by default the texts of the "
        "set's card.",
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
    data: EvaluatedSetSection = Field(EvaluatedSetSection(), description="Set that is classified.")
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="Sizes that a foreign file of weights does not hold."
    )
    teacher: TextOnlySection = Field(
        TextOnlySection(), description="The text teacher of the pre-training."
    )
    zeroshot: ZeroshotSection = Field(ZeroshotSection(), description="The classification.")

    @model_validator(mode="after")
    def _has_weights(self) -> ZeroshotConfig:
        if self.init_from is None:
            raise ValueError("init_from=<run folder or file of weights> must be given")
        return self
