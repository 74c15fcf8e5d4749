"""The benchmarks that run a worker of Ray Train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Head

ROOT = Path(__file__).resolve().parents[2]


def benchmark(ray_head: Head, folder: Path, what: str, *options: str) -> dict[str, float]:
    """Run a part of the benchmark on few small clouds and give its figures."""
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "jobs" / "benchmark.py"), what, "run.name=bench",
            f"run.storage={folder}", f"cluster.address=127.0.0.1:{ray_head.port}",
            f"ingest.folder={folder / 'data'}", "ingest.samples=200", "ingest.num_points=32",
            "ingest.samples_per_shard=64", *options,
        ],
        env=ray_head.environment, cwd=folder, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics: dict[str, float] = json.loads((folder / "bench" / "result.json").read_text())[
        "metrics"
    ]
    return metrics


@pytest.mark.long
@pytest.mark.ray
def test_ingest_figures_come_from_whole_passes(ray_head, tmp_path):
    metrics = benchmark(
        ray_head, tmp_path, "ingest", "ingest.batch_size=16", "ingest.epochs=2",
        "ingest.npy_files=20", "ingest.meshes=2",
    )  # fmt: skip
    for mode in ("shared", "cached", "stream"):
        ratio = metrics[f"{mode}_per_second"] / metrics["dataloader_per_second"]
        assert metrics[f"{mode}_over_dataloader"] == pytest.approx(ratio)
    assert metrics["clouds_prepared_per_second"] > 0


@pytest.mark.long
@pytest.mark.ray
def test_every_feed_trains_to_about_the_same_loss(ray_head, tmp_path):
    metrics = benchmark(
        ray_head, tmp_path, "training", "training.preset=nano", "training.batch_size=16",
        "training.num_points=32", "training.records=1", "training.feeds=[shared, stream]",
    )  # fmt: skip
    assert metrics["shared/of_first"] == 1.0
    assert metrics["stream/loss"] == pytest.approx(metrics["shared/loss"], rel=0.2)
    assert 0 <= metrics["stream/data_wait_fraction"] < 1
