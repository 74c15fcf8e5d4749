"""Names and texts of Ray that no documentation promises, without importing Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping

from recon_ray.runs.folder import RunFolder

#: RPC that a head answers without side effects; ``ray.init`` itself retries a refusal for minutes.
#: Seen on Ray 2.60.0; can go when ``ray.init`` reports a wrong token at once.
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
#: Text of the error of an actor that Ray has killed to protect its node. Seen on Ray 2.60.0; can go
#: when actors too end with ``ray.exceptions.OutOfMemoryError``.
KILLED_FOR_MEMORY = "low on memory"
#: Ray Train's own list of checkpoints, in its folder.
SNAPSHOT = "checkpoint_manager_snapshot.json"


def remove_snapshot(folder: RunFolder) -> None:
    """Remove Ray Train's own list of checkpoints; the store finds and verifies them by itself.

    Works around: A truncated list, or one of another Ray, ends every later start of the run.
    Seen on: Ray 2.60.0.
    Can go: When Ray Train ignores a list that it cannot read.
    """
    folder.remove(f"checkpoints/{SNAPSHOT}")


def is_head(resources: Mapping[str, float]) -> bool:
    """Return whether a node of these resources, from ``ray.nodes()``, is the head.

    Works around: No public field marks the head.
    Seen on: Ray 2.60.0.
    Can go: When ``ray.nodes()`` has one.
    """
    return "node:__internal_head__" in resources


def is_submitted() -> bool:
    """Return whether this process is the driver of ``ray job submit``.

    Works around: No public function returns it before ``ray.init``.
    Seen on: Ray 2.60.0.
    Can go: When there is one.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
