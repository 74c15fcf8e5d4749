"""Settings that Ray reads from the environment once, when it is imported."""

from __future__ import annotations

import os

from ray import _raylet
from ray._private import ray_constants


def keep_to_loopback() -> None:
    """Bind every server of a cluster that this process starts to the loopback interface.

    Works around: Ray has no option for it on Linux. It has an environment variable, which its other
    processes read when they start, but this one has read it already.
    Seen on: Ray 2.60.0.
    Can go: When ``ray.init`` takes the address to bind to.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray_constants.ENABLE_RAY_CLUSTER = False


def reread_auth_mode() -> None:
    """Make Ray read ``RAY_AUTH_MODE`` again, after this process has set it.

    Works around: The variable has an effect only if it is set before Ray is imported.
    Seen on: Ray 2.60.0.
    Can go: When ``ray.init`` takes the mode, or reads the variable.
    """
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
