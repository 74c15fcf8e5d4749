"""The prepared set that tests of data and of teacher caches share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from data_samples import OPTIONS, SOURCE

from recon_ray.data.prepare.build_set import prepare

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set that no test may change; 10 training and 4 test samples in 3 + 1 shards."""
    root = tmp_path_factory.mktemp("prepared") / "set"
    prepare(SOURCE, root, OPTIONS)
    return root
