"""The ingest benchmark through a Ray Train worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.ray
def test_ingest_figures_come_from_whole_passes(ray_head, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "jobs" / "benchmark.py"), "ingest", "run.name=bench",
            f"run.storage={tmp_path}", f"cluster.address=127.0.0.1:{ray_head.port}",
            f"ingest.folder={tmp_path / 'data'}", "ingest.samples=200", "ingest.num_points=32",
            "ingest.samples_per_shard=64", "ingest.batch_size=16", "ingest.epochs=2",
            "ingest.modes=[stream]", "ingest.npy_files=20", "ingest.meshes=2",
        ],
        env=ray_head.environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "bench" / "result.json").read_text())["metrics"]
    ratio = metrics["stream_per_second"] / metrics["dataloader_per_second"]
    assert metrics["stream_over_dataloader"] == pytest.approx(ratio)
    assert metrics["clouds_prepared_per_second"] > 0
