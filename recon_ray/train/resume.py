"""Where a run goes on from: the same on every rank, and the epoch as it was begun."""

from __future__ import annotations

import torch.distributed as dist

from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import Checkpoint, CheckpointStore
from recon_ray.train.commits import raise_on_all_ranks
from recon_ray.train.metrics import is_distributed
from recon_ray.train.state import Progress


def newest_checkpoint(store: CheckpointStore, *, rank: int) -> Checkpoint | None:
    """Load the checkpoint that rank 0 finds valid; every rank takes part.

    Raises:
        CheckpointError: On every rank, if all are damaged or the storage cannot be reached.
    """
    if not is_distributed():
        return store.load_latest()
    found, failure = None, ""
    if rank == 0:
        try:
            found = store.load_latest()
        except CheckpointError as error:
            failure = str(error)
    raise_on_all_ranks(failure)
    box = [found.name if found is not None else None]
    dist.broadcast_object_list(box, src=0)
    if box[0] is None or rank == 0:
        return found
    return store.load(box[0])


def check_feed(found: Checkpoint, progress: Progress, *, tracks_samples: bool) -> None:
    """Refuse to end an epoch in another order than it was begun in: samples would repeat.

    Raises:
        ConfigError: If it would.
    """
    streamed = found.train.get("tracks_samples", tracks_samples)
    if progress.step_in_epoch and streamed != tracks_samples:
        was, now = ("a stream", "by index") if streamed else ("by index", "a stream")
        way = "data.mode=" + ("stream and cluster.workers=1 or more" if streamed else "shared")
        raise ConfigError(
            f"data.mode: epoch {progress.epoch + 1} was begun with samples read {was} and "
            f"would go on {now}, with samples used twice; set {way} until it has ended"
        )
