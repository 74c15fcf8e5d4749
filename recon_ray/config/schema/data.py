"""Preparing a data set, and reading a prepared one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.schema.base import Count, Fraction, JobConfig, Section


class PrepareSection(Section):
    """How a source becomes a prepared set."""

    num_points: Count = Field(2048, description="Points kept a shape.")
    up_axis: Literal["y", "z", "x"] = Field(
        "y", description="Axis that points up in the source; clouds and meshes are turned to y up."
    )
    views: Annotated[int, Field(ge=0)] = Field(
        4, description="Images a shape: rendered where the source gives none; 0 writes no images."
    )
    image_size: Annotated[int, Field(ge=16)] = Field(
        224, description="Height and width of the stored images in pixels."
    )
    image_format: Literal["png", "jpeg"] = Field(
        "png", description="Encoding of the stored images."
    )
    samples_per_shard: Count = Field(512, description="Shapes in one Parquet file.")
    limit: Count | None = Field(
        None, description="Prepare at most this many shapes, shared by the splits in proportion."
    )
    points_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="Stored type of the coordinates; float16 stores unit-sphere clouds.",
    )
    seed: int = Field(0, ge=0, description="Seed of shuffling into shards and of surface sampling.")
    max_quarantine_fraction: Fraction = Field(
        0.01, description="Fail when more than this part of the shapes cannot be read."
    )
    test_fraction: Fraction = Field(
        0.1, description="Held out a class where the source has no split of its own (custom)."
    )
    table: str | None = Field(
        None,
        description="CSV or Parquet table (file, caption, label, split, image) (custom).",
    )
    train_per_class: Count = Field(40, description="Training shapes a category (synthetic).")
    test_per_class: Count = Field(15, description="Held-out shapes a category (synthetic).")
    processes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Shards built at once without Ray; by default one a core."
    )


class DataSection(Section):
    """Which prepared set is read, and how."""

    path: str = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    num_points: Count = Field(1024, description="Points drawn from each stored cloud.")
    mode: Literal["auto", "stream", "cached", "shared"] = Field(
        "auto",
        description="Ingest: shared (exact global order, blocks in the object store), cached "
        "(materialized stream), stream (read again each epoch); auto takes shared if it fits.",
    )
    limit: Count | None = Field(None, description="Use at most this many training shapes.")
    text: Literal["category", "caption"] = Field(
        "category",
        description="What the text teacher reads: class texts in 60 prompts, or captions.",
    )
    normalize: bool = Field(True, description="Centre each cloud and scale it to the unit sphere.")
    shuffle_buffer: Count = Field(
        2048, description="Rows mixed in memory a worker in the modes stream and cached."
    )
    verify: bool = Field(
        True,
        description="Compare the SHA-256 of every shard with the manifest before training (about a "
        "second a GB).",
    )
    create: Literal["never", "synthetic"] = Field(
        "never", description="Prepare the synthetic set at data.path when there is none."
    )


class PrepareConfig(JobConfig):
    """jobs/prepare.py: a data set to sharded Parquet."""

    source: Literal["synthetic", "custom"] = Field(
        "synthetic", description="Kind of source: procedural shapes, or a folder of shapes."
    )
    input: Path | None = Field(None, description="Folder of the source (not for synthetic).")
    output: Path = Field(
        Path("datasets/synthetic"), description="Folder of the prepared set that is written."
    )
    verify: Path | None = Field(
        None, description="Only check this prepared set: hashes, row counts, schema."
    )
    prepare: PrepareSection = Field(PrepareSection(), description="How the source is converted.")

    @model_validator(mode="after")
    def _has_input(self) -> PrepareConfig:
        if self.source != "synthetic" and self.input is None and self.verify is None:
            raise ValueError(f"source={self.source} needs input=<folder>")
        return self
