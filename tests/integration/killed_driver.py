"""Kill the driver of a job in the middle of its trials."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def finished(trials: Path) -> dict[Path, int]:
    """Results of the trials, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in trials.glob("*/result.json")}


def kill_in_mid_run(command: Sequence[str], trials: Path, count: int) -> dict[Path, int]:
    """Start a job, kill it when some trials are done, and give what is finished then."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(finished(trials)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # for the trials to notice
    return finished(trials)


def run_again(command: Sequence[str]) -> str:
    """Run the job to its end and give what it logged."""
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr
