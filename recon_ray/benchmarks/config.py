"""Configuration of ``jobs/benchmark.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recon_ray.config.sections.common import ClusterSection, Count, JobConfig, LocalPath, Section


class IngestBenchmarkSection(Section):
    """Reading a prepared set, beside a torch DataLoader on the same files."""

    folder: LocalPath = Field(
        Path("runs/benchmark-data"),
        description="Folder of the random clouds, made once and kept for the next time.",
    )
    samples: Count = Field(20_000, description="Clouds.")
    num_points: Count = Field(8192, description="Points a cloud.")
    samples_per_shard: Count = Field(256, description="Clouds a Parquet file.")
    batch_size: Count = Field(64, description="Clouds a batch.")
    modes: tuple[Literal["shared", "cached", "stream"], ...] = Field(
        ("shared", "cached", "stream"), description="Ingest modes that are measured."
    )
    epochs: Count = Field(3, description="Passes over the clouds; the fastest counts.")
    loader_workers: Count = Field(2, description="Processes of the torch DataLoader.")
    npy_files: Count = Field(1000, description="Clouds that are prepared from npy files.")
    meshes: Count = Field(60, description="Meshes whose views are rendered by one process.")


Workload = Literal[
    "pretrain", "pretrain_contrast", "pretrain_online", "finetune_scan", "finetune_modelnet8k",
    "partseg", "vote_scan", "vote_modelnet8k", "svm",
]  # fmt: skip
Variant = Literal[
    "fp32", "tf32", "bf16", "graph", "compile", "compile+graph", "device", "max",
    "fp32+checkpoint", "bf16+checkpoint", "device+checkpoint",
]  # fmt: skip


class StepBenchmarkSection(Section):
    """Steps of training and evaluation, each faster way beside the plain eager step."""

    workloads: tuple[Workload, ...] = Field(
        (
            "pretrain", "pretrain_contrast", "pretrain_online", "finetune_scan",
            "finetune_modelnet8k", "partseg", "vote_scan", "vote_modelnet8k", "svm",
        ),
        description="Workloads, at the published sizes.",
    )  # fmt: skip
    variants: tuple[Variant, ...] = Field(
        ("fp32", "tf32", "bf16", "graph", "compile", "compile+graph", "device"),
        description="Variants: the plain eager step (fp32, tf32), bf16 autocast, one CUDA graph of "
        "it, compiled, both, and both with the rows on the device; max tunes the compiled kernels, "
        "and +checkpoint computes activations again in the backward pass.",
    )
    preset: Literal["nano", "tiny", "small", "base"] = Field("base", description="Architecture.")
    batch_size: Count | None = Field(
        None, description="Shapes a step; by default the published number of each workload."
    )
    samples: Count = Field(8192, description="Random clouds that are read.")
    steps: Count = Field(30, description="Steps that are timed.")
    curve_steps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Also train the first workload for this many steps in every variant, with one "
        "seed, and compare the losses at the end.",
    )
    memory_gib: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Also find, for every training workload in the last variant, the largest batch "
        "whose step takes at most this many GiB (without a GPU: of tensors, in an eager variant); "
        "at most step.samples.",
    )
    profile: bool = Field(
        False, description="Write a trace of every variant, and its kernels by time."
    )


class TrainingBenchmarkSection(Section):
    """Pre-training on a worker of Ray Train; its clouds are those of the section ingest."""

    feeds: tuple[Literal["device", "shared", "cached", "stream"], ...] = Field(
        ("device", "shared", "cached", "stream"),
        description="Where rows are read from: the worker's device, memory (data.mode=shared, "
        "cached), or the files in every epoch. Each is compared with the first.",
    )
    preset: Literal["nano", "tiny", "small", "base"] = Field("base", description="Architecture.")
    batch_size: Count = Field(128, description="Shapes a step.")
    num_points: Count = Field(1024, description="Points of a cloud in the model's input.")
    records: Count = Field(15, description="Records of 20 steps that are timed.")


class ScaleBenchmarkSection(Section):
    """Central work of large sets and long runs, each at a tenth of a size and at the size."""

    shards: Annotated[int, Field(ge=100)] = Field(500_000, description="Shards of an opened set.")
    latency: Annotated[float, Field(ge=0)] = Field(
        0.02, description="Seconds that a request to the store takes while a set is opened."
    )
    prepared_shards: Annotated[int, Field(ge=100)] = Field(
        50_000, description="Shards, of ten samples, of a set that is planned and recorded."
    )
    captions: Annotated[int, Field(ge=100)] = Field(1_000_000, description="Distinct captions.")
    samples: Annotated[int, Field(ge=100)] = Field(
        100_000_000, description="Samples of the ledger."
    )
    commits: Annotated[int, Field(ge=2)] = Field(100, description="Commits of a run.")
    kept_checkpoints: tuple[Count, ...] = Field(
        (3, 1000), description="Checkpoints that are kept beside those that are written."
    )


class BenchmarkConfig(JobConfig):
    """jobs/benchmark.py: measure this package beside named alternatives, in one run."""

    what: Literal["ingest", "step", "training", "ops", "scale", "all"] = Field(
        "ingest", description="Part that is measured."
    )
    cluster: ClusterSection = Field(
        ClusterSection(object_store_bytes=4_000_000_000),
        description="Cluster and number of workers.",
    )
    ingest: IngestBenchmarkSection = Field(
        IngestBenchmarkSection(), description="Reading prepared sets."
    )
    step: StepBenchmarkSection = Field(StepBenchmarkSection(), description="Steps of training.")
    training: TrainingBenchmarkSection = Field(
        TrainingBenchmarkSection(), description="Steps on a worker of Ray Train, with their feed."
    )
    scale: ScaleBenchmarkSection = Field(
        ScaleBenchmarkSection(), description="Counted costs of large sets and long runs."
    )
