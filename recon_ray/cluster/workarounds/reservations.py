"""What Ray keeps reserved for a run, brought up to date where Ray would let the run wait.

Ray Train asks an actor of the cluster for the resources of an elastic run. Where the driver ends
without a word, the actor keeps them for three minutes more, and the next submission would wait.
Where a node is lost, the actor counts on it for up to 20 seconds, and so do the next workers.
"""

from __future__ import annotations

import logging
import threading
import time

import ray

from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal

logger = logging.getLogger(__name__)

#: Name and namespace of Ray's actor; another Ray may have none, and then nothing is done.
COORDINATOR = "AutoscalingCoordinator"
SUBMITTED = "submitted"
#: Ray's view of the nodes is renewed so often, for so long, after workers have failed; in seconds.
RENEWED_EVERY, RENEWED_FOR = 1.0, 30.0


def note_submission(folder: RunFolder, attempt: str, run_id: str) -> None:
    """Note a submission, and under which name Ray Train reserves what it needs."""
    Journal(folder).add(SUBMITTED, attempt=attempt, run_id=run_id)


def was_submitted(folder: RunFolder, attempt: str) -> bool:
    """Return whether a submission is noted in a folder."""
    events = Journal(folder).events()
    return any(e["event"] == SUBMITTED and e.get("attempt") == attempt for e in events)


def free_earlier(folder: RunFolder) -> None:
    """Set free what the last submission of the run had reserved; it does not run any more."""
    earlier = [event for event in Journal(folder).events() if event["event"] == SUBMITTED]
    if not earlier:
        return
    try:
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        cancel = coordinator.cancel_request.remote(f"train-{earlier[-1].get('run_id')}")
        ray.get(cancel, timeout=10)
    except (ValueError, AttributeError, ray.exceptions.RayError, TimeoutError) as error:
        logger.debug("nothing to set free: %s", error)


def renew_after_failure() -> threading.Thread:
    """Have Ray look for lost nodes at once and for a while, in a thread of this process.

    It takes Ray a moment to notice that a node is gone, hence the while.
    """

    def renew() -> None:
        until = time.monotonic() + RENEWED_FOR
        while time.monotonic() < until and ray.is_initialized():  # else asking would start one
            try:
                coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
                looked = coordinator.get_reserved_resources.remote(COORDINATOR, recompute=True)
                ray.get(looked, timeout=10)
            except (ValueError, TypeError, AttributeError, ray.exceptions.RayError) as error:
                logger.debug("nothing to renew: %s", error)
                return
            time.sleep(RENEWED_EVERY)

    thread = threading.Thread(target=renew, daemon=True, name="renew-reservations")
    thread.start()
    return thread
