"""Stop requests and errors that pass between the driver and the workers of a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recon_ray.cluster.stop_actor import StopActor
from recon_ray.errors import ReconError, as_record, from_record
from recon_ray.train.stop_request import StopRequest, stop_heard, stop_requested

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@contextmanager
def running_stop_actor() -> Iterator[Any]:
    """Yield the handle of an actor that passes this process's stop request to the workers."""
    node = ray.get_runtime_context().get_node_id()
    # On the driver's own node, without which the job would not survive anyway.
    affinity = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(StopActor).options(num_cpus=0, scheduling_strategy=affinity).remote()
    ended = threading.Event()

    def forward() -> None:
        taken = None
        while not ended.wait(POLL_SECONDS):
            if taken is None and stop_requested().is_set():
                taken = actor.request.remote()
            if taken is not None and ray.wait([taken], timeout=0)[0]:
                with suppress(ray.exceptions.RayError):
                    ray.get(taken)
                    stop_heard().set()
                return

    thread = threading.Thread(target=forward, daemon=True, name="stop-request")
    thread.start()
    try:
        yield actor
    finally:
        ended.set()
        thread.join()
        ray.kill(actor)


def end_together(actor: Any, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:  # noqa: ANN401
    """Run a worker's part so that a ``ReconError`` ends the run on every worker at once.

    A restart would meet it again. An error that all workers meet is returned. An error of one
    worker is raised, as the others wait for it in a collective;
    :class:`~recon_ray.cluster.failures.FailureNotes` then ends the run.

    Args:
        actor: Handle from :func:`running_stop_actor`.
        run: The worker's part.

    Returns:
        The result of ``run``, or :func:`~recon_ray.errors.as_record` of the error.
    """
    try:
        return run()
    except ReconError as error:
        context = ray.train.get_context()
        if ray.get(actor.fail.remote(context.get_world_rank(), context.get_world_size())):
            return as_record(error)
        raise


def outcome_of(result: ray.train.Result) -> dict[str, Any]:
    """Return the result of :func:`end_together` on rank 0.

    Raises:
        ReconError: The error that all workers met.
    """
    outcome: Mapping[str, Any] = result.return_value
    if "error" in outcome:
        raise from_record(outcome)
    return dict(outcome)


class StopWatcher:
    """Stop requests of the driver, and nodes that will leave, as the workers see them.

    Args:
        actor: Handle from :func:`running_stop_actor`.
        rank: This worker.
    """

    def __init__(self, actor: Any, *, rank: int) -> None:  # noqa: ANN401 - an actor's handle
        self.reason = ""
        self._actor = actor
        self._requested = actor.requested.remote() if rank == 0 else None
        self._leaving: set[str] = set()

    def take(self) -> StopRequest:
        """Return the request that is due; every rank calls it equally often, rank 0's counts.

        A commit is requested once for each node that will leave, an end until it comes.
        """
        preemption = ray.train.get_preemption_info()  # Ray Train's broadcast to all ranks
        if self._requested is None:
            return StopRequest.NONE
        if ray.wait([self._requested], timeout=0)[0]:
            self.reason = "by SIGTERM to the driver"
            self._actor.take.remote()
            return StopRequest.STOP
        leaving = set() if preemption is None else set(preemption.preempted_node_ids)
        if leaving <= self._leaving:
            return StopRequest.NONE
        self._leaving |= leaving
        self.reason = f"{len(leaving)} of its nodes will leave"
        logger.warning("%s: committing before that", self.reason)
        return StopRequest.COMMIT
