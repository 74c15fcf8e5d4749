"""Workers whose shares differ in size take the steps of one worker."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from settings_samples import make_settings
from torch import Tensor, nn

from recon_ray.data.format.schema import tensor_column
from recon_ray.data.loading.batches import Batch, BatchOptions, IndexedTable
from recon_ray.models.batch_norm import BatchNorm, set_sync_batch_norm
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.indexed import IndexedFeed
from recon_ray.train.loop import take_step
from recon_ray.train.step.one_step import Step

COUNTS = (2, 3, 5)
#: Exchange of gradients, and size of the micro batches.
CASES = [("bucketed", None), ("bucketed", 2), ("flat", None)]


class Heights(nn.Module):
    """A small network in float64: what differs is no rounding.

    Batch norms have the statistics of a micro batch, which more workers fill with more samples.
    """

    def __init__(self, *, has_norm: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)
        self.norm = BatchNorm(6) if has_norm else nn.Identity()
        self.double()

    def forward(self, batch: Batch, source: object) -> dict[str, Tensor]:
        hidden = self.norm(self.first(batch["points"].double())).relu()
        errors = (self.last(hidden).squeeze(-1) - batch["points"][..., 1].double() ** 2) ** 2
        return {"loss": errors.mean()}


class HeightsTask:
    prepare_on_device = staticmethod(lambda batch, source: batch)


def trained(rank: int, world_size: int, how: str, micro: int | None) -> dict[str, Any]:
    """Losses and weights of three steps of one worker."""
    torch.manual_seed(0)
    module = Heights(has_norm=micro is None)
    set_sync_batch_norm(module, True)
    settings = make_settings(
        epochs=1, global_batch_size=8, gradient_exchange=how, compile="off", cuda_graph="off"
    )
    points = np.random.default_rng(0).normal(size=(24, 16, 3)).astype(np.float32)
    columns = {"sample_id": range(24), "label": range(24), "points": tensor_column(points)}
    feed = IndexedFeed(IndexedTable([pa.table(columns)]), BatchOptions(), seed=0)
    plan = BatchPlan(8, world_size, micro)
    step = Step(
        take_step, HeightsTask(), module, torch.optim.SGD(module.parameters(), lr=1.0),
        settings=settings, plan=plan, feed=feed, device=torch.device("cpu"), rank=rank,
    )  # fmt: skip
    losses = []
    for number, batch in enumerate(feed.epoch(0, 0, plan, rank)):
        step(batch, epoch=0, step=number, lr=[0.1])
        losses.append(step.meter.read().means()["loss"])
    return {"losses": losses, "weights": module.state_dict()}


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for world_size in COUNTS:
        if rank >= world_size:
            continue
        meet = f"file://{folder}/{world_size}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
        for number, case in enumerate(CASES):
            found = trained(rank, world_size, *case)
            if rank == world_size - 1:
                torch.save(found, folder / f"{world_size}-{number}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 2, 3 and 5 workers have computed."""
    folder = tmp_path_factory.mktemp("uneven")
    # The workers fork from a process that has imported everything.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["recon_ray.train.loop"])
    mp.start_processes(_worker, (folder,), nprocs=max(COUNTS), start_method="forkserver")
    return folder


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_any_number_of_workers_takes_the_steps_of_one(computed, case):
    alone = trained(0, 1, *CASES[case])
    assert len(set(alone["losses"])) == 3
    for world_size in COUNTS:
        found = torch.load(computed / f"{world_size}-{case}.pt")
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        for name, value in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-6, atol=1e-7)
