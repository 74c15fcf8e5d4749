"""Stale reservations of Ray Train.

Ray Train asks an actor of the cluster, the coordinator, for the resources of an elastic run.
"""

from __future__ import annotations

import logging
import threading
import time

import ray

logger = logging.getLogger(__name__)

#: Name and namespace of Ray's actor; a cluster without elastic runs has none.
COORDINATOR = "AutoscalingCoordinator"
#: How often, and how long after a failure, Ray's view of the nodes is refreshed; in seconds.
REFRESH_INTERVAL, REFRESH_DURATION = 1.0, 30.0
_UNAVAILABLE = (ValueError, TypeError, AttributeError, ray.exceptions.RayError, TimeoutError)


def release_reservation(run_id: str) -> None:
    """Release what an earlier submission of a run has reserved, which does not run any more.

    Works around: The coordinator keeps the reservation of a killed driver for three minutes, during
    which the next submission of the run waits.
    Seen on: Ray 2.60.0.
    Can go: When the coordinator notices that a driver has died.

    Args:
        run_id: Ray Train's id of the earlier submission.
    """
    try:
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"), timeout=10)
    except _UNAVAILABLE as error:
        logger.debug("no reservation was released: %s", error)


def refresh_nodes_after_failure() -> threading.Thread:
    """Refresh Ray's view of the nodes for a while, in a thread of this process.

    Works around: The coordinator counts on a lost node for up to 20 seconds, and so do the workers
    that are started next. Ray itself notices the loss after a moment, hence the repetition.
    Seen on: Ray 2.60.0; before 2.60 the coordinator cannot be asked, and nothing is done.
    Can go: When the coordinator looks for lost nodes before workers are started again.
    """

    def refresh() -> None:
        deadline = time.monotonic() + REFRESH_DURATION
        while time.monotonic() < deadline and ray.is_initialized():  # else a call would start one
            try:
                coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
                answer = coordinator.get_reserved_resources.remote(COORDINATOR, recompute=True)
                ray.get(answer, timeout=10)
            except _UNAVAILABLE as error:
                logger.debug("the nodes were not refreshed: %s", error)
                return
            time.sleep(REFRESH_INTERVAL)

    thread = threading.Thread(target=refresh, daemon=True, name="refresh-nodes")
    thread.start()
    return thread
