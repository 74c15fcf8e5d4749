"""Training steps, each faster way beside the plain eager step, in one run."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from recon_ray.benchmarks.config import BenchmarkConfig, StepBenchmarkSection, Variant
from recon_ray.benchmarks.memory import TensorPeak
from recon_ray.benchmarks.step_workloads import (
    REPEATS,
    EvaluationWorkload,
    TrainingWorkload,
    evaluation_workload,
    training_workload,
)
from recon_ray.cluster.evaluate import WorkerRuntime
from recon_ray.data.loading.batches import Batch
from recon_ray.data.loading.prefetch import prefetch_batches
from recon_ray.models.batch_norm import set_sync_batch_norm
from recon_ray.models.cloud import set_activation_checkpointing
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.classify.voting import ROUNDS
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.feed.resident import Residency, indexed_feed
from recon_ray.train.inference import Inference
from recon_ray.train.metrics import peak_memory_bytes
from recon_ray.train.settings import FitSettings
from recon_ray.train.step.one_step import Step, wants_graph
from recon_ray.train.step_timer import StepClock

logger = logging.getLogger(__name__)

#: Steps before the timed ones: they compile, tune and capture.
WARMUP = 6
MATMUL_SIZE = 8192
#: Rate of the trainings whose losses are compared.
CURVE_LR = 5e-4
#: Steps of a batch that is tried for its memory, and how many batches are.
FEW_STEPS, TRIES = 5, 8
#: Timings of an evaluation, of which the median counts, after one that does not: memory for all
#: its batches is found then.
PAIRS = 3
#: Evaluations, and how many clouds they encode at once.
EVALUATIONS = {"svm": 128, "vote_scan": 320, "vote_modelnet8k": 320}


@dataclass(frozen=True)
class Way:
    """How a step is computed.

    Attributes:
        settings: What differs in the settings of the loop.
        residency: Where the rows lie.
        tf32: Whether products of float32 take the tensor cores.
        checkpointing: Whether activations are computed again in the backward pass.
    """

    settings: dict[str, Any]
    residency: Residency = "host"
    tf32: bool = False
    checkpointing: bool = False


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
    "fp32+checkpoint": Way(_EAGER, checkpointing=True),
    "bf16+checkpoint": Way(_BF16, checkpointing=True),
    "device+checkpoint": Way(_FAST, "device", checkpointing=True),
}


def measure_steps(config: BenchmarkConfig, folder: RunFolder) -> dict[str, float]:
    """Measure every workload in every way.

    Returns:
        By ``<workload>/<way>/``: ``samples_per_second``, ``milliseconds``, ``speedup`` over the
        plain eager step, ``data_wait_fraction``, ``peak_memory_bytes``, ``start_seconds``
        (compiling and capturing), ``loss``, ``matmul_fraction`` of the measured matrix rate; of
        eager training steps also ``step_bytes``, the most memory of the tensors that a step makes;
        with a limit of memory ``largest_batch``, its bytes and its samples a second.
    """
    options = config.step
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metrics = matmul_rates(device)
    for name in options.workloads:
        measured = _trained if name not in EVALUATIONS else _evaluated
        first = math.nan
        for variant, found in measured(name, options, device, folder, config.run.seed):
            first = found["milliseconds"] if math.isnan(first) else first
            found["speedup"] = first / found["milliseconds"]
            rate = found.pop("flops") / (found["milliseconds"] / 1e3)
            found["matmul_fraction"] = rate / metrics["matmul_bf16_flops_per_second"]
            metrics |= {f"{name}/{variant}/{key}": value for key, value in found.items()}
            logger.info("%s %s: %s", name, variant, _line(found))
    return metrics


def _trained(
    name: str, options: StepBenchmarkSection, device: torch.device, folder: RunFolder, seed: int
) -> Iterator[tuple[Variant, dict[str, float]]]:
    workload = training_workload(name, options.preset, options.samples, folder.local)
    flops = count_flops(workload, options, device)
    for variant in options.variants:
        trace = _trace(name, variant, options, folder)
        found = _measure(workload, WAYS[variant], options, device, seed, trace)
        if options.curve_steps and name == options.workloads[0]:
            found["final_loss"] = _final_loss(workload, WAYS[variant], options, device, seed)
        if options.memory_gib is not None and variant == options.variants[-1]:
            found |= _largest_batch(workload, WAYS[variant], options, device, seed)
        yield variant, {**found, "flops": flops}


def _largest_batch(
    workload: TrainingWorkload,
    way: Way,
    options: StepBenchmarkSection,
    device: torch.device,
    seed: int,
) -> dict[str, float]:
    """The largest batch whose memory stays within the limit, and what a step of it takes."""
    assert options.memory_gib is not None
    tried: dict[int, dict[str, float]] = {}

    def memory(size: int) -> float:
        few = options.model_copy(update={"batch_size": size, "steps": FEW_STEPS})
        try:
            tried[size] = _measure(workload, way, few, device, seed, None)
        except torch.OutOfMemoryError:
            return math.inf
        on_gpu = device.type == "cuda"
        return tried[size]["peak_memory_bytes" if on_gpu else "step_bytes"]

    largest = largest_size(
        memory, limit=options.memory_gib * 2**30, first=workload.batch_size, most=options.samples
    )
    if largest is None:
        return {}
    size, taken = largest
    rate = tried[size]["samples_per_second"]
    return {
        "largest_batch": float(size),
        "largest_batch_bytes": taken,
        "largest_batch_samples_per_second": rate,
    }


def largest_size(
    memory: Callable[[int], float], *, limit: float, first: int, most: int
) -> tuple[int, float] | None:
    """Find the largest batch that fits, whose memory grows about linearly with it.

    Args:
        memory: Gives the bytes of a batch; infinity if it could not be taken. It is costly.
        limit: Bytes that it may take.
        first: A batch to begin with; the result is found to an eighth of it.
        most: Largest batch that is tried.

    Returns:
        The batch and its bytes; None if not even the first one fits.
    """
    first = min(first, most)
    unit = max(first // 8, 1)
    fits, over = {0: 0.0, first: memory(first)}, most + 1
    if fits[first] > limit:
        return None
    for _ in range(TRIES):
        (low, low_bytes), (high, high_bytes) = sorted(fits.items())[-2:]
        slope = (high_bytes - low_bytes) / (high - low)
        # What does not depend on the batch is unknown before a second one is measured.
        is_first = len(fits) == 2 and over > most
        size = 2 * first if is_first else high + int((limit - high_bytes) / max(slope, 1))
        size = min(size, over - 1)
        if over <= most and size == over - 1:
            size = (high + over) // 2
        size -= size % unit if size < most else 0
        if size <= high:
            break
        found = memory(size)
        if found <= limit:
            fits[size] = found
        else:
            over = size
    largest = max(fits)
    return largest, fits[largest]


def _final_loss(
    workload: TrainingWorkload,
    way: Way,
    options: StepBenchmarkSection,
    device: torch.device,
    seed: int,
) -> float:
    """Mean loss of the last tenth of a short training at a constant rate after a warm-up."""
    step, batches = _step(workload, way, options, device, seed)
    count = options.curve_steps
    for number in range(count):
        if number == count - max(1, count // 10):
            step.meter.read()
        per_epoch = options.samples // (options.batch_size or workload.batch_size)
        rate = CURVE_LR * min(1.0, (number + 1) / (0.1 * count))
        step(next(batches), epoch=number // per_epoch, step=number, lr=[rate] * 3)
    loss = step.meter.read().means()["loss"]
    batches.close()
    return loss


def _evaluated(
    name: str, options: StepBenchmarkSection, device: torch.device, folder: RunFolder, seed: int
) -> Iterator[tuple[Variant, dict[str, float]]]:
    size = options.batch_size or EVALUATIONS[name]
    torch.manual_seed(seed)
    workload = evaluation_workload(name, options.preset, size, on_gpu=device.type == "cuda")
    workload.model.to(device)
    clouds = torch.randn(2, workload.num_points, 3, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.model(clouds)
    flops = counter.get_total_flops() / len(clouds)
    tables = {"test": workload.table}
    for variant in options.variants:
        way = WAYS[variant]
        if variant == "device" or way.checkpointing:
            continue  # every cloud is read once, and nothing is kept for a backward pass
        _start(way, device)
        how = Inference(**way.settings)
        with tempfile.TemporaryDirectory(dir=folder.local) as place, torch.inference_mode():
            runtime = WorkerRuntime(0, 1, device, RunFolder(place), tables, {}, how)
            model = how.place(workload.model, device)
            few, many = workload.amounts
            start_seconds = _evaluation_seconds(workload, model, runtime, few)  # compiles
            # Each evaluation captures and ends; the difference of two is that of their batches.
            pairs = [
                [_evaluation_seconds(workload, model, runtime, amount) for amount in (few, many)]
                for _ in range(1 + PAIRS)
            ]
            spent = statistics.median(longer - shorter for shorter, longer in pairs[1:])
            trace = _trace(name, variant, options, folder)
            if trace is not None:
                with _traced(trace, device):
                    workload.run(model, runtime, few)
        rate = workload.clouds * (many - few) / spent
        passes = REPEATS if name != "svm" else 1
        yield (
            variant,
            {
                "samples_per_second": rate,
                "milliseconds": 1e3 * size / passes / rate,
                "peak_memory_bytes": float(peak_memory_bytes(device)),
                "start_seconds": start_seconds,
                "flops": flops * size,
            },
        )


def _evaluation_seconds(
    workload: EvaluationWorkload, model: nn.Module, runtime: WorkerRuntime, amount: int
) -> float:
    started = time.perf_counter()
    workload.run(model, runtime, amount)
    _wait(runtime.device)
    seconds = time.perf_counter() - started
    (runtime.folder.local / ROUNDS).unlink(missing_ok=True)
    return seconds


def _start(way: Way, device: torch.device) -> None:
    """Forget what the way before has compiled, tuned and allocated."""
    torch.compiler.reset()
    torch.backends.cuda.matmul.allow_tf32 = way.tf32
    torch.backends.cudnn.allow_tf32 = way.tf32
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


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
    size = options.batch_size or workload.batch_size
    counted = min(size, workload.batch_size)  # the plain step of a larger batch may not fit
    few = options.model_copy(update={"batch_size": counted})
    step, batches = _step(workload, WAYS["fp32"], few, device, seed=0)
    with FlopCounterMode(display=False) as counter:
        step(next(batches), epoch=0, step=0, lr=[0.0] * 3)
    batches.close()
    return counter.get_total_flops() * size / counted


def _step(
    workload: TrainingWorkload,
    way: Way,
    options: StepBenchmarkSection,
    device: torch.device,
    seed: int,
) -> tuple[Step, Any]:
    torch.manual_seed(seed)
    task, size = workload.task, options.batch_size or workload.batch_size
    settings = FitSettings(
        epochs=1, global_batch_size=size, seed=seed, clip_norm=workload.clip_norm, **way.settings
    )
    module = task.build().to(device)
    set_sync_batch_norm(module, False)
    set_activation_checkpointing(module, way.checkpointing)
    task.on_device(device)
    optimizer = torch.optim.AdamW(
        task.parameter_groups(module), fused=True, capturable=wants_graph(settings, device)
    )
    plan = BatchPlan(size, 1)
    # Pictures are decoded anew in every epoch: they come from the host in every way.
    residency = "host" if workload.options.images is not None else way.residency
    feed = indexed_feed(
        workload.table, workload.options, seed=seed, residency=residency, device=device
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
    _start(way, device)
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
    if way.settings["compile"] == "off" and not way.settings["cuda_graph"]:
        with TensorPeak() as tensors:
            step(next(timed), epoch=0, step=0, lr=rates)
        found["step_bytes"] = float(tensors.peak)
    if trace is not None:
        with _traced(trace, device):
            for number in range(3):
                step(next(timed), epoch=0, step=number, lr=rates)
    batches.close()
    return found


def _trace(
    name: str, variant: Variant, options: StepBenchmarkSection, folder: RunFolder
) -> Path | None:
    return folder.local / f"{name}-{variant}.json.gz" if options.profile else None


@contextmanager
def _traced(path: Path, device: torch.device) -> Iterator[None]:
    """Write a trace for chrome://tracing, and the kernels by time as text beside it."""
    with profile() as profiler:
        yield
        _wait(device)
    profiler.export_chrome_trace(str(path))
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=90)
    path.with_suffix("").with_suffix(".txt").write_text(table)


def _line(found: dict[str, float]) -> str:
    parts = [
        f"{found['samples_per_second']:.0f} samples/s",
        f"{found['milliseconds']:.2f} ms a batch",
        f"{found['speedup']:.1f}x",
        f"{found['peak_memory_bytes'] / 2**30:.2f} GiB",
        f"of a step {_gib(found.get('step_bytes'))}",
        f"start {found['start_seconds']:.0f} s",
        f"matrix rate {found['matmul_fraction']:.1%}",
    ]
    if "data_wait_fraction" in found:
        parts.append(f"data wait {found['data_wait_fraction']:.1%}")
    if "loss" in found:
        parts.append(f"loss {found['loss']:.4f}")
    if "final_loss" in found:
        parts.append(f"final loss {found['final_loss']:.5f}")
    if "largest_batch" in found:
        parts.append(_largest_line(found))
    return ", ".join(parts)


def _largest_line(found: dict[str, float]) -> str:
    return (
        f"largest batch {found['largest_batch']:.0f} "
        f"({found['largest_batch_bytes'] / 2**30:.2f} GiB, "
        f"{found['largest_batch_samples_per_second']:.0f} samples/s)"
    )


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"


def describe_steps(metrics: dict[str, float], options: StepBenchmarkSection) -> str:
    """Table of the figures."""
    rate = metrics["matmul_bf16_flops_per_second"]
    lines = [
        f"preset {options.preset}; bf16 products of {MATMUL_SIZE}: {rate / 1e12:.0f} TFLOP/s; "
        f"speed-up over {options.variants[0]}",
        f"{'':42}{'samples/s':>11}{'ms':>9}{'speed-up':>10}{'data wait':>11}{'GiB':>7}"
        f"{'of a step':>11}{'start s':>9}{'matrix rate':>13}",
    ]
    for name in options.workloads:
        for variant in options.variants:
            key = f"{name}/{variant}"
            if f"{key}/milliseconds" not in metrics:
                continue
            wait = metrics.get(f"{key}/data_wait_fraction")
            lines.append(
                f"{name:24}{variant:18}{metrics[f'{key}/samples_per_second']:>11.0f}"
                f"{metrics[f'{key}/milliseconds']:>9.2f}{metrics[f'{key}/speedup']:>9.1f}x"
                + (f"{'-':>11}" if wait is None else f"{wait:>11.1%}")
                + f"{metrics[f'{key}/peak_memory_bytes'] / 2**30:>7.2f}"
                + f"{_gib(metrics.get(f'{key}/step_bytes')):>11}"
                f"{metrics[f'{key}/start_seconds']:>9.0f}"
                f"{metrics[f'{key}/matmul_fraction']:>13.1%}"
            )
    for name in options.workloads:
        prefix = f"{name}/{options.variants[-1]}/"
        found = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
        if "largest_batch" in found:
            lines.append(
                f"{name}, {options.variants[-1]}, within {options.memory_gib:g} GiB: "
                f"{_largest_line(found)}"
            )
    curves = {v: metrics.get(f"{options.workloads[0]}/{v}/final_loss") for v in options.variants}
    if options.curve_steps:
        shown = ", ".join(f"{v} {loss:.5f}" for v, loss in curves.items() if loss is not None)
        lines.append(f"{options.workloads[0]}, loss after {options.curve_steps} steps: {shown}")
    return "\n".join(lines)
