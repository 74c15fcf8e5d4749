"""Steps of training and evaluation, each faster way beside the plain eager step, in one run."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from recon_ray.benchmarks.config import BenchmarkConfig, StepBenchmarkSection, Variant
from recon_ray.benchmarks.memory import TensorPeak
from recon_ray.benchmarks.metric_table import metric_table
from recon_ray.benchmarks.step_workloads import (
    REPEATS,
    EvaluationWorkload,
    TrainingWorkload,
    evaluation_workload,
    training_workload,
)
from recon_ray.cluster.evaluate import WorkerRuntime
from recon_ray.config.sections.common import RunSection, RuntimeSection
from recon_ray.config.sections.training import TrainingConfig, TrainSection
from recon_ray.data.loading.batches import Batch
from recon_ray.data.loading.prefetch import prefetch_batches
from recon_ray.models.batch_norm import set_first_average, set_sync_batch_norm
from recon_ray.models.cloud import set_activation_checkpointing
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.classify.voting import ROUNDS
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.feed.resident import Residency, indexed_feed
from recon_ray.train.inference import Inference
from recon_ray.train.loop import take_step
from recon_ray.train.metrics import peak_memory_bytes
from recon_ray.train.settings import FitSettings
from recon_ray.train.step.one_step import Step, wants_graph
from recon_ray.train.step.step_timer import StepClock

logger = logging.getLogger(__name__)

#: Steps before the timed ones: they compile, tune and capture.
WARMUP = 6
MATMUL_SIZE = 8192
#: Learning rate of the trainings whose losses are compared.
CURVE_LR = 5e-4
#: Steps of a batch that is tried for its memory, and how many batches are.
FEW_STEPS, TRIES = 5, 8
#: Timings of an evaluation; the first allocates memory for all its batches and is left out, the
#: median of the others counts.
PAIRS = 3
#: Evaluations, and how many clouds they encode at once.
EVALUATIONS = {"svm": 128, "vote_scan": 320, "vote_modelnet8k": 320}


@dataclass(frozen=True)
class Way:
    """Way in which a step is computed.

    Attributes:
        settings: Settings of the loop that differ.
        residency: Where the rows lie.
        tf32: Whether products of float32 use the tensor cores.
        checkpointing: Whether activations are computed again in the backward pass.
    """

    settings: dict[str, Any]
    residency: Residency = "host"
    tf32: bool = False
    checkpointing: bool = False


_EAGER = {"precision": "fp32", "compile": "off", "cuda_graph": False}
_BF16 = {**_EAGER, "precision": "bf16"}
_FAST = {**_BF16, "compile": "default", "cuda_graph": True}
WAYS: dict[Variant, Way] = {
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


@dataclass(frozen=True)
class Bench:
    """Options, device, folder of traces and seed of all measurements."""

    options: StepBenchmarkSection
    device: torch.device
    folder: Path
    seed: int

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def trace(self, name: str) -> Iterator[None]:
        """Write a trace for chrome://tracing, and the kernels by time as text beside it."""
        with profile() as profiler:
            yield
            self.wait()
        profiler.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=90)
        (self.folder / f"{name}.txt").write_text(table)


def measure_steps(config: BenchmarkConfig, folder: RunFolder) -> tuple[dict[str, float], str]:
    """Measure every workload in every way.

    Returns:
        By ``<workload>/<way>/``: ``samples_per_second``, ``milliseconds``, ``speedup`` over the
        plain eager step, ``data_wait_fraction``, ``peak_memory_bytes``, ``start_seconds``
        (compiling and capturing), ``loss``, ``matmul_fraction`` of the measured matrix rate; of
        eager training steps also ``step_bytes``, the most memory of the tensors that a step makes;
        with a limit of memory ``largest_batch``, its bytes and its samples a second. And their
        table.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(config.step, device, folder.local, config.run.seed)
    metrics = matmul_rates(device)
    for name in config.step.workloads:
        measured = _evaluated if name in EVALUATIONS else _trained
        first = math.nan
        for variant, found in measured(name, bench):
            first = found["milliseconds"] if math.isnan(first) else first
            found["speedup"] = first / found["milliseconds"]
            rate = found.pop("flops") / (found["milliseconds"] / 1e3)
            found["matmul_fraction"] = rate / metrics["matmul_bf16_flops_per_second"]
            metrics |= {f"{name}/{variant}/{key}": value for key, value in found.items()}
            shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            logger.info("%s %s: %s", name, variant, shown)
    return metrics, describe_steps(metrics, config.step)


def matmul_rates(device: torch.device) -> dict[str, float]:
    """Measure the rate of large matrix products, in operations a second."""
    size = MATMUL_SIZE if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return {"matmul_bf16_flops_per_second": 2 * size**3 / timer.timeit(20).mean}


# --- Training ------------------------------------------------------------------------------------


def _trained(name: str, bench: Bench) -> Iterator[tuple[Variant, dict[str, float]]]:
    options = bench.options
    workload = training_workload(name, options.preset, options.samples, bench.folder)
    size = options.batch_size or workload.batch_size
    flops = count_flops(workload, bench, size)
    for variant in options.variants:
        way, trace = WAYS[variant], f"{name}-{variant}" if options.profile else None
        found = _measure(workload, way, bench, size, options.steps, trace)
        if options.curve_steps and name == options.workloads[0]:
            found["final_loss"] = _final_loss(workload, way, bench, size)
        if options.memory_gib is not None and variant == options.variants[-1]:
            found |= _largest_batch(workload, way, bench, options.memory_gib)
        yield variant, {**found, "flops": flops}


@contextmanager
def _training(
    workload: TrainingWorkload, way: Way, bench: Bench, size: int
) -> Iterator[tuple[Step, Iterator[Batch]]]:
    """Make a step of a workload and endless batches for it."""
    torch.manual_seed(bench.seed)
    task, device = workload.task, bench.device
    runtime = {
        "compile": way.settings["compile"],
        "cuda_graph": "auto" if way.settings["cuda_graph"] else "off",
    }
    config = TrainingConfig(
        run=RunSection(seed=bench.seed),
        runtime=RuntimeSection.model_validate(runtime),
        train=TrainSection(epochs=1, global_batch_size=size, clip_norm=workload.clip_norm),
    )
    settings = FitSettings(config, way.settings["precision"])
    module = task.build().to(device)
    set_sync_batch_norm(module, False)
    set_first_average(module, True)
    set_activation_checkpointing(module, way.checkpointing)
    task.on_device(device)
    optimizer = torch.optim.AdamW(
        task.parameter_groups(module), fused=True, capturable=wants_graph(settings, device)
    )
    plan = BatchPlan(size, 1)
    # Pictures are decoded anew in every epoch: they come from the host in every way.
    residency = "host" if workload.options.images is not None else way.residency
    feed = indexed_feed(
        workload.table, workload.options, seed=bench.seed, residency=residency, device=device
    )
    step = Step(
        take_step, task, module, optimizer,
        settings=settings, plan=plan, feed=feed, device=device, rank=0,
    )  # fmt: skip
    batches: Any = endless(feed, plan, device)
    with closing(batches):
        yield step, batches


def endless(feed: TrainFeed, plan: BatchPlan, device: torch.device) -> Iterator[Batch]:
    """Return batches of one epoch after the other, prepared ahead as in the training loop."""

    def batches() -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from feed.epoch(epoch, 0, plan, 0)

    return prefetch_batches(batches, device)


def count_flops(workload: TrainingWorkload, bench: Bench, size: int) -> float:
    """Count the operations of the products of one plain eager step, forward and backward."""
    counted = min(size, workload.batch_size)  # the plain step of a larger batch may not fit
    with _training(workload, WAYS["fp32"], bench, counted) as (step, batches):
        batch = next(batches)
        with FlopCounterMode(display=False) as counter:
            step(batch, epoch=0, step=0, lr=[0.0] * 3)
    return counter.get_total_flops() * size / counted


def _measure(
    workload: TrainingWorkload,
    way: Way,
    bench: Bench,
    size: int,
    steps: int,
    trace: str | None = None,
) -> dict[str, float]:
    _start(way, bench.device)
    started = time.perf_counter()
    rates = [1e-4] * 3
    with _training(workload, way, bench, size) as (step, batches):
        clock = StepClock(bench.device)
        timed = clock.waiting(batches)
        for number in range(WARMUP):
            step(next(timed), epoch=0, step=number, lr=rates)
        bench.wait()
        start_seconds = time.perf_counter() - started
        step.meter.read()
        clock.lap()
        for number in range(steps):
            step(next(timed), epoch=0, step=WARMUP + number, lr=rates)
            clock.stepped()
        bench.wait()
        lap = clock.lap()
        found = {
            "samples_per_second": lap.steps * size / lap.seconds,
            "milliseconds": 1e3 * lap.seconds / lap.steps,
            "data_wait_fraction": lap.waited / lap.seconds,
            "peak_memory_bytes": float(peak_memory_bytes(bench.device)),
            "start_seconds": start_seconds,
            "loss": step.meter.read().means()["loss"],
        }
        if way.settings["compile"] == "off" and not way.settings["cuda_graph"]:
            with TensorPeak() as tensors:
                step(next(timed), epoch=0, step=0, lr=rates)
            found["step_bytes"] = float(tensors.peak)
        if trace is not None:
            with bench.trace(trace):
                for number in range(3):
                    step(next(timed), epoch=0, step=number, lr=rates)
    return found


def _start(way: Way, device: torch.device) -> None:
    """Forget what was compiled, tuned and allocated before."""
    torch.compiler.reset()
    torch.backends.cuda.matmul.allow_tf32 = way.tf32
    torch.backends.cudnn.allow_tf32 = way.tf32
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _final_loss(workload: TrainingWorkload, way: Way, bench: Bench, size: int) -> float:
    """Return the mean loss of the last tenth of a short training at a constant rate."""
    count, per_epoch = bench.options.curve_steps, bench.options.samples // size
    with _training(workload, way, bench, size) as (step, batches):
        for number in range(count):
            if number == count - max(1, count // 10):
                step.meter.read()
            rate = CURVE_LR * min(1.0, (number + 1) / (0.1 * count))
            step(next(batches), epoch=number // per_epoch, step=number, lr=[rate] * 3)
        return step.meter.read().means()["loss"]


def _largest_batch(
    workload: TrainingWorkload, way: Way, bench: Bench, limit_gib: float
) -> dict[str, float]:
    """Find the largest batch whose memory stays within the limit, and its rate."""
    tried: dict[int, dict[str, float]] = {}

    def memory(size: int) -> float:
        try:
            tried[size] = _measure(workload, way, bench, size, FEW_STEPS)
        except torch.OutOfMemoryError:
            return math.inf
        on_gpu = bench.device.type == "cuda"
        return tried[size]["peak_memory_bytes" if on_gpu else "step_bytes"]

    largest = largest_size(
        memory, limit=limit_gib * 2**30, first=workload.batch_size, most=bench.options.samples
    )
    if largest is None:
        return {}
    return {
        "largest_batch": float(largest[0]),
        "largest_batch_bytes": largest[1],
        "largest_batch_samples_per_second": tried[largest[0]]["samples_per_second"],
    }


def largest_size(
    memory: Callable[[int], float], *, limit: float, first: int, most: int
) -> tuple[int, float] | None:
    """Find the largest batch that fits, whose memory grows about linearly with it.

    Args:
        memory: Returns the bytes of a batch; infinity if there is not enough. It is costly.
        limit: Bytes that a batch may take.
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
        # The part that does not depend on the batch is unknown before a second one is measured.
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


# --- Evaluation ----------------------------------------------------------------------------------


def _evaluated(name: str, bench: Bench) -> Iterator[tuple[Variant, dict[str, float]]]:
    options, device = bench.options, bench.device
    size = options.batch_size or EVALUATIONS[name]
    torch.manual_seed(bench.seed)
    workload = evaluation_workload(name, options.preset, size, on_gpu=device.type == "cuda")
    workload.model.to(device)
    clouds = torch.randn(2, workload.num_points, 3, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.model(clouds)
    flops = counter.get_total_flops() / len(clouds) * size
    few, many = workload.amounts
    passes = REPEATS if name != "svm" else 1
    for variant in options.variants:
        way = WAYS[variant]
        if variant == "device" or way.checkpointing:
            continue  # every cloud is read once, and nothing is kept for a backward pass
        _start(way, device)
        how = Inference(**way.settings)
        with tempfile.TemporaryDirectory(dir=bench.folder) as place, torch.inference_mode():
            tables = {"test": workload.table}
            runtime = WorkerRuntime(0, 1, device, RunFolder(place), tables, {}, how)
            model = how.place(workload.model, device)
            seconds = partial(_evaluation_seconds, workload, model, runtime)
            start_seconds = seconds(few)  # compiles
            # Each evaluation captures and ends; the difference of two is that of their batches.
            pairs = [(seconds(few), seconds(many)) for _ in range(1 + PAIRS)]
            if options.profile:
                with bench.trace(f"{name}-{variant}"):
                    workload.run(model, runtime, few)
        spent = statistics.median(longer - shorter for shorter, longer in pairs[1:])
        rate = workload.clouds * (many - few) / spent
        found = {
            "samples_per_second": rate,
            "milliseconds": 1e3 * size / passes / rate,
            "peak_memory_bytes": float(peak_memory_bytes(device)),
            "start_seconds": start_seconds,
            "flops": flops,
        }
        yield variant, found


def _evaluation_seconds(
    workload: EvaluationWorkload, model: nn.Module, runtime: WorkerRuntime, amount: int
) -> float:
    started = time.perf_counter()
    workload.run(model, runtime, amount)
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    seconds = time.perf_counter() - started
    (runtime.folder.local / ROUNDS).unlink(missing_ok=True)
    return seconds


# --- Table ---------------------------------------------------------------------------------------


def describe_steps(metrics: dict[str, float], options: StepBenchmarkSection) -> str:
    """Format the table."""
    rate = metrics["matmul_bf16_flops_per_second"]
    lines = [
        f"preset {options.preset}; bf16 products of {MATMUL_SIZE}: {rate / 1e12:.0f} TFLOP/s; "
        f"speed-up over {options.variants[0]}"
    ]
    names = [f"{name}/{variant}/" for name in options.workloads for variant in options.variants]
    columns = {
        "samples/s": ("samples_per_second", "{:.0f}".format),
        "ms": ("milliseconds", "{:.2f}".format),
        "speed-up": ("speedup", "{:.1f}x".format),
        "data wait": ("data_wait_fraction", "{:.1%}".format),
        "GiB": ("peak_memory_bytes", _gib),
        "of a step": ("step_bytes", _gib),
        "start s": ("start_seconds", "{:.0f}".format),
        "matrix rate": ("matmul_fraction", "{:.1%}".format),
    }
    lines += metric_table(metrics, [n for n in names if f"{n}milliseconds" in metrics], columns)
    for name in names:
        key = f"{name}largest_batch"
        if key in metrics:
            lines.append(
                f"{name.rstrip('/')}, within {options.memory_gib:g} GiB: largest batch "
                f"{metrics[key]:.0f} ({_gib(metrics[f'{key}_bytes'])} GiB, "
                f"{metrics[f'{key}_samples_per_second']:.0f} samples/s)"
            )
    losses = [
        f"{variant} {metrics[f'{options.workloads[0]}/{variant}/final_loss']:.5f}"
        for variant in options.variants
        if f"{options.workloads[0]}/{variant}/final_loss" in metrics
    ]
    if losses:
        shown = f"loss after {options.curve_steps} steps: {', '.join(losses)}"
        lines.append(f"{options.workloads[0]}, {shown}")
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
