"""Disconnecting from a cluster while threads of Ray Data still run in this process."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import ray
from ray._private import auto_init_hook

logger = logging.getLogger(__name__)

#: Seconds for an executor of Ray Data to end.
EXECUTOR_SECONDS = 20.0
#: Seconds for a thread that reads ahead for an iterator of Ray Data to end.
READER_SECONDS = 2.0


def shut_down() -> None:
    """Disconnect from the cluster once no thread of this process calls it any more.

    Works around: An error leaves the executor running that schedules what an iterator of Ray Data
    reads. Its next call after the disconnection ends this process, before the error is reported, or
    starts another cluster.
    Seen on: Ray 2.60.0.
    Can go: When ``ray.shutdown()`` ends the executors of Ray Data.
    """
    auto_init_hook.enable_auto_connect = False
    executors = [t for t in threading.enumerate() if type(t).__module__.startswith("ray.data.")]
    for executor in executors:
        with contextlib.suppress(Exception):  # the job has an error of its own to report
            executor.shutdown(force=True)  # type: ignore[attr-defined]
    deadline = time.monotonic() + EXECUTOR_SECONDS
    for executor in executors:
        executor.join(max(0.0, deadline - time.monotonic()))
        if executor.is_alive():
            logger.warning("%s does not end", executor.name)
    for reader in threading.enumerate():  # of closed iterators; they end by themselves
        if reader.name == "iter_threaded":
            reader.join(READER_SECONDS)
    ray.shutdown()
