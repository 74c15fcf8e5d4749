"""Pictures of what a trained model does with shapes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import (
    ClusterSection,
    Count,
    FilledCount,
    JobConfig,
    LocalPath,
    Location,
    Section,
)
from recon_ray.config.sections.foreign_model import ForeignModelSection
from recon_ray.tasks.linear_probe.config import UP_AXIS


class ShownDataSection(Section):
    """The prepared set of the shapes, and the choice and normalization of their points."""

    path: Location | None = Field(None, description="Folder of a prepared set (jobs/prepare.py).")
    split: str = Field("test", description="Split whose shapes are shown.")
    num_points: FilledCount = Field(
        None,
        description="Points drawn from each shape, by default as many as in the training; a cloud "
        "that has fewer keeps them all.",
    )
    normalize: bool | None = Field(
        None,
        description="Center each cloud and scale it to the unit sphere; by default as in training.",
    )


class VisualizeSection(Section):
    """Kinds of pictures."""

    kinds: tuple[Literal["reconstruction", "attention"], ...] | None = Field(
        None,
        description="Pictures to draw; by default both, or attention alone for a model without a "
        "decoder, which reconstructs nothing.",
        min_length=1,
    )
    blocks: tuple[Count, ...] = Field(
        (),
        description="Encoder blocks whose attention is averaged, counted from 1; by default the "
        "last third.",
    )
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Part of the patches that is hidden; by default as in training."
    )
    mask_type: Literal["random", "block"] | None = Field(
        None,
        description="Hide random patches, or the ones nearest to a random center; by default as in "
        "training.",
    )


class VisualizeConfig(JobConfig):
    """jobs/visualize.py: pictures of reconstructions and of attention."""

    init_from: Location | None = Field(
        None,
        description="Weights: run folder, checkpoint, .safetensors, .pth, or the name of published "
        "ones.",
    )
    data: ShownDataSection = Field(ShownDataSection(), description="Prepared shapes.")
    shapes: Count | tuple[str, ...] = Field(
        6,
        description="Shapes of data.path: their number, from as many classes as possible, or a "
        "list of object ids.",
    )
    files: tuple[LocalPath, ...] = Field(
        (), description="Meshes or clouds to show as well (.ply, .off, .obj, .npy, ...)."
    )
    up_axis: Literal["auto", "x", "y", "z"] = Field("auto", description=UP_AXIS)
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="Sizes that a foreign file of weights does not hold."
    )
    visualize: VisualizeSection = Field(VisualizeSection(), description="Pictures.")
    cluster: ClusterSection = Field(
        ClusterSection(workers=0), description="The job runs in one process, without Ray."
    )

    @model_validator(mode="after")
    def _is_complete(self) -> VisualizeConfig:
        if self.init_from is None:
            raise ValueError("init_from=<weights> must be given")
        if self.data.path is None and not self.files:
            raise ValueError("data.path=<prepared set> or files=[a.ply, ...] must be given")
        if self.data.path is None and "shapes" in self.model_fields_set:
            raise ValueError("shapes are of a prepared set; give data.path=<folder> with it")
        if self.cluster.workers != 0:
            raise ValueError("cluster.workers must be 0: this job runs in one process")
        return self
