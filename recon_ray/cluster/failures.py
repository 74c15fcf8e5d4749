"""What the workers of a run failed with, noted where the next ones find it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import TrainingFailedError, UserCallback

from recon_ray.cluster.workarounds.reservations import renew_after_failure
from recon_ray.errors import OutOfMemoryError, ReconError
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal, shortened

#: What Ray says of a worker that it has killed to save its node.
KILLED_FOR_MEMORY = ("memory usage threshold", "low on memory")


class FailureNotes(UserCallback):
    """Notes in the run's journal what its workers failed with; Ray Train calls it.

    Args:
        folder: Folder or URI of the run; None where nothing is noted.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def after_exception(
        self,
        run_context: Any,  # noqa: ANN401 - of no public class
        worker_exceptions: Mapping[int, Exception],
    ) -> None:
        """Note what has failed, a worker that died before those that missed it.

        Raises:
            ReconError: If that was it, which ends the run: it would come again.
        """
        renew_after_failure()  # perhaps a node is lost
        rank, error = min(worker_exceptions.items(), key=lambda item: (not _died(item[1]), item[0]))
        reason = "it died" if _died(error) else shortened(str(error))
        if self._folder is not None:
            notes = Journal(RunFolder(self._folder))
            notes.add("failed", rank=rank, reason=f"rank {rank}: {reason}")
        for error in worker_exceptions.values():
            for ours in _ours(error):
                raise ours


@contextmanager
def translate_failures(advice: str) -> Iterator[None]:
    """Turn what Ray Train raises into the one sentence that it comes from.

    Args:
        advice: What to change where Ray has killed workers for want of memory.

    Raises:
        ReconError: What a worker has met, or that it was killed for that.
    """
    try:
        yield
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {
            0: getattr(error, "controller_failure", error)
        }
        for rank, failure in failures.items():
            for ours in _ours(failure):
                raise ours from error
            if _was_killed_for_memory(failure):
                raise OutOfMemoryError(
                    f"Ray has killed worker {rank} of the run again and again, as its node ran out "
                    f"of memory; {advice}, or lower cluster.workers"
                ) from error
        raise


def _ours(error: Exception) -> list[ReconError]:
    return [one for one in _causes(error) if isinstance(one, ReconError)]


def _was_killed_for_memory(error: Exception) -> bool:
    return any(
        isinstance(one, ray.exceptions.OutOfMemoryError)
        or (
            isinstance(one, ray.exceptions.RayActorError)
            and any(words in str(one) for words in KILLED_FOR_MEMORY)
        )
        for one in _causes(error)
    )


def _died(error: Exception) -> bool:
    """Return whether a worker or its node is gone, rather than that its code has raised."""
    return any(isinstance(one, ray.exceptions.RayActorError) for one in _causes(error))


def _causes(error: Exception) -> tuple[Any, ...]:
    return (error, error.__cause__, *vars(error).values())
