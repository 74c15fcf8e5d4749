"""What driver and workers tell each other: that the run should commit or end, and what ended it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recon_ray.cluster.stop_actor import StopActor
from recon_ray.errors import ReconError, as_record, from_record
from recon_ray.train.metrics import is_distributed
from recon_ray.train.stop_request import StopRequest, stop_heard, stop_requested

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@contextmanager
def running_stop_actor() -> Iterator[Any]:
    """Return the handle of an actor that tells the workers when this process is asked to end."""
    here = ray.get_runtime_context().get_node_id()
    # On the driver's own node: it would not survive without that one anyway.
    affinity = NodeAffinitySchedulingStrategy(here, soft=False)
    actor = ray.remote(StopActor).options(num_cpus=0, scheduling_strategy=affinity).remote()
    ended = threading.Event()

    def forward() -> None:
        while not ended.wait(POLL_SECONDS):
            if stop_requested().is_set():
                with suppress(ray.exceptions.RayError):
                    ray.get(actor.ask.remote())
                    heard = actor.heard.remote()
                    while not ended.is_set():
                        if ray.wait([heard], timeout=POLL_SECONDS)[0]:
                            ray.get(heard)
                            stop_heard().set()
                            return
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
    """Run a worker's part so that an error of ours ends the run, on every worker and at once.

    It would come again, so that a restart is of no use. An error that all workers meet is
    returned. One that a single worker meets is raised, as the others wait for it in a collective;
    :class:`~recon_ray.cluster.failures.FailureNotes` then ends the run.

    Args:
        actor: Handle that :func:`stop_actor` gave.
        run: The worker's part.

    Returns:
        What ``run`` gives, or :func:`~recon_ray.errors.as_record` of the error.
    """
    try:
        return run()
    except ReconError as error:
        context = ray.train.get_context()
        noted = actor.fail.remote(context.get_world_rank(), context.get_world_size())
        if ray.get(noted):
            return as_record(error)
        raise


def outcome_of(result: ray.train.Result) -> dict[str, Any]:
    """Return what rank 0 of the workers of :func:`end_together` has returned.

    Raises:
        ReconError: What all of them have met.
    """
    outcome: Mapping[str, Any] = result.return_value
    if "error" in outcome:
        raise from_record(outcome)
    return dict(outcome)


class StopWatcher:
    """Watches, on rank 0, for the driver's wish to end and for nodes that will leave.

    Args:
        actor: Handle that :func:`stop_actor` gave.
        rank: This worker.
    """

    def __init__(self, actor: Any, *, rank: int) -> None:  # noqa: ANN401 - an actor's handle
        self.reason = ""
        self._nodes = nodes_of_workers()
        self._leaving: set[str] = set()
        self._notice = StopRequest.NONE
        self._actor = actor
        self._lock = threading.Lock()
        if rank == 0:
            threading.Thread(target=self._watch, args=(actor,), daemon=True, name="notices").start()

    def take(self) -> StopRequest:
        """Return what is asked for; a wish to commit is given once, that to end for good."""
        with self._lock:
            notice = self._notice
            if notice is StopRequest.COMMIT:
                self._notice = StopRequest.NONE
            elif notice is StopRequest.STOP:
                self._actor.hear.remote()
            return notice

    def _watch(self, actor: Any) -> None:  # noqa: ANN401 - an actor's handle
        try:
            asked = actor.asked.remote()
            while True:
                done, _ = ray.wait([asked], timeout=POLL_SECONDS)
                if done:
                    ray.get(asked)
                    self._give(StopRequest.STOP, "by SIGTERM to the driver")
                    return
                leaving = draining_nodes() & self._nodes
                if leaving - self._leaving:
                    self._leaving |= leaving
                    self._give(StopRequest.COMMIT, f"{len(leaving)} of its nodes will leave")
        except ray.exceptions.RayError:
            logger.debug("no notices any more", exc_info=True)  # the driver is gone

    def _give(self, notice: StopRequest, reason: str) -> None:
        with self._lock:
            self._notice, self.reason = max(self._notice, notice), reason
        if notice is StopRequest.COMMIT:
            logger.warning("%s: committing before that", reason)


def nodes_of_workers() -> set[str]:
    """Ids of the nodes on which the workers of this run are; every rank takes part."""
    own = ray.get_runtime_context().get_node_id()
    if not is_distributed():
        return {own}
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, own)
    return set(nodes)


def draining_nodes() -> set[str]:
    """Ids of the nodes whose end was announced; none where this Ray cannot say."""
    ask = getattr(state.state, "get_draining_nodes", None)
    return set() if ask is None else set(ask())
