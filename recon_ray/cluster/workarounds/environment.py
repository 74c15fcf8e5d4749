"""Environment variables that change what Ray does; a value that the user has set stays."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: For every job and its workers.
JOB = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are collected at this pace
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "900",  # by default a rank waits for the others for ever
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # notices may come only seconds ahead
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: Seconds after which Ray Train gives up starting workers, from ``cluster.start_timeout_seconds``.
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
#: For a cluster that the job starts itself.
LOCAL_CLUSTER = {
    "MALLOC_ARENA_MAX": "2",  # of glibc: saves 50 MB a worker
    "RAY_DATA_LOG_LEVEL": "WARNING",  # else every pass of a stream logs two lines
}
#: For the trials of a sweep.
TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials have records of their own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver handles Ctrl-C
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints tables of its own
}


def set_environment(variables: Mapping[str, str]) -> None:
    """Set those of the variables that are not set, for this process and those that it starts."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
