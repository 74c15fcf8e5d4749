"""Reading and preparing data, measured beside a torch DataLoader on the same files."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from recon_ray.benchmarks.config import BenchmarkConfig, IngestBenchmarkSection
from recon_ray.benchmarks.feed_loop import EpochTime, feed_loop, time_epoch
from recon_ray.benchmarks.memory import watch_memory
from recon_ray.benchmarks.metric_table import metric_table
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.train import run_workers
from recon_ray.cluster.training_job import Mode, TrainingJob
from recon_ray.config.sections.data import SetSection
from recon_ray.config.sections.training import TrainingConfig, TrainSection
from recon_ray.data.format.files import parquet_bytes, read_parts, read_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import ROW_GROUP_SIZE, points_to_numpy
from recon_ray.data.loading.batches import Batch, BatchOptions
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.render import render_views
from recon_ray.data.prepare.runners import run_processes
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.readers.meshes import Shape
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.custom import CustomSource
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import DataError
from recon_ray.runs.folder import RunFolder
from recon_ray.storage import Place
from recon_ray.train.settings import FitSettings

logger = logging.getLogger(__name__)

DECODINGS = 5
SMALL = 4  # batches of the set whose memory is that of the processes alone
VIEW_SIZE = 224


@dataclass(frozen=True)
class RandomClouds:
    """Source of random clouds near the unit sphere."""

    samples: int
    num_points: int
    name: str = "random"

    def scan(self) -> Listing:
        """List the clouds, in ten classes."""
        items = (
            Item(f"cloud{i:07d}", "train", f"class{i % 10}", i % 10) for i in range(self.samples)
        )
        return Listing(tuple(items), tuple(f"class{i}" for i in range(10)))

    def load(self, item: Item, image_size: int | None = None) -> Sample:
        """Draw one cloud."""
        del image_size
        return Sample(Shape(random_cloud(int(item.object_id[5:]), self.num_points)))


def random_cloud(number: int, num_points: int) -> np.ndarray:
    """Draw points near the unit sphere: (N, 3) float64."""
    points = np.random.default_rng(number).standard_normal((num_points, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def measure_ingest(config: BenchmarkConfig, folder: RunFolder) -> tuple[dict[str, float], str]:
    """Measure the ingest modes, the DataLoader, preparing and rendering.

    Returns:
        Samples per second, fixed seconds an epoch, memory in units of the decoded set, and ratios;
        and their table.
    """
    options = config.ingest
    prepared = random_set(options.folder, options.samples, options)
    small = random_set(options.folder, SMALL * options.batch_size, options)
    metrics = {
        "clouds_prepared_per_second": _prepare_rate(options),
        "views_rendered_per_second_per_core": _render_rate(options.meshes),
        **decoding_rates(prepared.splits["train"].geometry[0]),
    }
    loader = [time_epoch(loader_batches(prepared, options, e)) for e in range(options.epochs)]
    metrics |= figures_of("dataloader", loader, options)
    for mode in options.modes:
        logger.info("benchmark: %s", mode)
        with ray_session(config.cluster):
            with watch_memory() as processes:
                _feed(config, folder, small, mode)
            with watch_memory() as peak:
                epochs = _feed(config, folder, prepared, mode)
        metrics |= figures_of(mode, epochs, options)
        decoded = options.samples * options.num_points * 3 * 4
        metrics[f"{mode}_memory_ratio"] = (peak.bytes - processes.bytes) / decoded
        rate, alternative = metrics[f"{mode}_per_second"], metrics["dataloader_per_second"]
        metrics[f"{mode}_over_dataloader"] = rate / alternative
    return metrics, describe(metrics, options)


def random_set(folder: Path, samples: int, options: IngestBenchmarkSection) -> PreparedSet:
    """Prepare the random clouds, or reuse those of an earlier run."""
    path = folder / f"clouds-{samples}x{options.num_points}"
    prepare(
        RandomClouds(samples, options.num_points),
        path,
        PrepareOptions(num_points=options.num_points, samples_per_shard=options.samples_per_shard),
        run=run_processes(),
    )
    return PreparedSet.open(path)


class ParquetRows(IterableDataset[Batch]):
    """Batches from Parquet files, dealt to the loader's workers and shuffled within, by epoch."""

    def __init__(self, files: Sequence[Place], batch_size: int, epoch: int) -> None:
        self.files = files
        self.batch_size = batch_size
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        random = np.random.default_rng([self.epoch])
        for number in random.permutation(len(self.files))[first::step]:
            table = read_table(self.files[number], ["sample_id", "points", "label"])
            ids, labels = table["sample_id"].to_numpy(), table["label"].to_numpy()
            points = points_to_numpy(table["points"])
            order = random.permutation(len(ids))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                yield {
                    "sample_id": torch.from_numpy(ids[rows]),
                    "points": torch.from_numpy(points[rows]),
                    "label": torch.from_numpy(labels[rows].astype(np.int64)),
                }


def loader_batches(
    prepared: PreparedSet, options: IngestBenchmarkSection, epoch: int
) -> Iterator[Batch]:
    """Return batches of the alternative: a DataLoader whose workers read and batch whole files."""
    files = prepared.splits["train"].geometry
    rows = ParquetRows(files, options.batch_size, epoch)
    return iter(DataLoader(rows, batch_size=None, num_workers=options.loader_workers))


def decoding_rates(path: Place) -> dict[str, float]:
    """Measure rows a second of a shard in one thread, stored as tensors and as lists of numbers."""
    table = read_table(path, ["sample_id", "points", "label"])
    with tempfile.TemporaryDirectory() as folder:
        lists, own = Path(folder, "lists.parquet"), Path(folder, "bytes.parquet")
        pq.write_table(  # the options that suit lists of floats best
            table, lists, compression="zstd", compression_level=1, use_dictionary=False,
            use_byte_stream_split=["points.list.element"], row_group_size=ROW_GROUP_SIZE,
        )  # fmt: skip
        own.write_bytes(parquet_bytes(table))
        seconds = {file: _decoding_seconds(file, table.column_names) for file in (own, lists)}
        size_ratio = own.stat().st_size / lists.stat().st_size
    return {
        "decoded_per_second_per_core": len(table) / seconds[own],
        "decoded_from_lists_per_second_per_core": len(table) / seconds[lists],
        "file_over_lists": size_ratio,
    }


def _decoding_seconds(path: Path, columns: Sequence[str]) -> float:
    """Return the shortest of a few times."""
    times = []
    for _ in range(DECODINGS):
        started = time.perf_counter()
        for _ in read_parts(path, columns, ROW_GROUP_SIZE):
            pass
        times.append(time.perf_counter() - started)
    return min(times)


def training_options(config: BenchmarkConfig, mode: Mode) -> TrainingConfig:
    """Return the configuration of a training that reads in a mode and keeps nothing on a device."""
    options = config.ingest
    return TrainingConfig(
        run=config.run,
        runtime=config.runtime,
        data=SetSection(mode=mode, residency="object_store" if mode == "shared" else "stream"),
        train=TrainSection(epochs=options.epochs, global_batch_size=options.batch_size),
    )


def _feed(
    config: BenchmarkConfig, folder: RunFolder, prepared: PreparedSet, mode: Mode
) -> list[EpochTime]:
    """Time the passes of a Ray Train worker that only reads."""
    with tempfile.TemporaryDirectory(dir=folder.local) as storage:
        job = TrainingJob(
            make_task=_no_task,
            settings=FitSettings(training_options(config, mode)),
            options=BatchOptions(seed=config.run.seed),
            prepared=prepared,
            folder=RunFolder(storage),
        )
        plan = plan_workers(
            config.cluster, reads_during_training=mode == "stream", device=config.runtime.device
        )
        outcome = run_workers(feed_loop, job, config.cluster, plan, mode)
    return [EpochTime(*epoch) for epoch in outcome["epochs"]]


def _no_task() -> Any:  # noqa: ANN401 - the loop that only reads makes none
    raise AssertionError("a loop that only reads has no task")


def figures_of(
    name: str, epochs: list[EpochTime], options: IngestBenchmarkSection
) -> dict[str, float]:
    """Compute rate and fixed cost of the fastest pass, after checking that no sample came twice."""
    whole = options.samples - options.samples % options.batch_size
    for epoch in epochs:
        if epoch.distinct != epoch.rows or epoch.rows < whole:
            raise DataError(
                f"{name}: a pass gave {epoch.rows} samples, {epoch.distinct} of them different, "
                f"instead of {whole} or more"
            )
    best = min(epochs, key=lambda epoch: epoch.seconds)
    after = (best.rows - options.batch_size) / max(best.seconds - best.first_seconds, 1e-9)
    return {
        f"{name}_per_second": best.rows / best.seconds,
        f"{name}_first_pass_per_second": epochs[0].rows / epochs[0].seconds,
        f"{name}_fixed_seconds": best.first_seconds,
        f"{name}_per_second_after_first_batch": after,
    }


def _prepare_rate(options: IngestBenchmarkSection) -> float:
    """Measure clouds a second from npy files to a prepared set, with a process a core."""
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        source, output = Path(root, "npy"), Path(root, "set")
        source.mkdir()
        for number in range(options.npy_files):
            cloud = random_cloud(number, options.num_points).astype(np.float32)
            np.save(source / f"{number:06d}.npy", cloud)
        wanted = PrepareOptions(num_points=options.num_points, samples_per_shard=128)
        started = time.perf_counter()
        prepare(CustomSource(source), output, wanted, run=run_processes())
        seconds = time.perf_counter() - started
        shutil.rmtree(source)
    return options.npy_files / seconds


def _render_rate(meshes: int) -> float:
    """Measure views of 224 pixels a second, rendered by one process from the synthetic shapes."""
    source = SyntheticSource(train_per_class=-(-meshes // 16), test_per_class=0)
    shapes = [source.load(item).shape for item in islice(source.scan().items, meshes)]
    render_views(shapes[0], 1, VIEW_SIZE)
    started = time.perf_counter()
    for shape in shapes:
        render_views(shape, 4, VIEW_SIZE)
    return 4 * len(shapes) / (time.perf_counter() - started)


def describe(metrics: dict[str, float], options: IngestBenchmarkSection) -> str:
    """Format the table."""
    lines = [
        f"{options.samples} clouds of {options.num_points} points, batches of {options.batch_size},"
        f" fastest of {options.epochs} passes; DataLoader: {options.loader_workers} processes"
    ]
    lines += metric_table(
        {"dataloader_over_dataloader": 1.0, **metrics},
        [f"{name}_" for name in ("dataloader", *options.modes)],
        {
            "samples/s": ("per_second", "{:.0f}".format),
            "over loader": ("over_dataloader", "{:.1f}x".format),
            "first pass": ("first_pass_per_second", "{:.0f}".format),
            "fixed s": ("fixed_seconds", "{:.2f}".format),
            "after it": ("per_second_after_first_batch", "{:.0f}".format),
            "memory": ("memory_ratio", "{:.2f}x".format),
        },
    )
    lines += [
        "first pass: with reading the set into memory left out (shared, cached); fixed: to the "
        "first batch; memory: peak beyond that of the idle processes, in decoded sets",
        f"prepared from npy: {metrics['clouds_prepared_per_second']:.0f} clouds/s; rendered: "
        f"{metrics['views_rendered_per_second_per_core']:.0f} views/s and core",
        f"decoded by one thread: {metrics['decoded_per_second_per_core']:.0f} clouds/s; lists of "
        f"numbers, zstd: {metrics['decoded_from_lists_per_second_per_core']:.0f}; size of a file "
        f"over that of lists: {metrics['file_over_lists']:.2f}",
    ]
    return "\n".join(lines)
