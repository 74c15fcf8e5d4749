"""Benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from recon_ray.config.schema.base import ClusterSection, Count, JobConfig, Section


class IngestBenchmarkSection(Section):
    """Reading a prepared set, beside a torch DataLoader on the same files."""

    folder: Path = Field(
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


class BenchmarkConfig(JobConfig):
    """jobs/benchmark.py: measure, each figure beside a named alternative in one run."""

    what: Literal["ingest"] = Field("ingest", description="What is measured.")
    cluster: ClusterSection = Field(
        ClusterSection(object_store_bytes=4_000_000_000),
        description="Where and on how many workers.",
    )
    ingest: IngestBenchmarkSection = Field(
        IngestBenchmarkSection(), description="Reading prepared sets."
    )
