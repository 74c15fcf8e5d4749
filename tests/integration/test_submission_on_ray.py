"""``ray job submit`` of the quickstart to three nodes, stopped and submitted again."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elastic_run import ElasticRun
from local_cluster import LocalCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    found = LocalCluster.start(cpus=2)
    try:
        for _ in range(2):
            found.add_node(cpus=1)
        yield found
    finally:
        found.shut_down()


class Submissions:
    """Jobs of a cluster, handled as a user does."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.address = f"http://127.0.0.1:{cluster.dashboard_port}"
        self.environment = cluster.environment

    def ray(self, *words: str) -> str:
        command, *rest = words
        done = subprocess.run(
            ["ray", "job", command, f"--address={self.address}", *rest],
            env=self.environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, name: str, *options: str) -> str:
        env = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}})
        return self.ray(
            "submit", "--no-wait", f"--submission-id={name}", "--working-dir", str(ROOT),
            "--runtime-env-json", env, "--",
            "python", "jobs/pretrain.py", "configs/quickstart.yaml", *options,
        )  # fmt: skip

    def wait_until(self, is_so: Callable[[], bool], name: str, seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            ended = re.search(r"SUCCEEDED|FAILED|STOPPED", self.ray("status", name), re.IGNORECASE)
            assert not ended, self.ray("logs", name)
            assert time.monotonic() < until, self.ray("logs", name)
            time.sleep(1)

    def wait_for_end(self, name: str, seconds: float = 240) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = re.search(r"SUCCEEDED|FAILED|STOPPED", self.ray("status", name), re.IGNORECASE)
            if found:
                return found.group().upper()
            time.sleep(1)
        raise AssertionError(self.ray("logs", name))


def prometheus_metrics(cluster: LocalCluster) -> str:
    """What Prometheus would scrape, from where Ray tells it."""
    targets = json.loads(
        (cluster.folder / "ray" / "prom_metrics_service_discovery.json").read_text()
    )
    pages = []
    for target in targets[0]["targets"]:
        try:
            pages.append(urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read())
        except OSError:
            continue
    return b"\n".join(pages).decode()


def test_the_quickstart_is_submitted_stopped_and_continued_on_three_nodes(cluster, tmp_path):
    jobs = Submissions(cluster)
    options = (
        "run.name=quick", f"run.storage={tmp_path}", f"data.path={tmp_path}/set",
        "data.create=synthetic",
        "cluster.address=null", "cluster.workers=3", "train.global_batch_size=30",
        "cluster.cpus_per_worker=1", "eval.enabled=false", "train.log_every_steps=1",
        "train.ledger=true", "prepare.train_per_class=12", "prepare.test_per_class=3",
        "data.mode=shared",
    )  # fmt: skip
    run = ElasticRun(cluster, tmp_path, tmp_path / "quick", (), samples=16 * 12, batch=30)
    jobs.submit("first", *options)
    jobs.wait_until(lambda: run.step >= 8, "first")
    for _ in range(40):
        page = prometheus_metrics(cluster)
        if "ray_recon_loss" in page and "ray_recon_world_size" in page:
            break
        time.sleep(1)
    assert re.search(r'ray_recon_world_size\{[^}]*run="quick"[^}]*\} 3\.0', page), page[-3000:]
    for name in ("loss", "samples_per_second", "data_wait_fraction", "restarts", "step"):
        assert re.search(rf'ray_recon_{name}\{{[^}}]*run="quick"', page), name
    jobs.ray("stop", "first")
    jobs.wait_for_end("first")
    log = jobs.ray("logs", "first")
    assert "stopped by SIGTERM to the driver after a commit at step" in log
    assert run.events[-1]["event"] == "stopped"
    stopped = run.events[-1]["step"]
    jobs.submit("second", *options, f"train.steps={stopped + 10}")
    assert jobs.wait_for_end("second") == "SUCCEEDED", jobs.ray("logs", "second")
    assert run.starts[-1]["step"] == stopped + 1  # nothing was lost, nothing is done again
    assert run.starts[-1]["workers"] == 3
    assert run.starts[-1]["reason"] == "it was stopped, by SIGTERM to the driver"
    assert run.step == stopped + 10
    run.assert_contiguous()
    run.assert_every_sample_once()
