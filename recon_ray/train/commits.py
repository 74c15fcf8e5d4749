"""Commits: when a run stores a checkpoint, and the upload beside the training.

Rank 0 decides by its clock and by stop requests; all ranks learn the decision at the same step, and
the step of the next decision. Nothing is exchanged in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from recon_ray.errors import CheckpointError
from recon_ray.runs.checkpoint import Packed
from recon_ray.runs.journal import Journal, Restart
from recon_ray.train.metrics import is_distributed
from recon_ray.train.runtime import Runtime
from recon_ray.train.stop_request import StopRequest

logger = logging.getLogger(__name__)

#: Seconds between two looks at rank 0's clock and the stop requests.
LOOK_SECONDS = 1.0
MOST_STEPS_BETWEEN_LOOKS = 1000


@dataclass(frozen=True)
class _Pending:
    """A checkpoint whose upload is in progress."""

    name: str
    step: int
    metrics: Mapping[str, float]
    upload: Future[None] | None


class Commits:
    """Decides on commits and stores them, on every rank.

    Storing waits where the storage is a folder, and after a stop request. Otherwise a thread writes
    to the object store while the training goes on, one checkpoint at a time; a failure is raised at
    the next commit.

    Args:
        runtime: Storage, ranks and stop requests.
        every_seconds: Seconds between two commits.
        journal: Events of the run, written on rank 0.
    """

    def __init__(self, runtime: Runtime, *, every_seconds: float, journal: Journal) -> None:
        self.stopping = False
        self._is_urgent = False
        self.restart: Restart | None = None
        self._runtime = runtime
        self._every_seconds = every_seconds
        self._journal = journal
        self._next_look = 0
        self._looked: tuple[int, float] | None = None
        self._last_commit = time.monotonic()
        self._pending: _Pending | None = None
        self._uploader: ThreadPoolExecutor | None = None

    # -- when ------------------------------------------------------------------------------------

    def due(self, step: int, *, ask: bool = False) -> bool:
        """Return whether to commit after this step; every rank calls it and gets the same answer.

        Args:
            step: Optimizer steps done.
            ask: Let rank 0 decide now, though it is not the time.
        """
        if self._looked is None:
            self._trains(step)
        every = self._runtime.store.keep_every
        kept = every is not None and step % every == 0
        if not (kept or ask or step >= self._next_look):
            return False
        request, overdue = self._decide(step)
        self.stopping = self.stopping or request is StopRequest.STOP
        self._is_urgent = self._is_urgent or request is not StopRequest.NONE
        return kept or overdue or request is not StopRequest.NONE

    def _decide(self, step: int) -> tuple[StopRequest, bool]:
        """Share rank 0's stop request and clock, and the step of the next look, with every rank."""
        request, overdue, stride = self._runtime.stop_request(), False, 1
        if self._runtime.rank == 0:
            overdue = time.monotonic() - self._last_commit > self._every_seconds
            stride = self._stride(step)
            if request is not StopRequest.NONE:
                self._journal.add("notice", step=step, reason=self._runtime.reason())
        if is_distributed():
            decision = torch.tensor([request, overdue, stride], device=self._runtime.device)
            dist.broadcast(decision, src=0)
            values = decision.tolist()
            request, overdue, stride = StopRequest(values[0]), bool(values[1]), int(values[2])
        self._next_look = step + stride
        return request, overdue

    def _stride(self, step: int) -> int:
        """Steps that take about :data:`LOOK_SECONDS`, from the time since the last look."""
        now = time.monotonic()
        before, self._looked = self._looked, (step, now)
        if before is None or step <= before[0]:
            return 1
        seconds = (now - before[1]) / (step - before[0])
        return min(max(int(LOOK_SECONDS / max(seconds, 1e-6)), 1), MOST_STEPS_BETWEEN_LOOKS)

    def _trains(self, step: int) -> None:
        """Note that the training has started, and why it was restarted."""
        self._looked = (step, time.monotonic())
        if self._runtime.rank != 0:
            return
        values: dict[str, Any] = {"step": step, "workers": self._runtime.world_size}
        restart = self.restart
        if restart is not None:
            logger.info("step %d: %s", step, restart.describe(self._runtime.world_size))
            values |= {"reason": restart.reason, "repeated": restart.repeated}
            if restart.idle_since is not None:
                values["seconds"] = round(time.time() - restart.idle_since, 3)
        self._journal.add("trains", attempt=self._runtime.attempt, **values)

    # -- how -------------------------------------------------------------------------------------

    def store(
        self,
        pack: Callable[[], Packed],
        *,
        name: str,
        step: int,
        metrics: Mapping[str, float],
        failure: str,
    ) -> None:
        """Store a checkpoint; every rank takes part.

        Args:
            pack: Makes the checkpoint's files in memory; called on rank 0.
            name: Its folder name.
            step: Optimizer steps behind it.
            metrics: Metrics that are announced with it.
            failure: An earlier failure of rank 0, empty for none.

        Raises:
            CheckpointError: On every rank, if this checkpoint or the one before it could not be
                written.
        """
        self.finish()
        upload = None
        if self._runtime.rank == 0 and not failure:
            try:
                upload = self._begin(pack())
            except CheckpointError as error:
                failure = str(error)
        raise_on_all_ranks(failure)
        self._pending = _Pending(name, step, metrics, upload)
        if self._runtime.store.is_local or self._is_urgent:
            self.finish()
        self._is_urgent = False
        self._last_commit = time.monotonic()

    def _begin(self, packed: Packed) -> Future[None] | None:
        if self._runtime.store.is_local:
            self._runtime.store.write(packed)
            return None
        if self._uploader is None:
            self._uploader = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-upload")
        return self._uploader.submit(self._send, packed)

    def _send(self, packed: Packed) -> None:
        """Write a checkpoint to an object store, and the records that belong to it before."""
        try:
            self._runtime.folder.publish()
        except CheckpointError as error:  # the local files remain
            logger.warning("%s; the next commit tries again", error)
        self._runtime.store.write(packed)

    def finish(self) -> None:
        """Wait for the upload in progress and announce its checkpoint; every rank takes part.

        Raises:
            CheckpointError: On every rank, if it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        failure = ""
        if pending.upload is not None:
            try:
                pending.upload.result()
            except CheckpointError as error:
                failure = str(error)
        if not self._runtime.store.is_local:
            raise_on_all_ranks(failure)
        self._runtime.committed(pending.name, pending.step, pending.metrics)

    def note(self, event: str, step: int) -> None:
        """Note on rank 0 how the run ends."""
        if self._runtime.rank == 0:
            reason = {"reason": self._runtime.reason()} if event == "stopped" else {}
            self._journal.add(event, step=step, **reason)


def raise_on_all_ranks(failure: str) -> None:
    """Raise a failure of rank 0 on every rank; do nothing for an empty text."""
    if is_distributed():
        box = [failure]
        dist.broadcast_object_list(box, src=0)
        failure = box[0]
    if failure:
        raise CheckpointError(failure)
