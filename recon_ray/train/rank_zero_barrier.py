"""Barrier at which all ranks wait for rank 0, however long its work takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from recon_ray.torch_internals import default_store
from recon_ray.train.metrics import is_distributed

#: Seconds between two looks of the other ranks.
LOOK_SECONDS = 0.1

_DONE, _FAILED = "done", "failed"
_numbers = itertools.count()  # the same on every rank, which all begin with 0


@contextmanager
def rank_zero_barrier() -> Iterator[None]:
    """Keep every rank in the block until rank 0 leaves it; every rank takes part, equally often.

    Rank 0 fits a support vector machine to a large set for longer than a collective may last. The
    others would wait for it in the next one, whose timeout is made for steps. Here they poll
    the store through which the workers have found each other: it exists as long as rank 0 does.

    Raises:
        RuntimeError: On the other ranks, if rank 0 has failed in the block or is gone.
    """
    if not is_distributed():
        yield
        return
    store, key = default_store(), f"recon_ray/waiting/{next(_numbers)}"
    if dist.get_rank() == 0:
        try:
            yield
        except BaseException:
            store.set(key, _FAILED)
            raise
        store.set(key, _DONE)
        return
    yield
    while not store.check([key]):
        time.sleep(LOOK_SECONDS)
    if store.get(key).decode() != _DONE:
        raise RuntimeError("rank 0 has failed while the others waited for it")
