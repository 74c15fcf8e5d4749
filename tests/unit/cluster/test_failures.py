"""Exceptions of workers, as they are noted and translated."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from recon_ray.cluster.failures import FailureNotes, translate_failures
from recon_ray.errors import OutOfMemoryError
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal

OWN = OutOfMemoryError("memory is exhausted; lower it")
RAISED = UserExceptionWithTraceback(OWN, "text")
KILLED = ray.exceptions.RayActorError(
    "actor-1",
    "The actor is dead because its worker process has died. 1 worker(s) were killed due to the "
    "node running low on memory. ...",
)


def test_one_workers_want_of_memory_is_noted_and_ends_the_run(tmp_path: Path) -> None:
    notes = FailureNotes(str(tmp_path))
    lost = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "text")
    notes.after_exception(None, {0: lost})
    with pytest.raises(OutOfMemoryError, match="lower it"):
        notes.after_exception(None, {0: lost, 1: RAISED})
    reasons = [event["reason"] for event in Journal(RunFolder(str(tmp_path))).events()]
    assert reasons == ["rank 0: text"] * 2


@pytest.mark.parametrize(
    "error", [WorkerGroupError("text", {0: RuntimeError("x"), 1: RAISED}), ControllerError(OWN)]
)
def test_what_ends_a_run_for_memory_is_told_as_it_is(error: TrainingFailedError) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^memory is exhausted; lower it$"):
        raise_in_fit(error)


@pytest.mark.parametrize("killed", [KILLED, ray.exceptions.OutOfMemoryError("node")])
def test_a_worker_that_ray_has_killed_for_memory_is_told(killed: Exception) -> None:
    with pytest.raises(OutOfMemoryError, match=r"Ray has killed worker 1 .* memory; lower x, or"):
        raise_in_fit(WorkerGroupError("text", {0: RuntimeError("x"), 1: killed}))


def test_other_failures_are_raised_as_they_are() -> None:
    died = ray.exceptions.RayActorError("actor-1", "The actor is dead: connection error code 2")
    for error in (WorkerGroupError("text", {0: died}), ControllerError(ValueError("x"))):
        with pytest.raises(type(error)):
            raise_in_fit(error)


def raise_in_fit(error: Exception) -> None:
    with translate_failures("lower x"):
        raise error
