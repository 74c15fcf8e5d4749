"""Ctrl-C and SIGTERM to a job whose workers hear of it, or take no step and do not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

JOB = """
import signal, sys, time
from pathlib import Path

from ray.train import RunConfig, ScalingConfig

from recon_ray.cli import run_job
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.workarounds.interrupts import InterruptibleTrainer
from recon_ray.cluster.stop_watch import StopWatcher, running_stop_actor
from recon_ray.config.sections.common import ClusterSection
from recon_ray.tasks.registry import JobSpec
from recon_ray.train import stop_request

folder = Path(sys.argv[2])
stop_request.ANSWER_SECONDS = 3.0


def work(config):
    (folder / "works").touch()
    if not config["hears"]:
        time.sleep(600)  # evaluates
    watch = StopWatcher(config["actor"], rank=0)
    while watch.take() is not stop_request.StopRequest.STOP:
        time.sleep(0.1)
    time.sleep(6)  # commits


def main(job):
    before = signal.getsignal(signal.SIGINT)
    with ray_session(ClusterSection(address=sys.argv[1])), stop_request.sigterm_as_stop_request():
        try:
            with running_stop_actor() as actor:
                InterruptibleTrainer(
                    work,
                    train_loop_config={"actor": actor, "hears": sys.argv[3] == "hears"},
                    scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
                    run_config=RunConfig(name="run", storage_path=str(folder)),
                ).fit()
        finally:
            if signal.getsignal(signal.SIGINT) is before:
                (folder / "restored").touch()


JobSpec.load_main = lambda spec: main  # in place of the job's own
sys.exit(run_job("pretrain", ["run.name=x", "data.path=x"]))
"""


@pytest.mark.parametrize(
    ("hears", "number", "status", "message"),
    [
        ("not", signal.SIGINT, 130, "error: interrupted; the same command with the same run.name"),
        ("not", signal.SIGTERM, 143, "error: stopped by SIGTERM; the run did not get to a commit"),
        ("hears", signal.SIGTERM, 0, "SIGTERM: the run commits and ends"),
    ],
)
def test_a_job_ends_by_itself_or_with_the_status_of_the_signal(
    ray_head: Head, tmp_path: Path, hears: str, number: int, status: int, message: str
) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    process = subprocess.Popen(
        [sys.executable, str(script), f"127.0.0.1:{ray_head.port}", str(tmp_path), hears],
        env=ray_head.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "works").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status, error
    assert message in error
    assert (tmp_path / "restored").exists()
    for _ in range(100):
        if not ray_head.descendants("ray::RayTrainWorker"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker is left over")
