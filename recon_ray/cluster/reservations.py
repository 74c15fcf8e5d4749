"""What Ray keeps reserved for a run whose driver was killed, set free when the run is submitted.

Ray Train asks an actor of the cluster for the resources of an elastic run. Where the driver ends
without a word, the actor keeps them for three minutes more, and the next submission would wait.
"""

from __future__ import annotations

import logging

import ray

from recon_ray.train.journal import Journal
from recon_ray.train.runtime import RunFolder

logger = logging.getLogger(__name__)

#: Name and namespace of Ray's actor; another Ray may have none, and then nothing is done.
COORDINATOR = "AutoscalingCoordinator"
SUBMITTED = "submitted"


def note_submission(folder: RunFolder, run_id: str) -> None:
    """Note under which name Ray Train reserves what this submission needs."""
    Journal(folder).add(SUBMITTED, run_id=run_id)


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
