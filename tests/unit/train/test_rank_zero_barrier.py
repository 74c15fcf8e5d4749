"""Two ranks, of which one does something alone for longer than a collective may last."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.distributed_c10d import _set_pg_timeout

from recon_ray.train import rank_zero_barrier as waiting
from recon_ray.train.rank_zero_barrier import rank_zero_barrier

COLLECTIVE_SECONDS, ALONE_SECONDS = 2.0, 3.5


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dist.barrier()
    _set_pg_timeout(timedelta(seconds=COLLECTIVE_SECONDS))
    with rank_zero_barrier():
        time.sleep(ALONE_SECONDS if rank == 0 else 0)
    total = torch.ones(1)
    dist.all_reduce(total)
    outcomes = [f"{total.item():g}"]
    began = time.monotonic()
    try:
        with rank_zero_barrier():
            if rank == 0:
                raise ZeroDivisionError
    except (ZeroDivisionError, RuntimeError) as error:
        outcomes.append(type(error).__name__)
    assert time.monotonic() - began < 30
    Path(folder, f"rank{rank}").write_text(" ".join(outcomes))


def test_the_others_wait_for_rank_0_and_hear_at_once_that_it_failed(tmp_path):
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    outcomes = [Path(tmp_path, f"rank{rank}").read_text() for rank in (0, 1)]
    assert outcomes == ["2 ZeroDivisionError", "2 RuntimeError"]


def test_one_worker_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(waiting, "default_store", lambda: pytest.fail("there is none"))
    with rank_zero_barrier():
        pass
