"""Options of preparing a data set and of reading a prepared one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recon_ray.config.sections.common import (
    Count,
    Fraction,
    LocalPath,
    Location,
    Section,
    VerifyOption,
)

SourceName = Literal[
    "synthetic", "custom", "shapenet55", "modelnet40", "modelnet10", "scanobjectnn_obj_bg",
    "scanobjectnn_obj_only", "scanobjectnn_pb_t50_rs", "shapenetpart", "fewshot", "openshape",
    "hdf5",
]  # fmt: skip


class PrepareSection(Section):
    """Conversion of a source to a prepared set."""

    num_points: Count | None = Field(
        None, description="Points kept of each shape; by default the source's number, else 2048."
    )
    up_axis: Literal["y", "z", "x"] | None = Field(
        None,
        description="Axis that points up in the source, by default that of its card, else y; "
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
        description="Images of each shape, rendered if the source has none; by default 4 for "
        "synthetic and custom, the source's own for shapenet55, 0 for the others.",
    )
    view_style: Literal["auto", "shaded", "splat", "depth"] = Field(
        "auto",
        description="How images are rendered: shaded (meshes), splat (points as discs), depth "
        "(gray by distance, near is bright); auto shades meshes and splats clouds.",
    )
    image_size: Annotated[int, Field(ge=16)] | None = Field(
        None,
        description="Image side in pixels, by default 224, or with protocol=reference that of the "
        "published reader, if the source has pictures of its own.",
    )
    image_format: Literal["png", "jpeg"] = Field("png", description="Format of the stored images.")
    samples_per_shard: Count = Field(512, description="Shapes in one Parquet file.")
    limit: Count | None = Field(None, description="Most shapes, over all splits in proportion.")
    points_dtype: Literal["float32", "float16"] = Field(
        "float32", description="Stored type of coordinates; float16 stores unit-sphere clouds."
    )
    seed: int = Field(0, ge=0, description="Seed of shuffling into shards and of surface sampling.")
    max_quarantine_fraction: Fraction = Field(
        0.01, description="Fail if more than this fraction of the shapes cannot be read."
    )
    test_fraction: Fraction = Field(
        0.1, description="Fraction of each class held out if the source has no split (custom)."
    )
    table: Location | None = Field(
        None, description="CSV or Parquet table (file, caption, label, split, image) (custom)."
    )
    train_per_class: Count = Field(40, description="Training shapes of each class (synthetic).")
    test_per_class: Count = Field(15, description="Held-out shapes of each class (synthetic).")
    append: bool = Field(
        False,
        description="Append to the finished set in output, as its next version: classes keep their "
        "labels, and runs that were begun on an earlier version go on with that.",
    )
    parallel: Literal["auto", "ray", "local"] = Field(
        "auto",
        description="Build shards in tasks of Ray or in processes of this machine, with the same "
        "bytes; auto is Ray if the job joins a cluster (cluster.address or RAY_ADDRESS).",
    )
    processes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Shards built at once; by default one a CPU, fewer if memory is short."
    )


class SetSection(Section):
    """Prepared set to train on, and how it is read."""

    path: Location = Field("datasets/synthetic", description="Prepared set (see jobs/prepare.py).")
    version: Count | None = Field(
        None, description="Version of a set that was appended to; the newest when a run begins."
    )
    num_points: Count = Field(1024, description="Points drawn from each stored cloud.")
    train_splits: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("train",), description="Splits to train on, together."
    )
    mode: Literal["auto", "stream", "cached", "shared"] = Field(
        "auto",
        description="Ingest: shared (exact global order, blocks in the object store), stream "
        "(read again each epoch), cached (the same from memory); auto takes shared if it fits.",
    )
    residency: Literal["auto", "stream", "object_store", "device"] = Field(
        "auto",
        description="Place of the training rows: device (the worker's GPU; the fastest, but not "
        "for images), object_store, or stream; auto takes the device if they fit.",
    )
    limit: Count | None = Field(None, description="Use at most this many training shapes.")
    shuffle_buffer: Count = Field(
        2048, description="Rows mixed in memory, whole shards at least (stream, cached)."
    )
    cache_bytes: Count | None = Field(
        None,
        description="Most bytes of shards that a node keeps on its own disk, for data.path on "
        "storage of the network (stream); null keeps none.",
    )
    cache_folder: LocalPath | None = Field(
        None, description="Folder of these on every node; by default one for temporary files."
    )
    verify: VerifyOption = Field(
        "read",
        description="When the SHA-256 of the shards is compared with the manifest: as each is "
        "first read (read), of all of them first (all), or never (open).",
    )


class DataSection(SetSection):
    """Prepared set to read, and how."""

    text: Literal["category", "caption"] = Field(
        "category", description="Text teacher's input: class names in 60 prompts, or captions."
    )
    normalize: bool = Field(True, description="Center each cloud and scale it to the unit sphere.")
    create: Literal["never", "synthetic"] = Field(
        "never",
        description="Prepare the synthetic set if data.path does not exist; given in a file, it "
        "holds for the path in that file only.",
    )
