"""Options of preparing a data set, and of reading a prepared one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recon_ray.config.sections.common import (
    Count,
    Fraction,
    Location,
    Section,
)

SourceName = Literal[
    "synthetic", "custom", "shapenet55", "modelnet40", "modelnet10", "scanobjectnn_obj_bg",
    "scanobjectnn_obj_only", "scanobjectnn_pb_t50_rs", "shapenetpart", "fewshot", "openshape",
    "hdf5",
]  # fmt: skip


class PrepareSection(Section):
    """How a source becomes a prepared set."""

    num_points: Count | None = Field(
        None, description="Points kept a shape; by default the source's number, else 2048."
    )
    up_axis: Literal["y", "z", "x"] | None = Field(
        None,
        description="Axis that points up in the source, by default what its card says, else y; "
        "shapes are turned to y up.",
    )
    sampling: Literal["auto", "random", "fps"] = Field(
        "auto",
        description="How a larger cloud is thinned: at random, or to the farthest points from a "
        "random first one; auto is the source's way. Meshes are sampled by area.",
    )
    normals: bool = Field(False, description="Keep a normal for every point.")
    colors: bool = Field(False, description="Keep a color for every point.")
    views: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Images a shape: rendered where the source gives none, 0 for none; by default "
        "4 for synthetic and custom, the source's own for shapenet55, none for the others.",
    )
    view_style: Literal["auto", "shaded", "splat", "depth"] = Field(
        "auto",
        description="How images are rendered: shaded (meshes), splat (points as discs), depth "
        "(gray by distance, near is bright); auto shades meshes and splats clouds.",
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
    table: Location | None = Field(
        None,
        description="CSV or Parquet table (file, caption, label, split, image) (custom).",
    )
    train_per_class: Count = Field(40, description="Training shapes a category (synthetic).")
    test_per_class: Count = Field(15, description="Held-out shapes a category (synthetic).")
    parallel: Literal["auto", "ray", "local"] = Field(
        "auto",
        description="Where shards are built: tasks of Ray, or processes of this machine; auto is "
        "Ray where the job joins a cluster (cluster.address or RAY_ADDRESS). Either gives the same "
        "bytes.",
    )
    processes: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Shards built at once; by default one a CPU that the job may use, fewer where "
        "each process holds a large file of the source (the .dat of ModelNet) and memory is short.",
    )


class SetSection(Section):
    """Which prepared set is trained on, and how it is read."""

    path: Location = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    num_points: Count = Field(1024, description="Points drawn from each stored cloud.")
    train_splits: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("train",), description="Splits that are trained on, together."
    )
    mode: Literal["auto", "stream", "cached", "shared"] = Field(
        "auto",
        description="Ingest: shared (exact global order, blocks in the object store), cached "
        "(materialized stream), stream (read again each epoch); auto takes shared if it fits.",
    )
    residency: Literal["auto", "stream", "object_store", "device"] = Field(
        "auto",
        description="Where the training rows lie: device (on the worker's GPU; the fastest, images "
        "are not kept there), object_store, or stream; auto is the device where they fit.",
    )
    limit: Count | None = Field(None, description="Use at most this many training shapes.")
    shuffle_buffer: Count = Field(
        2048, description="Rows mixed in memory a worker in the modes stream and cached."
    )
    verify: bool = Field(
        True,
        description="Compare the SHA-256 of every shard with the manifest before training (about a "
        "second a GB).",
    )


class DataSection(SetSection):
    """Which prepared set is read, and how."""

    text: Literal["category", "caption"] = Field(
        "category",
        description="What the text teacher reads: class texts in 60 prompts, or captions.",
    )
    normalize: bool = Field(True, description="Center each cloud and scale it to the unit sphere.")
    create: Literal["never", "synthetic"] = Field(
        "never",
        description="Prepare the synthetic set at data.path when there is none; a file's choice is "
        "for the path in that file only.",
    )
