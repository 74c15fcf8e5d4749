"""Failures of workers: noted in the run's journal, and translated for the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import TrainingFailedError, UserCallback, WorkerGroupError

from recon_ray.cluster.workarounds.reservations import refresh_nodes_after_failure
from recon_ray.cluster.workarounds.undocumented import KILLED_FOR_MEMORY
from recon_ray.errors import OutOfMemoryError, find_recon_error, root_cause
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal, shortened


class FailureNotes(UserCallback):
    """Callback of Ray Train that notes failures of workers, and ends runs that cannot go on.

    Args:
        folder: Folder or URI of the run; None to note nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def after_exception(
        self,
        run_context: Any,  # noqa: ANN401 - of no public class
        worker_exceptions: Mapping[int, Exception],
    ) -> None:
        """Note the first failure: a worker that died, before those that missed it.

        Raises:
            ReconError: If a worker met one, which ends the run: a restart would meet it again.
        """
        refresh_nodes_after_failure()  # perhaps a node is lost
        rank, error = min(worker_exceptions.items(), key=lambda item: (not _died(item[1]), item[0]))
        reason = "it died" if _died(error) else shortened(str(error))
        if self._folder is not None:
            journal = Journal(RunFolder(self._folder))
            journal.add("failed", rank=rank, reason=f"rank {rank}: {reason}")
        for error in worker_exceptions.values():
            own = find_recon_error(error)
            if own is not None:
                raise own


@contextmanager
def translate_failures(advice: str) -> Iterator[None]:
    """Translate errors of Ray Train into the one sentence that they come from.

    Args:
        advice: What to change where Ray has killed workers because their node ran out of memory.

    Raises:
        ReconError: The error that a worker met, or that it was killed for memory.
    """
    try:
        yield
    except TrainingFailedError as error:
        own = find_recon_error(error)
        if own is not None:
            raise own from error
        is_group = isinstance(error, WorkerGroupError)
        failures = error.worker_failures if is_group else {0: error}
        for rank, failure in failures.items():
            if _was_killed_for_memory(root_cause(failure)):
                raise OutOfMemoryError(
                    f"Ray has killed worker {rank} of the run again and again, as its node ran out "
                    f"of memory; {advice}, or lower cluster.workers"
                ) from error
        raise


def _was_killed_for_memory(cause: BaseException) -> bool:
    if isinstance(cause, ray.exceptions.RayActorError):
        return KILLED_FOR_MEMORY in str(cause)
    return isinstance(cause, ray.exceptions.OutOfMemoryError)


def _died(error: Exception) -> bool:
    """Return whether the worker or its node is gone, rather than that its code has raised."""
    return isinstance(root_cause(error), ray.exceptions.RayActorError)
