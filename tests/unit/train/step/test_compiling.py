"""Compiled code is found again by later processes."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from recon_ray.models.grouping import max_over_points
from recon_ray.train.step.compiling import compile_arguments


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_graphs_with_own_gradients_are_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.randn(2, 3, 4)
    x[0, :2, 0] = 5.0  # the gradient of equal values goes to the first
    expected = torch.zeros_like(x).scatter_(1, x.argmax(dim=1, keepdim=True), 1.0)
    for expected_counts in ({"miss": 1, "saved": 1}, {"hit": 1}):
        torch._dynamo.reset()  # forgets all but the files, as another process would
        counters.clear()
        points = x.clone().requires_grad_()
        torch.compile(max_over_points, **compile_arguments("default"))(points).sum().backward()
        torch.testing.assert_close(points.grad, expected)
        found = {
            name.removeprefix("autograd_cache_"): count
            for name, count in counters["aot_autograd"].items()
            if name.startswith("autograd_cache_")
        }
        assert found == expected_counts
