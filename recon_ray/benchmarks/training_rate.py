"""Pre-training on a worker of Ray Train, its rows read in every way, in one run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from recon_ray.benchmarks.config import BenchmarkConfig, TrainingBenchmarkSection
from recon_ray.benchmarks.ingest import random_set
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.train import train_on_ray
from recon_ray.cluster.training_job import TrainingJob, placement
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.task import PretrainTask
from recon_ray.train.settings import FitSettings

logger = logging.getLogger(__name__)

#: How rows reach a worker, and where it keeps them: options of the section ``data``.
FEEDS: dict[str, dict[str, str]] = {
    "device": {"mode": "shared", "residency": "device"},
    "shared": {"mode": "shared", "residency": "host"},
    "cached": {"mode": "cached", "residency": "stream"},
    "stream": {"mode": "stream", "residency": "stream"},
}
#: Steps of a record, and how many records go by before the timed ones: they compile and capture,
#: and a stream fills its buffer.
RECORD_STEPS, WARMUP_RECORDS = 20, 2


def measure_training(config: BenchmarkConfig, folder: RunFolder) -> dict[str, float]:
    """Train on random clouds of a prepared set, as ``jobs/pretrain.py`` does, with every feed.

    Returns:
        By ``<feed>/``: ``samples_per_second``, ``data_wait_fraction``, ``loss`` of the last record
        and ``of_first``, the rate over that of the first feed.
    """
    options = config.training
    prepared = random_set(config.ingest.folder, config.ingest.samples, config.ingest)
    metrics: dict[str, float] = {}
    for feed in options.feeds:
        logger.info("benchmark: training, %s", feed)
        found = figures_of(_records(config, folder, prepared, feed), options.batch_size)
        metrics |= {f"{feed}/{name}": value for name, value in found.items()}
        first = metrics[f"{options.feeds[0]}/samples_per_second"]
        metrics[f"{feed}/of_first"] = found["samples_per_second"] / first
    return metrics


def _records(
    config: BenchmarkConfig, folder: RunFolder, prepared: PreparedSet, feed: str
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=folder.local) as storage, ray_session(config.cluster):
        job = training_job(config, prepared, RunFolder(storage), feed)
        mode, _ = placement(job.config.data)
        plan = plan_workers(
            config.cluster, reads_during_training=mode != "shared", device=config.runtime.device
        )
        train_on_ray(job, config.cluster, plan, mode)
        return read_records(job.folder)


def training_job(
    config: BenchmarkConfig,
    prepared: PreparedSet,
    folder: RunFolder,
    feed: str,
) -> TrainingJob:
    """Pre-training with a text teacher, without evaluation, of as many steps as are measured."""
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


def figures_of(records: Sequence[Mapping[str, Any]], batch_size: int) -> dict[str, float]:
    """Mean rate and share of waiting over the records that are timed.

    Args:
        records: What a run has recorded, :data:`RECORD_STEPS` steps each.
        batch_size: Samples of a step.
    """
    trained = [record for record in records if "perf/samples_per_second" in record]
    timed = trained[WARMUP_RECORDS:]
    seconds = [RECORD_STEPS * batch_size / record["perf/samples_per_second"] for record in timed]
    waited = [
        spent * record["perf/data_wait_fraction"]
        for spent, record in zip(seconds, timed, strict=True)
    ]
    return {
        "samples_per_second": len(timed) * RECORD_STEPS * batch_size / sum(seconds),
        "data_wait_fraction": sum(waited) / sum(seconds),
        "loss": timed[-1]["train/loss"],
    }


def describe_training(metrics: dict[str, float], options: TrainingBenchmarkSection) -> str:
    """Table of the figures."""
    lines = [
        f"pre-training, preset {options.preset}, batches of {options.batch_size}, "
        f"{options.num_points} points of the stored ones, {RECORD_STEPS * options.records} steps "
        f"after {RECORD_STEPS * WARMUP_RECORDS}",
        f"{'':12}{'samples/s':>12}{'of ' + options.feeds[0]:>12}{'data wait':>12}{'loss':>10}",
    ]
    lines += [
        f"{feed:12}{metrics[f'{feed}/samples_per_second']:>12.0f}"
        f"{metrics[f'{feed}/of_first']:>12.2f}{metrics[f'{feed}/data_wait_fraction']:>12.1%}"
        f"{metrics[f'{feed}/loss']:>10.4f}"
        for feed in options.feeds
    ]
    return "\n".join(lines)
