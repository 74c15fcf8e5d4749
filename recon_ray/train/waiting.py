"""Waiting for what rank 0 does alone, however long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from recon_ray.train.metrics import is_distributed

#: Longer than anything that one worker does alone.
LONGEST = timedelta(days=7)


@contextmanager
def waiting_for_rank_zero() -> Iterator[None]:
    """Let all ranks leave the block together; every rank takes part.

    Rank 0 fits a support vector machine to a large set for longer than a collective may last. The
    others would wait for it in the next one, whose timeout is made for steps; here they wait in a
    group of its own. An error in the block is raised at once, and its connections are closed.
    """
    if not is_distributed():
        yield
        return
    group = dist.new_group(backend="gloo", timeout=LONGEST)
    assert isinstance(group, dist.ProcessGroup)  # all ranks are in it
    try:
        yield
        dist.barrier(group=group)
    finally:
        dist.destroy_process_group(group)
