"""Features of shapes as a table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count, FilledCount, LocalPath, Location, Section
from recon_ray.tasks.linear_probe.config import UP_AXIS, EvaluatedSetSection, FrozenWeightsConfig


class EmbeddedDataSection(EvaluatedSetSection):
    """The prepared set whose shapes are encoded, and the choice of their points."""

    path: Location | None = Field(None, description="Folder of a prepared set (jobs/prepare.py).")  # type: ignore[assignment]
    num_points: FilledCount = Field(
        None,
        description="Points of a cloud that the model reads, the farthest ones, by default as many "
        "as in its training; a file with fewer keeps them all.",
    )


class EmbedSection(Section):
    """Splits and batches."""

    splits: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Splits of data.path; by default all."
    )
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")


class EmbedConfig(FrozenWeightsConfig):
    """jobs/embed.py: features of every shape of a prepared set, or of files, as Parquet."""

    resume: Literal["auto", "never"] = Field(
        "auto", description="auto continues the run of this name, never sets it aside."
    )
    data: EmbeddedDataSection = Field(EmbeddedDataSection(), description="Prepared shapes.")
    files: tuple[LocalPath, ...] = Field(
        (), description="Meshes or clouds to encode as well (.ply, .off, .obj, .npy, ...)."
    )
    up_axis: Literal["auto", "x", "y", "z"] = Field("auto", description=UP_AXIS)
    embed: EmbedSection = Field(EmbedSection(), description="Splits and batches.")

    @model_validator(mode="after")
    def _is_complete(self) -> EmbedConfig:
        if self.data.path is None and not self.files:
            raise ValueError("data.path=<prepared set> or files=[a.ply, ...] must be given")
        if self.data.path is None and self.embed.splits is not None:
            raise ValueError("embed.splits are of a prepared set; give data.path=<folder> with it")
        return self
