"""Runtime interface of the training loop, and its local implementation.

The loop in :mod:`recon_ray.train.loop` talks to a :class:`Runtime` only. ``cluster.worker`` has the
one of Ray Train; :class:`LocalRuntime` runs in this process and writes the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from recon_ray.data.loading.batches import IndexedTable
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder, new_attempt
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.inference import Inference
from recon_ray.train.stop_request import StopRequest, stop_heard, stop_requested


class EvaluationRuntime(Protocol):
    """Ranks, device, folder and tables, as an evaluation uses them."""

    rank: int
    world_size: int
    device: torch.device
    folder: RunFolder
    inference: Inference

    def table(self, split: str) -> IndexedTable:
        """Return all rows of a split for evaluation."""


class Runtime(EvaluationRuntime, Protocol):
    """Ranks, device, storage, samples and stop requests, as the loop uses them."""

    store: CheckpointStore
    #: Name of this submission of the job; the same for all of its restarts.
    attempt: str

    def feed(self) -> TrainFeed:
        """Return the training samples."""

    def stop_request(self) -> StopRequest:
        """Return the request that is due; every rank calls it equally often, rank 0's counts."""

    def reason(self) -> str:
        """Return why there was a request, for messages."""

    def committed(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Announce a checkpoint that is in the store; called by every rank equally often."""


class LocalRuntime:
    """Runtime of one process without Ray: same order of samples, same files.

    Args:
        tables: Split name to rows in memory.
        keep_checkpoints: Newest checkpoints that are kept.
        keep_every: Steps between two checkpoints that are kept for good.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: RunFolder,
        *,
        tables: Mapping[str, IndexedTable],
        train_feed: TrainFeed,
        device: torch.device,
        keep_checkpoints: int = 3,
        keep_every: int | None = None,
        inference: Inference = Inference(),  # noqa: B008 - frozen
    ) -> None:
        self.folder = folder
        self.device = device
        self.inference = inference
        self.attempt = new_attempt()
        self.store = CheckpointStore(
            folder.checkpoints, keep=keep_checkpoints, keep_every=keep_every
        )
        self._tables = dict(tables)
        self._feed = train_feed

    def feed(self) -> TrainFeed:
        """Return the training samples."""
        return self._feed

    def table(self, split: str) -> IndexedTable:
        """Return all rows of a split for evaluation."""
        return self._tables[split]

    def committed(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: the checkpoint is in the store."""

    def stop_request(self) -> StopRequest:
        """Return STOP once this process has received SIGTERM."""
        if not stop_requested().is_set():
            return StopRequest.NONE
        stop_heard().set()
        return StopRequest.STOP

    def reason(self) -> str:
        """Return the only reason there is."""
        return "by SIGTERM"
