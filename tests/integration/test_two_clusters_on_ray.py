"""A local cluster beside another Ray on the machine: Ray Train's cleaner keeps to its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
import time
import ray
from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.common import ClusterSection

@ray.remote
def watch():
    from ray.train.v2._internal.execution.controller.placement_group_cleaner import (
        PlacementGroupCleaner,
    )
    cleaner = PlacementGroupCleaner("0" * 32, 0.1, 2, 1.0)
    cleaner.start_monitoring()
    time.sleep(3)
    return cleaner._monitor_thread is not None and cleaner._monitor_thread.is_alive()

with ray_session(ClusterSection(workers=1)):
    print("still watching:", ray.get(watch.remote()))
"""


def test_the_cleaner_neither_fails_nor_asks_the_other_cluster(ray_head):
    """It would end by an error that it does not catch, or take the run for a dead one."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**own, "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "still watching: True" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    assert ray_head.process.poll() is None
