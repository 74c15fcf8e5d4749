"""Rate of pre-training on a worker of Ray Train with every feed, in one run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import harmonic_mean
from typing import Any

import numpy as np

from recon_ray.benchmarks.config import BenchmarkConfig, TrainingBenchmarkSection
from recon_ray.benchmarks.ingest import random_set
from recon_ray.benchmarks.metric_table import metric_table
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.train import train_on_ray
from recon_ray.cluster.training_job import TrainingJob
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.task import PretrainTask
from recon_ray.train.settings import FitSettings

logger = logging.getLogger(__name__)

#: Ingest mode of each feed, and where its rows lie in the worker.
FEEDS: dict[str, dict[str, str]] = {
    "device": {"mode": "shared", "residency": "device"},
    "shared": {"mode": "shared", "residency": "object_store"},
    "cached": {"mode": "cached", "residency": "stream"},
    "stream": {"mode": "stream", "residency": "stream"},
}
#: Steps of a record, and records before the timed ones, in which steps are compiled and captured
#: and a stream fills its buffer.
RECORD_STEPS, WARMUP_RECORDS = 20, 2


def measure_training(config: BenchmarkConfig, folder: RunFolder) -> tuple[dict[str, float], str]:
    """Train on random clouds of a prepared set, as ``jobs/pretrain.py`` does, with every feed.

    Returns:
        By ``<feed>/``: ``samples_per_second``, ``data_wait_fraction``, ``loss`` of the last record
        and ``of_first``, the rate over that of the first feed; and their table.
    """
    options = config.training
    prepared = random_set(config.ingest.folder, config.ingest.samples, config.ingest)
    metrics: dict[str, float] = {}
    for feed in options.feeds:
        logger.info("benchmark: training, %s", feed)
        found = figures_of(_records(config, folder, prepared, feed))
        metrics |= {f"{feed}/{name}": value for name, value in found.items()}
        first = metrics[f"{options.feeds[0]}/samples_per_second"]
        metrics[f"{feed}/of_first"] = found["samples_per_second"] / first
    return metrics, describe_training(metrics, options)


def _records(
    config: BenchmarkConfig, folder: RunFolder, prepared: PreparedSet, feed: str
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=folder.local) as storage, ray_session(config.cluster):
        job = training_job(config, prepared, RunFolder(storage), feed)
        mode = job.mode
        plan = plan_workers(
            config.cluster, reads_during_training=mode == "stream", device=config.runtime.device
        )
        train_on_ray(job, config.cluster, plan, mode)
        return read_records(job.folder)


def training_job(
    config: BenchmarkConfig,
    prepared: PreparedSet,
    folder: RunFolder,
    feed: str,
) -> TrainingJob:
    """Make a pre-training with a text teacher, without evaluation, of the steps to measure."""
    options = config.training
    steps = RECORD_STEPS * (WARMUP_RECORDS + options.records)
    per_epoch = max(prepared.splits["train"].rows // options.batch_size, 1)
    full = PretrainConfig.model_validate(
        {
            "run": {"seed": config.run.seed},
            "model": {"preset": options.preset},
            "teacher": {"text": {"name": "descriptor:512"}, "image": {"name": None}},
            "data": {"num_points": options.num_points, **FEEDS[feed]},
            "train": {
                "global_batch_size": options.batch_size,
                "epochs": -(-steps // per_epoch),
                "steps": steps,
                "log_every_steps": RECORD_STEPS,
            },
            "eval": {"enabled": False},
            "runtime": config.runtime,
        }
    )
    task: dict[str, Any] = {"texts": prepared.classes, "num_classes": len(prepared.classes)}
    return TrainingJob(
        make_task=partial(PretrainTask, full, **task),
        settings=FitSettings(full),
        options=PretrainTask(full, **task).batch_options(),
        prepared=prepared,
        folder=folder,
    )


def figures_of(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average rate and share of waiting over the timed records, :data:`RECORD_STEPS` steps each."""
    trained = [record for record in records if "perf/samples_per_second" in record]
    timed = trained[WARMUP_RECORDS:]
    rates = np.array([record["perf/samples_per_second"] for record in timed])
    waits = [record["perf/data_wait_fraction"] for record in timed]
    return {
        "samples_per_second": harmonic_mean(rates.tolist()),
        "data_wait_fraction": float(np.average(waits, weights=1 / rates)),
        "loss": timed[-1]["train/loss"],
    }


def describe_training(metrics: dict[str, float], options: TrainingBenchmarkSection) -> str:
    """Format the table."""
    title = (
        f"pre-training, preset {options.preset}, batches of {options.batch_size}, "
        f"{options.num_points} points of the stored ones, {RECORD_STEPS * options.records} steps "
        f"after {RECORD_STEPS * WARMUP_RECORDS}"
    )
    columns = {
        "samples/s": ("samples_per_second", "{:.0f}".format),
        f"of {options.feeds[0]}": ("of_first", "{:.2f}".format),
        "data wait": ("data_wait_fraction", "{:.1%}".format),
        "loss": ("loss", "{:.4f}".format),
    }
    names = [f"{feed}/" for feed in options.feeds]
    return "\n".join([title, *metric_table(metrics, names, columns)])
