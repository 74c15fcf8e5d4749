"""What torch knows of the operators: kernels, fake tensors, tracing, autocast, CUDA graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from clouds import assert_same_bits, grid, shell
from torch import Tensor

recon_ops = pytest.importorskip("recon_ops", reason="recon_ops is not installed")
from recon_ray.points import ops  # noqa: E402

OPERATORS = (
    "furthest_point_sample", "knn", "group_knn", "ball_query", "gather_points",
    "gather_points_backward", "group_points", "three_nn", "three_interpolate",
    "three_interpolate_backward", "chamfer_distance", "chamfer_distance_backward",
    "chamfer_loss_forward",
)  # fmt: skip


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"recon_ops::{name}", key)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_its_kernels(name: str) -> None:
    assert has_kernel(name, "CPU")
    if recon_ops.build_info()["cuda"] is not None:
        assert has_kernel(name, "CUDA")


def test_build_info_describes_the_build() -> None:
    info = recon_ops.build_info()
    assert info["target_torch"] == "2.10"
    assert "cpu" in info["backends"]
    assert ("cuda" in info["backends"]) == (info["cuda"] is not None)
    assert info["cuda"] is not None or not info["architectures"]
    assert info["cpu_instructions"] in ("baseline", "avx2", "avx512")


def arguments(name: str, device: torch.device) -> tuple[object, ...]:
    """Small arguments of an operator, differentiable where it is."""
    points = shell(2, 20).to(device).requires_grad_(not name.endswith("backward"))
    query = shell(2, 7).to(device).requires_grad_(not name.endswith("backward"))
    idx = torch.randint(20, (2, 7, 3), device=device)
    weight = torch.rand(2, 7, 3, device=device).requires_grad_(not name.endswith("backward"))
    to_points = torch.randint(20, (2, 7), device=device)
    to_query = torch.randint(7, (2, 20), device=device)
    given: dict[str, tuple[object, ...]] = {
        "furthest_point_sample": (points, 5, torch.tensor([1, 2], device=device), -1.0),
        "knn": (points, query, 4, True),
        "group_knn": (points, query, 4),
        "ball_query": (points.detach(), query.detach(), 0.8, 5, False),
        "gather_points": (points, idx[..., 0]),
        "gather_points_backward": (query, idx[..., 0].contiguous(), 20),
        "group_points": (points, idx),
        "three_nn": (query, points),
        "three_interpolate": (points, idx, weight),
        "three_interpolate_backward": (query, points, idx, weight),
        "chamfer_distance": (query, points),
        "chamfer_distance_backward": (
            query, points, weight[..., 0].contiguous(), points[..., 0].contiguous(), to_points,
            to_query,
        ),
        "chamfer_loss_forward": (query, points, False, True, True),
    }  # fmt: skip
    return given[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, device: torch.device) -> None:
    operator = getattr(torch.ops.recon_ops, name).default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if name != "furthest_point_sample":
        # This check adds up all results, which fails where integers come first. The operator's
        # tracing is covered by the compiled pipeline below.
        checks = (*checks, "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, arguments(name, device), test_utils=checks)


class Pipeline(torch.nn.Module):
    """All operations, as a model would chain them."""

    def forward(self, points: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        center_idx, centers = recon_ops.furthest_point_sample(points, 8)
        patches, idx = recon_ops.group_knn(points, centers, 6)
        distances, near = recon_ops.three_nn(points, centers)
        weight = (distances + 1).reciprocal()
        blended = recon_ops.three_interpolate(patches.flatten(2), near, weight)
        found, count = recon_ops.ball_query(points, centers, 0.5, 4)
        grouped = recon_ops.group_points(blended, found)
        picked = recon_ops.gather_points(blended, center_idx)
        nearest = recon_ops.knn(points, target, 3)[0]
        d_ab, d_ba, _, _ = recon_ops.chamfer_distance(points, target)
        loss = recon_ops.chamfer_loss(points, target, norm="l1") + nearest.sum()
        loss = loss + grouped.square().mean() + picked.mean() + d_ab.sum() + d_ba.sum()
        return loss, idx, count


def differentiate(model: Callable[..., tuple[Tensor, ...]], points: Tensor) -> list[Tensor]:
    leaf = points.clone().requires_grad_()
    loss, idx, count = model(leaf, points * 1.1)
    loss.backward()
    return [loss, idx, count, leaf.grad]


def test_compiles_without_graph_breaks(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Pipeline(), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, size in [(2, 40), (3, 64), (5, 33)]:
        points = shell(batch, size).to(device)
        torch.testing.assert_close(
            differentiate(compiled, points), differentiate(Pipeline(), points), rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
def test_compiles_with_inductor(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Pipeline(), fullgraph=True)
    points = shell(2, 40).to(device)
    torch.testing.assert_close(
        differentiate(compiled, points), differentiate(Pipeline(), points), rtol=1e-4, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("name", ["auto", "compiled"])
def test_the_chosen_backend_compiles_without_graph_breaks(
    name: ops.BackendName, ops_backend: ops.BackendName
) -> None:
    torch._dynamo.reset()

    def model(points: Tensor) -> Tensor:
        _, centers = ops.furthest_point_sample(points, 8)
        return ops.group_knn(points, centers, 6)[0]

    points = shell(2, 40)
    ops.set_backend(name)
    try:
        expected = model(points)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(points), expected)
    finally:
        ops.set_backend(ops_backend)


def test_exports_with_dynamic_sizes(device: torch.device) -> None:
    points = shell(2, 40).to(device)
    batch, size = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("size", min=8)
    dynamic = {"points": {0: batch, 1: size}, "target": {0: batch, 1: size}}
    program = torch.export.export(Pipeline(), (points, points * 1.1), dynamic_shapes=dynamic)
    other = shell(3, 55).to(device)
    torch.testing.assert_close(program.module()(other, other * 1.1), Pipeline()(other, other * 1.1))


def test_autocast_keeps_geometry_in_single_precision(device: torch.device) -> None:
    points = shell(2, 100).to(device)
    half = points.to(torch.bfloat16)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.ops.recon_ops.knn(half, half, 3, True)[0].dtype == torch.float32
        loss = torch.ops.recon_ops.chamfer_loss_forward(half, points, True, False, False)[0]
        assert loss.dtype == torch.float32
        assert recon_ops.chamfer_loss(half, points).dtype == torch.float32
        patches, _ = recon_ops.group_knn(points, points[:, :4], 3)
    assert patches.dtype == torch.float32
    assert torch.equal(patches, recon_ops.group_knn(points, points[:, :4], 3)[0])


VARIANT = """
import sys, torch, recon_ops
torch.manual_seed(int(sys.argv[1]))
p, q, f = torch.randn(3, 700, 3), torch.randn(3, 50, 3), torch.randn(3, 700, 21)
p.requires_grad_()
dist, near = recon_ops.three_nn(q, p)
results = [
    *recon_ops.furthest_point_sample(p, 90), *recon_ops.knn(p, q, 33),
    *recon_ops.ball_query(p, q, 0.5, 40), *recon_ops.chamfer_distance(p, q),
    recon_ops.three_interpolate(f, near, 1 / (dist.detach() + 1)), dist,
]
loss = recon_ops.chamfer_loss(p, q, norm="l1")
loss.backward()
torch.save([recon_ops.build_info()["cpu_instructions"], *results, loss, p.grad], sys.argv[2])
"""


def test_all_instruction_sets_give_the_same_bits(tmp_path: object) -> None:
    seed, outcomes = str(torch.initial_seed() % 2**31), []
    for level in ("0", "1", "2"):
        path = str(tmp_path / f"{level}.pt")
        environment = {**os.environ, "RECON_OPS_CPU_LEVEL": level}
        subprocess.run([sys.executable, "-c", VARIANT, seed, path], check=True, env=environment)
        outcomes.append(torch.load(path))
    assert outcomes[0][0] == "baseline"
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0][1:], other[1:], strict=True):
            assert torch.equal(a, b)


def test_a_library_that_does_not_load_is_one_sentence(tmp_path: object) -> None:
    code = (
        "import json, pathlib, recon_ops._load as l\n"
        f"l._FOLDER = pathlib.Path({str(tmp_path)!r})\n"
        "def attempt():\n"
        "    try:\n        l.load_library()\n"
        "    except l.OpsError as error:\n        return str(error)\n"
        "missing = attempt()\n"
        "(l._FOLDER / '_C.abi3.so').write_text('nothing')\n"
        "print(json.dumps([missing, attempt()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    missing, broken = json.loads(done.stdout)
    assert "no compiled library" in missing
    assert "pip install --no-build-isolation ./ops" in missing
    assert "_C.abi3.so does not load" in broken
    assert torch.__version__ in broken


@pytest.mark.cuda
def test_graph_replay_equals_eager() -> None:
    points, target = shell(4, 300).cuda(), shell(4, 300).cuda()
    leaf = points.clone().requires_grad_()
    model = Pipeline()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up outside of the capture
        for _ in range(2):
            leaf.grad = None
            model(leaf, target)[0].backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    leaf.grad = None
    with torch.cuda.graph(graph):
        captured = model(leaf, target)
        captured[0].backward()
    for other in (grid(4, 300).cuda(), shell(4, 300).cuda()):
        with torch.no_grad():
            leaf.copy_(other)
        graph.replay()
        eager = other.clone().requires_grad_()
        results = model(eager, target)
        results[0].backward()
        assert_same_bits([*captured, leaf.grad], [*results, eager.grad])


@pytest.mark.cuda
def test_large_shapes_can_be_captured() -> None:
    points = shell(2, 9000).cuda()
    torch.cuda.synchronize()
    expected = recon_ops.knn(points, points[:, :64], 200)
    sampled = recon_ops.furthest_point_sample(points, 100)[0]
    loss = recon_ops.chamfer_loss(points, points + 0.01)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = recon_ops.knn(points, points[:, :64], 200)
        again = recon_ops.furthest_point_sample(points, 100)[0]
        lost = recon_ops.chamfer_loss(points, points + 0.01)
    graph.replay()
    assert_same_bits([*found, again, lost], [*expected, sampled, loss])


@pytest.mark.cuda
def test_a_second_stream_is_used() -> None:
    points = shell(64, 4000).cuda()
    expected = differentiate(Pipeline(), points)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The input appears late on this stream: work on another one would read zeros.
        late = torch.zeros_like(points)
        torch.cuda._sleep(50_000_000)
        late.copy_(points)
        found = differentiate(Pipeline(), late)
    stream.synchronize()
    assert_same_bits(found, expected)


@pytest.mark.cuda
def test_a_second_device_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    points = shell(3, 200)
    first = differentiate(Pipeline(), points.to("cuda:0"))
    for a, b in zip(differentiate(Pipeline(), points.to("cuda:1")), first, strict=True):
        assert a.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.cuda
def test_cpu_and_cuda_agree() -> None:
    points = shell(3, 500)
    on_cpu, on_cuda = differentiate(Pipeline(), points), differentiate(Pipeline(), points.cuda())
    for a, b in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_graphs_of_tiny_losses_replay_at_once_on_several_streams() -> None:
    calls = []
    for _ in range(3):
        a, b = (shell(4864, 32).cuda().requires_grad_() for _ in range(2))
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            loss = recon_ops.chamfer_loss(a, b)
            captured = [loss.detach(), *torch.autograd.grad(loss, (a, b))]
        calls.append((torch.cuda.Stream(), graph, captured, (a, b)))
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, graph, _, _ in calls:
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for _, _, captured, (a, b) in calls:
        loss = recon_ops.chamfer_loss(a, b)
        assert_same_bits(captured, [loss.detach(), *torch.autograd.grad(loss, (a, b))])
