"""Workers without synchronized batch norms evaluate and store one model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from settings_samples import make_settings
from test_step import CPU, EAGER, pretraining

from recon_ray.benchmarks.step_workloads import random_table
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.resident import indexed_feed
from recon_ray.train.loop import take_step
from recon_ray.train.step.one_step import Step


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of each of two workers after three steps of either exchange."""
    folder = tmp_path_factory.mktemp("exchange")
    mp.start_processes(_worker, (2, folder), nprocs=2, start_method="spawn")
    return folder


def _worker(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    for how in ("bucketed", "flat"):
        torch.manual_seed(0)
        task = pretraining()
        module = task.build()
        task.on_device(CPU)
        settings = make_settings(
            epochs=1, global_batch_size=8, sync_batch_norm=False, gradient_exchange=how, **EAGER
        )
        optimizer = torch.optim.AdamW(task.parameter_groups(module), fused=True)
        plan, table = BatchPlan(8, world_size), random_table(24, 64, 3)
        feed = indexed_feed(table, task.batch_options(), seed=0, residency="host", device=CPU)
        step = Step(
            take_step, task, module, optimizer,
            settings=settings, plan=plan, feed=feed, device=CPU, rank=rank,
        )  # fmt: skip
        for number, batch in enumerate(feed.epoch(0, 0, plan, rank)):
            step(batch, epoch=0, step=number, lr=[1e-3] * 3)
        torch.save(module.state_dict(), folder / f"{how}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("how", ["bucketed", "flat"])
def test_statistics_that_are_not_synchronized_are_those_of_the_first_worker(states, how):
    first, second = (torch.load(states / f"{how}-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["model.encoder.embed.norm1.num_batches_tracked"] == 3  # no trial is counted


def test_either_exchange_gives_the_same_statistics(states):
    bucketed, flat = (torch.load(states / f"{how}-0.pt") for how in ("bucketed", "flat"))
    for name in bucketed:
        if "running" in name:
            torch.testing.assert_close(bucketed[name], flat[name], rtol=1e-3, atol=1e-5)
