"""Leaving a cluster while Ray Data still works in threads of this process."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import ray
from ray._private import auto_init_hook

logger = logging.getLogger(__name__)

#: How long a loop of Ray Data may take to notice that it is over.
ENDING_SECONDS = 20.0
#: How long a thread may take that reads ahead for an iterator of Ray Data.
READING_SECONDS = 2.0


def leave() -> None:
    """Disconnect from the cluster, when nothing calls it any more.

    An error leaves the loop running that schedules what an iterator of Ray Data reads. Its next
    call after the disconnection would end this process, before it has said why the job failed, or
    start a cluster of its own.
    """
    auto_init_hook.enable_auto_connect = False
    loops = [one for one in threading.enumerate() if type(one).__module__.startswith("ray.data.")]
    for loop in loops:
        with contextlib.suppress(Exception):  # what it meets is no news any more
            loop.shutdown(force=True)  # type: ignore[attr-defined]
    until = time.monotonic() + ENDING_SECONDS
    for loop in loops:
        loop.join(max(0.0, until - time.monotonic()))
        if loop.is_alive():
            logger.warning("%s does not end", loop.name)
    for reader in threading.enumerate():  # of iterators that were closed; they end by themselves
        if reader.name == "iter_threaded":
            reader.join(READING_SECONDS)
    ray.shutdown()
