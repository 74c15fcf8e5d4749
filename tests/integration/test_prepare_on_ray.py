"""The prepare job on a real Ray head: same bytes, kills, bad input, submission."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from local_cluster import PIPED, wait_until

from recon_ray.cli import run_job
from recon_ray.data.format.prepared import PreparedSet

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    "prepare.num_points=64", "prepare.views=2", "prepare.image_size=64",
    "prepare.samples_per_shard=20", "prepare.train_per_class=10", "prepare.test_per_class=5",
)  # fmt: skip
#: Not at the start of a line always: Ray's own lines, of other threads, may end late.
COMPLAINT = re.compile(r"error: .*")
SHARDS = 12  # 160 training and 80 test shapes of 16 categories


class Prepare:
    """Runs jobs/prepare.py, by default on the head."""

    def __init__(self, head, folder: Path) -> None:
        self.head = head
        self.folder = folder
        self.address = f"cluster.address=127.0.0.1:{head.port}"

    def command(self, *arguments: str) -> list[str]:
        job = str(ROOT / "jobs" / "prepare.py")
        return [sys.executable, job, f"run.storage={self.folder / 'runs'}", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*arguments), env=self.head.environment, cwd=self.folder, **PIPED
        )

    def finish(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"exit {process.returncode}\n{err}\n{out}"
        return err


@pytest.fixture
def job(ray_head, tmp_path):
    return Prepare(ray_head, tmp_path)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Checksums of the set that this process makes."""
    folder = tmp_path_factory.mktemp("local")
    own = (f"output={folder / 'local'}", f"run.storage={folder / 'runs'}")
    here = (*own, "prepare.parallel=local", "prepare.processes=1", *OPTIONS)
    assert run_job("prepare", here) == 0
    return checksums(folder / "local")


def checksums(root: Path) -> dict[str, str]:
    """SHA-256 of all that a finished set holds, records and plan included."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def records(root: Path) -> list[Path]:
    return list(root.glob("_records/*/*.json"))


def test_ray_gives_the_bytes_of_one_process(job, local):
    err = job.finish("output=set", job.address, *OPTIONS)
    assert checksums(job.folder / "set") == local
    assert f"prepare: {SHARDS}/{SHARDS} shards" in err
    PreparedSet.open(job.folder / "set").verify()


def test_a_killed_driver_continues_to_the_same_bytes(job, local):
    slow = ("prepare.processes=1", *OPTIONS)
    process = job.start("output=set", job.address, *slow)
    root = job.folder / "set"
    wait_until(lambda: records(root), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (root / "_manifest.json").exists()
    assert 0 < len(records(root)) < SHARDS
    err = job.finish("output=set", job.address, *OPTIONS)
    assert "0 of them already built" not in err
    assert checksums(root) == local


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(job, local, ray_head):
    process = job.start("output=set", job.address, "prepare.processes=1", *OPTIONS)
    working: list[int] = []

    def builds() -> bool:
        # The worker that builds has the name of the task.
        working[:] = ray_head.descendants("ray::MapBatches") if records(job.folder / "set") else []
        return bool(working)

    wait_until(builds, process)
    os.kill(working[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert checksums(job.folder / "set") == local


def test_too_many_bad_samples_end_the_job_with_their_sentence(job):
    folder = job.folder / "in" / "a"
    folder.mkdir(parents=True)
    for index in range(12):
        np.save(folder / f"{index}.npy", np.full((80, 3), np.nan, np.float32))
    err = job.finish(
        "source=custom", "input=in", "output=set", job.address, "prepare.samples_per_shard=2",
        status=1,
    )  # fmt: skip
    complaints = COMPLAINT.findall(err)
    assert len(complaints) == 1, err
    assert "80 of 80 points are not finite" in complaints[0]
    assert not (job.folder / "set" / "_manifest.json").exists()


def test_a_shard_that_cannot_be_written_ends_the_job_with_its_sentence(job):
    (job.folder / "set").mkdir()
    (job.folder / "set" / "geometry").touch()  # a file where the folder should be
    err = job.finish("output=set", job.address, *OPTIONS, status=1)
    complaints = COMPLAINT.findall(err)
    assert len(complaints) == 1, err
    assert "cannot be written" in complaints[0]


def test_a_submitted_job_builds_on_the_cluster(job, local, ray_head):
    command = [
        "ray", "job", "submit", f"--address=http://127.0.0.1:{ray_head.dashboard_port}",
        "--working-dir", str(ROOT), "--", "python", "jobs/prepare.py",
        f"run.storage={job.folder / 'runs'}", "run.name=submitted",
        f"output={job.folder / 'set'}", *OPTIONS,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=ray_head.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert checksums(job.folder / "set") == local
    result = json.loads((job.folder / "runs" / "submitted" / "result.json").read_text())
    assert result["metrics"]["samples"] == 240
