"""What the workers of a run failed with, noted where the next ones find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.train import UserCallback

from recon_ray.cluster.reservations import renew_after_failure
from recon_ray.train.journal import Journal, shortened
from recon_ray.train.runtime import RunFolder


class FailureNotes(UserCallback):
    """Notes in the run's journal what its workers failed with; Ray Train calls it.

    Args:
        folder: Folder or URI of the run.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def after_exception(
        self,
        run_context: Any,  # noqa: ANN401 - of no public class
        worker_exceptions: Mapping[int, Exception],
    ) -> None:
        """Note what has failed, a worker that died before those that missed it."""
        renew_after_failure()  # perhaps a node is lost
        rank, error = min(worker_exceptions.items(), key=lambda item: (not _died(item[1]), item[0]))
        reason = "it died" if _died(error) else shortened(str(error))
        Journal(RunFolder(self._folder)).add("failed", rank=rank, reason=f"rank {rank}: {reason}")


def _died(error: Exception) -> bool:
    """Whether a worker or its node is gone, rather than that its code has raised."""
    causes = (error, error.__cause__, *vars(error).values())
    return any(isinstance(cause, ray.exceptions.RayActorError) for cause in causes)
