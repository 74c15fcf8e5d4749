"""A job that fails while Ray Data reads for it says so, and starts nothing when it has left."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
import sys, threading, time
import ray.data
from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.common import ClusterSection

def slowly(batch):
    time.sleep(1)
    return batch

try:
    with ray_session(ClusterSection(address=sys.argv[1])):
        rows = ray.data.range(64, override_num_blocks=16).map_batches(slowly, batch_size=4)
        batches = iter(rows.iter_batches(batch_size=4))  # kept: so does the traceback of an error
        next(batches)
        raise RuntimeError("a worker has met an error")
except RuntimeError as error:
    reading = [one.name for one in threading.enumerate() if one.name.startswith("StreamingExec")]
    time.sleep(4)
    print(f"still here: {error}; reading: {reading}; connected: {ray.is_initialized()}")
"""


def test_a_failed_job_leaves_nothing_that_calls_ray_after_it_has_left(ray_head):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"127.0.0.1:{ray_head.port}"],
        env=ray_head.environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "still here: a worker has met an error; reading: []; connected: False" in done.stdout, (
        done.stderr
    )
