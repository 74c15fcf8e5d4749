"""Time the operations on the shapes that matter, beside plain torch and installed peers.

``python ops/bench.py`` takes the GPU where there is one, else the CPU; ``--json FILE`` keeps the
figures. On a GPU every figure is a median in microseconds, by events around one call and by
replaying a CUDA graph of many, whose inputs rotate beyond the L2 cache. On the CPU it is a median
in milliseconds.
"""

# ruff: noqa: T201 - a program that prints its table

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # the sources beside this file hide the installed package

import recon_ops
import torch
from torch import Tensor

Call = Callable[[], Any]
Maker = Callable[[torch.device], "Case"]
L2_BYTES = 64 << 20


@dataclass
class Case:
    """One row: our call, those of others, and the inputs' size for rotating them."""

    name: str
    ours: Call
    peers: dict[str, Call] = field(default_factory=dict)
    target: str = ""


def optional(name: str) -> ModuleType | None:
    """Import a package, or give None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


REFERENCE = optional("recon_ray.points.reference")
POINTNET2 = optional("pointnet2_ops.pointnet2_utils")
PYTORCH3D = optional("pytorch3d.ops")
FPSAMPLE = optional("fpsample")


def cloud(batch: int, count: int, device: torch.device) -> Tensor:
    """Random points near a sphere."""
    points = torch.randn(batch, count, 3, device=device)
    return points / points.norm(dim=-1, keepdim=True) * (1 - 0.1 * torch.rand_like(points[..., :1]))


def reference(call: Callable[[ModuleType], Any]) -> dict[str, Call]:
    """Give the plain-torch call, where recon_ray is installed."""
    module = REFERENCE
    return {} if module is None else {"torch": lambda: call(module)}


def textbook_sampling(points: Tensor, samples: int) -> Tensor:
    """Furthest point sampling as it is usually written in plain torch: one masked update a step."""
    batch, count, _ = points.shape
    rows = torch.arange(batch, device=points.device)
    chosen = torch.zeros(batch, samples, dtype=torch.long, device=points.device)
    nearest = torch.full((batch, count), 1e10, device=points.device)
    furthest = chosen[:, 0]
    for step in range(samples):
        chosen[:, step] = furthest
        distance = ((points - points[rows, furthest].unsqueeze(1)) ** 2).sum(-1)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        furthest = nearest.max(-1).indices
    return chosen


def sampling(batch: int, count: int, samples: int, target: str) -> Maker:
    """Furthest point sampling."""

    def make(device: torch.device) -> Case:
        points = cloud(batch, count, device)
        peers = reference(lambda ops: ops.furthest_point_sample(points, samples))
        peers["textbook"] = lambda: textbook_sampling(points, samples)
        if POINTNET2 and device.type == "cuda":
            peers["pointnet2"] = lambda: POINTNET2.furthest_point_sample(points, samples)
        if PYTORCH3D:
            peers["pytorch3d"] = lambda: PYTORCH3D.sample_farthest_points(points, K=samples)
        if FPSAMPLE and device.type == "cpu":
            arrays = [row.numpy() for row in points]
            peers["fpsample"] = lambda: [
                FPSAMPLE.fps_sampling(row, samples, start_idx=0) for row in arrays
            ]
        return Case(
            f"sample ({batch}, {count} -> {samples})",
            lambda: recon_ops.furthest_point_sample(points, samples),
            peers,
            target,
        )

    return make


def grouping(batch: int, groups: int, count: int, k: int, target: str) -> Maker:
    """Nearest neighbors, grouped and centered."""

    def make(device: torch.device) -> Case:
        points = cloud(batch, count, device)
        centers = points[:, :groups].contiguous()
        peers = reference(lambda ops: ops.group_knn(points, centers, k))
        if PYTORCH3D:
            peers["pytorch3d"] = lambda: PYTORCH3D.knn_points(centers, points, K=k)
        return Case(
            f"group_knn ({batch}, {groups}, {count}, k {k})",
            lambda: recon_ops.group_knn(points, centers, k),
            peers,
            target,
        )

    return make


def chamfer_both(ops: Any, a: Tensor, b: Tensor) -> None:  # noqa: ANN401
    """Run the loss of two sets forward and backward."""
    torch.autograd.grad(ops.chamfer_loss(a, b), (a, b))


def chamfer(batch: int, n: int, m: int, target: str) -> Maker:
    """Chamfer loss and its gradients."""

    def make(device: torch.device) -> Case:
        a, b = (cloud(batch, count, device).requires_grad_() for count in (n, m))
        return Case(
            f"chamfer loss + gradient ({batch}, {n} x {m})",
            lambda: chamfer_both(recon_ops, a, b),
            reference(lambda ops: chamfer_both(ops, a, b)),
            target,
        )

    return make


def chamfer_forward(batch: int, n: int, m: int, target: str) -> Maker:
    """The operator behind the loss alone: its gradients are there before they are asked for."""

    def make(device: torch.device) -> Case:
        a, b = (cloud(batch, count, device) for count in (n, m))
        operator = torch.ops.recon_ops.chamfer_loss_forward
        return Case(
            f"chamfer operator, loss + gradients ({batch}, {n} x {m})",
            lambda: operator(a, b, True, True, True),
            {},
            target,
        )

    return make


def picking(batch: int, count: int, shape: tuple[int, ...], channels: int, target: str) -> Maker:
    """Gather (S,) or group (S, K) features, forward."""
    name = "gather" if len(shape) == 1 else "group"

    def make(device: torch.device) -> Case:
        features = torch.randn(batch, count, channels, device=device)
        idx = torch.randint(count, (batch, *shape), device=device)
        peers = reference(lambda ops: getattr(ops, f"{name}_points")(features, idx))
        if POINTNET2 and device.type == "cuda":
            columns, rows = features.transpose(1, 2).contiguous(), idx.int()
            peer = getattr(POINTNET2, f"{'gather' if name == 'gather' else 'grouping'}_operation")
            peers["pointnet2"] = lambda: peer(columns, rows)
        return Case(
            f"{name} ({batch}, {count} -> {shape}), C {channels}",
            lambda: getattr(recon_ops, f"{name}_points")(features, idx),
            peers,
            target,
        )

    return make


def picking_backward(
    batch: int, count: int, shape: tuple[int, ...], channels: int, target: str
) -> Maker:
    """The gradient of gathering or grouping."""
    name = "gather" if len(shape) == 1 else "group"

    def make(device: torch.device) -> Case:
        features = torch.randn(batch, count, channels, device=device, requires_grad=True)
        idx = torch.randint(count, (batch, *shape), device=device)
        grad = torch.randn(batch, idx[0].numel(), channels, device=device)
        rows = idx.flatten(1)
        peers = reference(
            lambda ops: torch.autograd.grad(ops.gather_points(features, rows), features, grad)
        )
        return Case(
            f"{name} backward ({batch}, {count} -> {shape}), C {channels}",
            lambda: torch.ops.recon_ops.gather_points_backward(grad, rows, count),
            {f"{key} (with forward)": call for key, call in peers.items()},
            target,
        )

    return make


def ball(batch: int, count: int, queries: int, radius: float, target: str) -> Maker:
    """Ball query with 32 slots."""

    def make(device: torch.device) -> Case:
        points = cloud(batch, count, device)
        query = points[:, :queries].contiguous()
        peers = reference(lambda ops: ops.ball_query(points, query, radius, 32))
        if POINTNET2 and device.type == "cuda":
            peers["pointnet2"] = lambda: POINTNET2.ball_query(radius, 32, points, query)
        return Case(
            f"ball query ({batch}, {count}, {queries}, r {radius}, 32)",
            lambda: recon_ops.ball_query(points, query, radius, 32),
            peers,
            target,
        )

    return make


def three_nearest(batch: int, count: int, known: int, target: str) -> Maker:
    """The three nearest points."""

    def make(device: torch.device) -> Case:
        points, targets = cloud(batch, count, device), cloud(batch, known, device)
        peers = reference(lambda ops: ops.three_nn(points, targets))
        if POINTNET2 and device.type == "cuda":
            peers["pointnet2"] = lambda: POINTNET2.three_nn(points, targets)
        if PYTORCH3D:
            peers["pytorch3d"] = lambda: PYTORCH3D.knn_points(points, targets, K=3)
        return Case(
            f"three_nn ({batch}, {count}, {known})",
            lambda: recon_ops.three_nn(points, targets),
            peers,
            target,
        )

    return make


def interpolation(batch: int, count: int, known: int, channels: int, backward: bool) -> Maker:
    """Weighted sums of three rows, or their gradients."""

    def make(device: torch.device) -> Case:
        features = torch.randn(batch, known, channels, device=device)
        idx = torch.randint(known, (batch, count, 3), device=device)
        weight = torch.rand(batch, count, 3, device=device)
        name = f"interpolate ({batch}, {count}, {known}), C {channels}"
        if backward:
            grad = torch.randn(batch, count, channels, device=device)
            ours = torch.ops.recon_ops.three_interpolate_backward
            return Case(f"{name} backward", lambda: ours(grad, features, idx, weight), {}, "110")
        peers = reference(lambda ops: ops.three_interpolate(features, idx, weight))
        return Case(name, lambda: recon_ops.three_interpolate(features, idx, weight), peers, "60")

    return make


CUDA_CASES: list[Maker] = [
    sampling(128, 1024, 64, "20"),
    sampling(32, 2048, 128, "45"),
    sampling(32, 8192, 512, "300"),
    sampling(128, 8192, 1024, "600"),
    sampling(32, 8192, 1200, "700"),
    grouping(128, 64, 1024, 32, "40"),
    grouping(32, 128, 2048, 32, "30"),
    grouping(32, 512, 8192, 32, "180"),
    chamfer(4864, 32, 32, "9"),
    chamfer_forward(4864, 32, 32, "9"),
    chamfer(32, 2048, 2048, "200"),
    chamfer(32, 8192, 8192, "1500"),
    picking(32, 2048, (512, 32), 64, "110"),
    picking_backward(32, 2048, (512, 32), 64, "200"),
    picking(32, 2048, (512,), 256, "25"),
    picking_backward(32, 2048, (512,), 256, "40"),
    ball(32, 2048, 512, 0.2, "60"),
    ball(32, 8192, 512, 0.1, "250"),
    three_nearest(32, 2048, 128, "25"),
    three_nearest(32, 8192, 512, "130"),
    interpolation(32, 2048, 128, 384, backward=False),
    interpolation(32, 2048, 128, 384, backward=True),
]
CPU_CASES: list[Maker] = [
    sampling(128, 1024, 64, ""),
    sampling(32, 2048, 128, ""),
    sampling(4, 8192, 512, ""),
    grouping(128, 64, 1024, 32, ""),
    grouping(32, 128, 2048, 32, ""),
    grouping(4, 512, 8192, 32, ""),
    chamfer(4864, 32, 32, ""),
    chamfer(4, 2048, 2048, ""),
    picking(8, 2048, (512, 32), 64, ""),
    picking_backward(8, 2048, (512, 32), 64, ""),
    ball(8, 2048, 512, 0.2, ""),
    three_nearest(8, 2048, 128, ""),
    interpolation(8, 2048, 128, 384, backward=False),
]


def event_time(call: Call, repeats: int) -> float:
    """Give the median time of one call between two events, in microseconds."""
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def graph_time(calls: list[Call], repeats: int) -> float | None:
    """Give the time of a call within a replayed graph of all ``calls``, in microseconds."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = [call() for call in calls]
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    graph.replay()
    per_replay = event_time(graph.replay, repeats)
    del results
    return per_replay / len(calls)


def cuda_row(make: Maker, options: argparse.Namespace) -> dict[str, Any]:
    """Time one case on the GPU."""
    repeats = options.repeats
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    cases = [make(device)]
    size = max(torch.cuda.memory_allocated() - before, 1)
    cases += [make(device) for _ in range(min(L2_BYTES // size, 15))]  # rotated beyond the L2
    row: dict[str, Any] = {"name": cases[0].name, "target_us": cases[0].target, "peers_us": {}}
    for _ in range(5):
        cases[0].ours()
    row["event_us"] = event_time(cases[0].ours, repeats)
    row["graph_us"] = graph_time([case.ours for case in cases], repeats)
    for name, call in ({} if options.no_peers else cases[0].peers).items():
        call()
        row["peers_us"][name] = event_time(call, max(repeats // 10, 3))
    return row


def wall_time(call: Call, seconds: float = 1.0) -> float:
    """Give the median time of one call, in milliseconds."""
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def cpu_row(make: Maker, options: argparse.Namespace) -> dict[str, Any]:
    """Time one case on the CPU."""
    case = make(torch.device("cpu"))
    others = {} if options.no_peers else case.peers
    peers = {name: wall_time(call) for name, call in others.items()}
    return {"name": case.name, "ms": wall_time(case.ours), "peers_ms": peers}


def show_cuda(row: dict[str, Any]) -> None:
    """Print one GPU row."""
    replay = "-" if row["graph_us"] is None else f"{row['graph_us']:.1f}"
    peers = ", ".join(f"{name} {value:.0f}" for name, value in row["peers_us"].items())
    print(
        f"{row['name']:<56} event {row['event_us']:9.1f}  graph {replay:>9}  "
        f"target {row['target_us']:>5}  | {peers}",
        flush=True,
    )


def show_cpu(row: dict[str, Any]) -> None:
    """Print one CPU row."""
    peers = ", ".join(
        f"{name} {value:.2f} ms ({value / row['ms']:.1f}x)"
        for name, value in row["peers_ms"].items()
    )
    print(f"{row['name']:<56} {row['ms']:9.2f} ms  | {peers}", flush=True)


def cpu_name() -> str:
    """Name the processor and the threads in use."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls on a GPU")
    parser.add_argument(
        "--only",
        default="",
        help="only the function of this module that makes the row, such as chamfer",
    )
    parser.add_argument("--no-peers", action="store_true", help="time our operations only")
    parser.add_argument("--json", default=None, help="file for the figures")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else cpu_name()
    print(f"{name}; torch {torch.__version__}; {recon_ops.build_info()}")
    rows = []
    for make in CUDA_CASES if on_gpu else CPU_CASES:
        if options.only not in make.__qualname__:
            continue
        row = cuda_row(make, options) if on_gpu else cpu_row(make, options)
        (show_cuda if on_gpu else show_cpu)(row)
        rows.append(row)
    if options.json:
        result = {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
        text = json.dumps({**result, "build": recon_ops.build_info(), "rows": rows}, indent=2)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
