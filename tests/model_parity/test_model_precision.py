"""The same model in other precisions and on other devices."""

from __future__ import annotations

import pytest
import torch

from recon_ray.api import create_model
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.recon import Recon
from recon_ray.points import ops
from recon_ray.points.random import SampleGenerator

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make_model() -> Recon:
    torch.manual_seed(0)
    return create_model("nano", image_dim=32, text_dim=32)


def run(model: Recon, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the losses of one training forward and the gradient of every parameter."""
    model = model.to(device).train()
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(8, 256, 3, generator=generator).to(device)
    features = torch.randn(8, 32, generator=generator).to(device)
    source = SampleGenerator(0, torch.arange(8, device=device))
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        output = model(points, source=source)
        losses = pretrain_losses(output, image_features=features, text_features=features)
    losses["loss"].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {k: v.detach().cpu() for k, v in {**losses, **grads}.items()}


def check_half_precision(device: str) -> None:
    exact = run(make_model(), device, torch.float32)
    rough = run(make_model(), device, torch.bfloat16)
    for name in ("reconstruction", "image_distill", "text_distill", "loss"):
        # bfloat16 has 8 bits: 0.4 % a rounding, several in a row.
        torch.testing.assert_close(rough[name], exact[name], rtol=0.03, atol=0.03)
    assert all(value.dtype == torch.float32 for value in rough.values())
    assert all(torch.isfinite(value).all() for value in rough.values())


def test_bfloat16_on_cpu_is_near_float32() -> None:
    check_half_precision("cpu")


@pytest.mark.cuda
@needs_cuda
def test_bfloat16_on_cuda_is_near_float32() -> None:
    check_half_precision("cuda")


@pytest.mark.cuda
@needs_cuda
def test_cuda_equals_cpu() -> None:
    cpu, cuda = (run(make_model(), device, torch.float32) for device in ("cpu", "cuda"))
    for name, value in cpu.items():
        # Gradients in front of a batch norm are rounding noise around zero, hence the floor.
        torch.testing.assert_close(cuda[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.cuda
@needs_cuda
def test_reference_ops_on_cuda_equal_those_on_cpu() -> None:
    ops.set_backend("reference")
    points = torch.randn(4, 300, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "cuda"):
        moved = points.to(device)
        indices, centers = ops.furthest_point_sample(moved, 20)
        patches, neighbors = ops.group_knn(moved, centers, 9)
        distances = ops.chamfer_distance(moved, centers)
        results.append([x.cpu() for x in (indices, patches, neighbors, *distances)])
    ops.set_backend("auto")
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu)
