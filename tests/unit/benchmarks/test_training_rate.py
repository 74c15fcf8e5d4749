"""The parts of the training benchmark that need no Ray."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.benchmarks.ingest import random_set
from recon_ray.benchmarks.training_rate import (
    FEEDS,
    RECORD_STEPS,
    WARMUP_RECORDS,
    describe_training,
    figures_of,
    training_job,
)
from recon_ray.runs.folder import RunFolder


def records(rates: Sequence[float], waits: Sequence[float]) -> list[dict[str, float]]:
    return [
        {"perf/samples_per_second": rate, "perf/data_wait_fraction": wait, "train/loss": rate / 100}
        for rate, wait in zip(rates, waits, strict=True)
    ]


def test_records_are_weighted_by_their_time_and_the_first_ones_left_out():
    found = figures_of(records([1.0, 1.0, 100.0, 50.0], [1.0, 1.0, 0.0, 0.3]))
    assert WARMUP_RECORDS == 2
    # For 100 samples: 1 s without waiting, then 2 s of which 30 % were waiting.
    assert found["samples_per_second"] == pytest.approx(200 / 3)
    assert found["data_wait_fraction"] == pytest.approx(0.6 / 3)
    assert found["loss"] == 0.5


def test_other_records_are_no_steps():
    plain = records([1.0, 1.0, 100.0], [0.0, 0.0, 0.0])
    assert figures_of([*plain, {"val/accuracy": 1.0}]) == figures_of(plain)


def test_a_job_takes_the_steps_that_are_measured_and_runs_as_configured(tmp_path):
    config = BenchmarkConfig.model_validate(
        {
            "ingest": {"folder": tmp_path, "samples": 40, "num_points": 64},
            "training": {"preset": "nano", "batch_size": 16, "num_points": 32, "records": 3},
            "runtime": {"compile": "default", "precision": "fp32"},
        }
    )
    prepared = random_set(tmp_path, 40, config.ingest)
    for feed in FEEDS:
        assert training_job(config, prepared, RunFolder(str(tmp_path / feed)), feed).prepared
    job = training_job(config, prepared, RunFolder(str(tmp_path / "run")), "stream")
    assert job.total_steps == (WARMUP_RECORDS + 3) * RECORD_STEPS
    assert (job.mode, job.residency) == ("stream", "host")
    assert job.config.runtime.compile == "default"
    assert job.config.train.log_every_steps == RECORD_STEPS
    assert not job.uses_views
    assert job.make_task().build().training


def test_the_table_has_a_row_a_feed():
    options = BenchmarkConfig().training
    metrics = {}
    for feed in options.feeds:
        found = figures_of(records([1.0, 1.0, 10_000.0], [0.0, 0.0, 0.02]))
        metrics |= {f"{feed}/{name}": value for name, value in found.items()}
        metrics[f"{feed}/of_first"] = 1.0
    lines = describe_training(metrics, options).splitlines()
    assert [line.split() for line in lines[2:]] == [
        [feed, "10000", "1.00", "2.0%", "100.0000"] for feed in options.feeds
    ]
