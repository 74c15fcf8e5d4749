"""Options of ``cache_teachers``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count, JobConfig, Location, Section, VerifyOption
from recon_ray.config.sections.training import ImageEncoderSection, TextTeacherSection


class CachedDataSection(Section):
    """The prepared set whose pictures and classes are encoded."""

    path: Location = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    text: Literal["category", "caption"] = Field(
        "category",
        description="Texts that are encoded: class texts in 60 prompts, or captions.",
    )
    verify: VerifyOption = Field(
        "read",
        description="When the SHA-256 of the shards is compared with the manifest: as each is "
        "first read (read), of all of them first (all), or never (open).",
    )


class EncodersSection(Section):
    """The two frozen teachers; null leaves one out."""

    image: ImageEncoderSection = Field(ImageEncoderSection(), description="Image teacher.")
    text: TextTeacherSection = Field(TextTeacherSection(), description="Text teacher.")

    @model_validator(mode="after")
    def _encodes(self) -> EncodersSection:
        names = {"image": self.image.name, "text": self.text.name}
        if set(names.values()) == {None}:
            raise ValueError("teacher.image.name and teacher.text.name are both null; name one")
        for kind, name in names.items():
            if name == "source":
                raise ValueError(
                    f"teacher.{kind}.name=source: those features are in the data set already; "
                    "name a teacher to run, or null for none"
                )
        return self


class CacheSection(Section):
    """Size and precision of the cache of images."""

    copies: Annotated[int, Field(ge=1, le=1000)] = Field(
        8,
        description="Augmented pictures encoded a shape (augment=none: each stored view once); "
        "epoch e of a training reads copy e modulo their number.",
    )
    splits: tuple[str, ...] = Field(
        ("train",),
        description="Splits whose pictures are encoded: those of the training's data.train_splits.",
    )
    batch_size: Count = Field(64, description="Pictures of a forward pass.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Precision of the teacher; online it is the step's (runtime.precision).",
    )


class CacheTeachersConfig(JobConfig):
    """jobs/cache_teachers.py: features of frozen teachers, computed once beside a prepared set."""

    data: CachedDataSection = Field(CachedDataSection(), description="Set that is encoded.")
    teacher: EncodersSection = Field(EncodersSection(), description="The teachers.")
    cache: CacheSection = Field(CacheSection(), description="The cache.")
