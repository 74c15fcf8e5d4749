"""Retrieval between shapes, texts and pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count, Section, TeacherName
from recon_ray.config.sections.training import ImageEncoderSection
from recon_ray.tasks.linear_probe.config import UP_AXIS, FrozenWeightsConfig
from recon_ray.tasks.zeroshot.config import TrainedTextSection

Query = Annotated[str, Field(min_length=1)]


class PlainImageSection(ImageEncoderSection):
    """A frozen image encoder for pictures as they are."""

    name: TeacherName | Literal["auto"] | None = Field(
        "auto", description="Image teacher; auto is that of the training."
    )
    augment: Literal["none"] = Field(
        "none", description="Pictures are compared without augmentation, as in a cache."
    )


class RetrievalTeachersSection(Section):
    """The frozen teachers of the pre-training; null leaves a side out."""

    image: PlainImageSection = Field(PlainImageSection(), description="Image teacher.")
    text: TrainedTextSection = Field(TrainedTextSection(), description="Text teacher.")

    @model_validator(mode="after")
    def _compares(self) -> RetrievalTeachersSection:
        if self.image.name is None and self.text.name is None:
            raise ValueError("teacher.image.name and teacher.text.name are both null; name one")
        return self


class RetrievalSection(Section):
    """Splits and texts that are searched."""

    splits: tuple[str, ...] = Field(
        ("test",), min_length=1, description="Splits whose shapes are searched, together."
    )
    texts: Literal["auto", "category", "caption"] = Field(
        "auto",
        description="Texts that are searched: that of every class in 60 prompts, for which any "
        "shape of the class is right, or captions, for which any shape with the same caption is "
        "right; auto is what the model was trained with. A query in words is put into the prompts "
        "with category only.",
    )
    top_k: Count = Field(10, description="Shapes that a query finds.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")


class RetrieveConfig(FrozenWeightsConfig):
    """jobs/retrieve.py: find shapes by texts, pictures and shapes, and measure how well."""

    query: Query | Annotated[tuple[Query, ...], Field(min_length=1)] | None = Field(
        None,
        description="Query to answer instead of measuring: words, or a file of a picture, mesh or "
        "cloud; a list for several.",
    )
    up_axis: Literal["auto", "x", "y", "z"] = Field("auto", description=UP_AXIS)
    teacher: RetrievalTeachersSection = Field(
        RetrievalTeachersSection(), description="The teachers of the pre-training."
    )
    retrieval: RetrievalSection = Field(RetrievalSection(), description="The search.")

    @property
    def queries(self) -> tuple[str, ...]:
        """All queries."""
        if self.query is None:
            return ()
        return (self.query,) if isinstance(self.query, str) else self.query
