"""Fixtures that several folders share."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's workers are 15 nicer than their node: they would wait for the tests beside them.
os.environ.setdefault("RAY_worker_niceness", "0")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.readers.meshes import Shape
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.points import ops
from recon_ray.tasks.pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
RAY_TESTS = "tests/integration/"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ops-backend",
        choices=get_args(ops.BackendName),
        default="auto",
        help="implementation of the point operations that the tests run with",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of Ray first, which are the longest part; skip CUDA without a GPU."""
    items.sort(key=lambda item: not item.nodeid.startswith(RAY_TESTS))
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """For `-n ... --dist loadfile`: one Ray at a time, so that its tests count as one file."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return RAY_TESTS if file.startswith(RAY_TESTS) else file

    return OneRay(config, log)


@pytest.fixture(scope="session")
def ops_backend(request: pytest.FixtureRequest) -> ops.BackendName:
    """The backend that was asked for on the command line."""
    return request.config.getoption("--ops-backend")


@pytest.fixture(autouse=True)
def _own_log_levels() -> Iterator[None]:
    """Undo what a job that ran in this process, perhaps for a whole module, did to the loggers."""
    _reset_loggers()
    yield
    _reset_loggers()


def _reset_loggers() -> None:
    below = [name for name in logging.root.manager.loggerDict if name.startswith("recon_ray.")]
    for logger in map(logging.getLogger, ("recon_ray", *below)):
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True


@pytest.fixture(autouse=True, scope="session")
def _chosen_backend(ops_backend: ops.BackendName) -> None:
    ops.set_backend(ops_backend)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two cores are shared by several processes; a job may have set another number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """A prepared synthetic set: 3 categories, 8 + 4 shapes each, 2 views of 32 pixels."""
    source = SyntheticSource(
        train_per_class=8, test_per_class=4, categories=("chair", "lamp", "mug")
    )
    root = tmp_path_factory.mktemp("tiny") / "set"
    options = PrepareOptions(num_points=96, views=2, image_size=32, samples_per_shard=7)
    prepare(source, root, options)
    return PreparedSet.open(root)


@pytest.fixture(scope="session")
def tiny_config_in(
    tiny_prepared: PreparedSet, ops_backend: ops.BackendName
) -> Callable[[Path], PretrainConfig]:
    """Makes the configuration of a pre-training that takes a second, for runs in a folder."""

    def make(storage: Path) -> PretrainConfig:
        return PretrainConfig(**tiny_options(tiny_prepared, storage, ops_backend))

    return make


def tiny_options(
    tiny_prepared: PreparedSet, storage: Path, backend: ops.BackendName
) -> dict[str, object]:
    return {
        "run": {"name": "run", "storage": str(storage), "seed": 3},
        "runtime": {"ops_backend": backend, "threads": 1},
        "cluster": {"workers": 0},
        "data": {"path": str(tiny_prepared.path), "num_points": 64},
        "model": {
            "preset": "nano", "embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_depth": 1,
            "num_groups": 8, "group_size": 8,
        },
        "teacher": {
            "image": {"name": "descriptor:32", "augment": "none"},
            "text": {"name": "descriptor:32"},
        },
        "train": {"epochs": 4, "global_batch_size": 8, "log_every_steps": 1},
        "optim": {"lr": 1e-3, "warmup_epochs": 1},
        "eval": {"draws": 2, "shots": 2},
    }  # fmt: skip


@pytest.fixture
def tiny_config(tiny_config_in: Callable[[Path], PretrainConfig], tmp_path: Path) -> PretrainConfig:
    """The configuration of a pre-training that takes a second, in this process."""
    return tiny_config_in(tmp_path / "runs")


@dataclass(frozen=True)
class PartSource:
    """Clouds of different sizes; the height of a point determines its part."""

    splits: tuple[tuple[str, int], ...] = (("train", 6), ("val", 3), ("test", 5))
    name: str = "parts"

    def scan(self) -> Listing:
        """Boxes (parts 0 and 1) and sticks (parts 2 and 3) in turn; no shape is a cone."""
        items = tuple(
            Item(f"{split}{i}", split, ("box", "stick")[i % 2], i % 2, file=f"{split}{i}")
            for split, count in self.splits
            for i in range(count)
        )
        return Listing(
            items, ("box", "stick", "cone"), num_points=96, keeps_all_points=True, part_labels=True
        )

    def load(self, item: Item, image_size: int | None = None) -> Sample:
        """Draw 60 to 90 points."""
        random = np.random.default_rng([ord(item.split[1]), *item.object_id.encode()])
        cloud = random.uniform(-1, 1, (int(random.integers(60, 91)), 3))
        cloud[:, 0] *= (1.0, 0.1)[item.label]
        parts = 2 * item.label + (cloud[:, 1] > 0)
        return Sample(Shape(cloud, part_labels=parts.astype(np.uint8)))


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """A prepared set with part labels: 6 + 3 + 5 shapes of two of its three categories."""
    root = tmp_path_factory.mktemp("parts") / "set"
    prepare(PartSource(), root, PrepareOptions(samples_per_shard=4))
    return PreparedSet.open(root)
