"""Log levels of Ray Data."""

from __future__ import annotations

import logging

LEVELS = {
    "ray.data": logging.WARNING,
    "ray.data.dataset": logging.ERROR,
    "ray.data._internal.progress": logging.ERROR,  # that progress bars are off
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,  # no CPU is free now
    "ray.data.exceptions": logging.CRITICAL,  # tracebacks of what it raises, too
}


def quiet_ray_data() -> None:
    """Let Ray Data log in this process only what a user can act on.

    Works around: It logs progress and tracebacks at levels at which others warn of real problems.
    Seen on: Ray 2.60.0.
    Can go: When it logs them at INFO or below.
    """
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
