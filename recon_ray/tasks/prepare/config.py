"""Options of the ``prepare`` job."""

from __future__ import annotations

from pydantic import Field, model_validator

from recon_ray.config.sections.common import LocalPath, Location, ProtocolConfig
from recon_ray.config.sections.data import PrepareSection, SourceName


class PrepareConfig(ProtocolConfig):
    """jobs/prepare.py: a data set to sharded Parquet."""

    source: SourceName = Field(
        "synthetic",
        description="The data set: procedural shapes, a folder of your own shapes, or a published "
        "set as its publishers ship it (--cards describes them).",
    )
    input: LocalPath | None = Field(
        None,
        description="Folder or archive of the source (not for synthetic); for fewshot also a "
        "prepared ModelNet40, of which episodes are drawn.",
    )
    output: Location = Field(
        "datasets/synthetic", description="Folder or URI of the prepared set that is written."
    )
    verify: Location | None = Field(
        None, description="Only check this prepared set: hashes, row counts, schema."
    )
    export: Location | None = Field(
        None,
        description="Only rewrite this prepared set, to output, with plain fixed-size lists for "
        "readers of numbers instead of the bytes of tensors.",
    )
    prepare: PrepareSection = Field(PrepareSection(), description="How the source is converted.")

    @model_validator(mode="after")
    def _has_input(self) -> PrepareConfig:
        if self.verify is not None and self.export is not None:
            raise ValueError("verify and export are two jobs; give one of them")
        if self.export is not None and "output" not in self.model_fields_set:
            raise ValueError("export needs output=<folder>")
        only = self.verify or self.export
        if self.source != "synthetic" and self.input is None and only is None:
            raise ValueError(f"source={self.source} needs input=<folder>")
        return self
