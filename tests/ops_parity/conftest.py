"""All tests here need the compiled operators; those marked `cuda` need their CUDA kernels too."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _reason_against_cuda() -> str | None:
    import recon_ops

    if "cuda" not in recon_ops.build_info()["backends"]:
        return "recon_ops built without CUDA"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if HERE in item.path.parents and "cuda" in item.keywords]
    reason = _reason_against_cuda() if marked else None
    for item in marked:
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    """Other inputs in every run; pytest shows the seed of a failed test."""
    seed = random.SystemRandom().randrange(2**31)
    torch.manual_seed(seed)
    sys.stdout.write(f"seed {seed}\n")


@pytest.fixture(autouse=True)
def _poison() -> None:
    """Leave NaN in freed memory of the usual sizes, so that elements never written show."""
    places = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for place in places:
        blocks = [
            torch.full((1 << size,), float("nan"), device=place)
            for size in range(4, 20)
            for _ in range(2)
        ]
        del blocks
