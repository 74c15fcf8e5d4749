"""Training steps, each faster way beside the plain eager step, in one run."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from recon_ray.config.schema import BenchmarkConfig, StepBenchmarkSection
from recon_ray.data.batches import Batch, prefetch_batches
from recon_ray.models.batch_norm import set_sync_batch_norm
from recon_ray.programs.step_workloads import TrainingWorkload, training_workload
from recon_ray.train.batching import BatchPlan
from recon_ray.train.clock import StepClock
from recon_ray.train.loop import peak_memory_bytes
from recon_ray.train.residency import Residency, indexed_feed
from recon_ray.train.runtime import RunFolder, TrainFeed
from recon_ray.train.settings import FitSettings
from recon_ray.train.step import Step, wants_graph

logger = logging.getLogger(__name__)

#: Steps before the timed ones: they compile, tune and capture.
WARMUP = 6
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Way:
    """How a step is computed.

    Attributes:
        settings: What differs in the settings of the loop.
        residency: Where the rows lie.
        tf32: Whether products of float32 take the tensor cores.
    """

    settings: dict[str, Any]
    residency: Residency = "host"
    tf32: bool = False


_EAGER = {"precision": "fp32", "compile": "off", "cuda_graph": False}
_BF16 = {**_EAGER, "precision": "bf16"}
_FAST = {**_BF16, "compile": "default", "cuda_graph": True}
WAYS = {
    "fp32": Way(_EAGER),
    "tf32": Way(_EAGER, tf32=True),
    "bf16": Way(_BF16),
    "graph": Way({**_BF16, "cuda_graph": True}),
    "compile": Way({**_BF16, "compile": "default"}),
    "compile+graph": Way(_FAST),
    "device": Way(_FAST, "device"),
    "max": Way({**_FAST, "compile": "max"}, "device"),
}


def measure_steps(config: BenchmarkConfig, folder: RunFolder) -> dict[str, float]:
    """Measure every workload in every way.

    Returns:
        By ``<workload>/<way>/``: ``samples_per_second``, ``milliseconds``, ``speedup`` over the
        plain eager step, ``data_wait_fraction``, ``peak_memory_bytes``, ``start_seconds``
        (compiling and capturing), ``loss``, ``matmul_fraction`` of the measured matrix rate.
    """
    options = config.step
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metrics = matmul_rates(device)
    for name in options.workloads:
        workload = training_workload(name, options.preset, options.samples, folder.local)
        metrics[f"{name}/flops"] = flops = count_flops(workload, options, device)
        for variant in options.variants:
            trace = folder.local / f"{name}-{variant}.json.gz" if options.profile else None
            found = _measure(workload, WAYS[variant], options, device, config.run.seed, trace)
            first = metrics.get(f"{name}/{options.variants[0]}/milliseconds", math.nan)
            found["speedup"] = first / found["milliseconds"] if math.isfinite(first) else 1.0
            rate = flops / (found["milliseconds"] / 1e3)
            found["matmul_fraction"] = rate / metrics["matmul_bf16_flops_per_second"]
            metrics |= {f"{name}/{variant}/{key}": value for key, value in found.items()}
            logger.info("%s %s: %s", name, variant, _line(found))
    return metrics


def matmul_rates(device: torch.device) -> dict[str, float]:
    """Rate of large matrix products on this device, in operations a second."""
    size = MATMUL_SIZE if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = _seconds(lambda: a @ a, device, 20)
    return {"matmul_bf16_flops_per_second": 2 * size**3 / seconds}


def _seconds(run: Callable[[], object], device: torch.device, times: int) -> float:
    for _ in range(3):
        run()
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(
    workload: TrainingWorkload, options: StepBenchmarkSection, device: torch.device
) -> float:
    """Operations of the products of one plain eager step, forward and backward."""
    step, batches = _step(workload, WAYS["fp32"], options, device, seed=0)
    with FlopCounterMode(display=False) as counter:
        step(next(batches), epoch=0, step=0, lr=[0.0] * 3)
    batches.close()
    return float(counter.get_total_flops())


def _step(
    workload: TrainingWorkload,
    way: Way,
    options: StepBenchmarkSection,
    device: torch.device,
    seed: int,
) -> tuple[Step, Any]:
    torch._dynamo.reset()
    torch.manual_seed(seed)
    task, size = workload.task, options.batch_size or workload.batch_size
    settings = FitSettings(
        epochs=1, global_batch_size=size, seed=seed, clip_norm=workload.clip_norm, **way.settings
    )
    module = task.build().to(device)
    set_sync_batch_norm(module, False)
    task.on_device(device)
    optimizer = torch.optim.AdamW(
        task.parameter_groups(module), fused=True, capturable=wants_graph(settings, device)
    )
    plan = BatchPlan(size, 1)
    feed = indexed_feed(
        workload.table, workload.options, seed=seed, residency=way.residency, device=device
    )
    step = Step(
        task, module, optimizer, settings=settings, plan=plan, feed=feed, device=device, rank=0
    )
    return step, endless(feed, plan, device)


def endless(feed: TrainFeed, plan: BatchPlan, device: torch.device) -> Iterator[Batch]:
    """Batches of one epoch after the other, prepared ahead as the training loop does."""

    def batches() -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from feed.epoch(epoch, 0, plan, 0)

    return prefetch_batches(batches, device)


def _measure(
    workload: TrainingWorkload,
    way: Way,
    options: StepBenchmarkSection,
    device: torch.device,
    seed: int,
    trace: Path | None,
) -> dict[str, float]:
    torch.backends.cuda.matmul.allow_tf32 = way.tf32
    torch.backends.cudnn.allow_tf32 = way.tf32
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    step, batches = _step(workload, way, options, device, seed)
    rates = [1e-4] * 3
    clock = StepClock(device)
    timed = clock.waiting(batches)
    for number in range(WARMUP):
        step(next(timed), epoch=0, step=number, lr=rates)
    _wait(device)
    start_seconds = time.perf_counter() - started
    step.meter.read()
    clock.lap()
    for number in range(options.steps):
        step(next(timed), epoch=0, step=WARMUP + number, lr=rates)
        clock.stepped()
    _wait(device)
    lap = clock.lap()
    loss = step.meter.read().means()["loss"]
    found = {
        "samples_per_second": lap.steps * (options.batch_size or workload.batch_size) / lap.seconds,
        "milliseconds": 1e3 * lap.seconds / lap.steps,
        "data_wait_fraction": lap.waited / lap.seconds,
        "peak_memory_bytes": float(peak_memory_bytes(device)),
        "start_seconds": start_seconds,
        "loss": loss,
    }
    if trace is not None:
        with profile() as profiler:
            for number in range(3):
                step(next(timed), epoch=0, step=number, lr=rates)
            _wait(device)
        profiler.export_chrome_trace(str(trace))
        by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=90)
        trace.with_suffix("").with_suffix(".txt").write_text(table)
    batches.close()
    return found


def _line(found: dict[str, float]) -> str:
    return (
        f"{found['samples_per_second']:.0f} samples/s, {found['milliseconds']:.2f} ms, "
        f"{found['speedup']:.1f}x, data {found['data_wait_fraction']:.1%}, "
        f"{found['peak_memory_bytes'] / 2**30:.2f} GiB, start {found['start_seconds']:.0f} s, "
        f"matrix rate {found['matmul_fraction']:.1%}, loss {found['loss']:.4f}"
    )
