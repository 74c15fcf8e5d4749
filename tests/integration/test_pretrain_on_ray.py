"""The pre-training job on a real Ray head: equality, ingest modes, failures, submission."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from local_cluster import wait_until

from recon_ray.cli import run_job
from recon_ray.config.help import dump_yaml
from recon_ray.runs.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]

#: Steps of the whole tiny run: 24 samples in batches of 8 for 4 epochs.
ALL_STEPS = 12
#: A run that is long enough to be disturbed, with a commit every few steps.
LONGER = ("train.epochs=40", "train.commit_every_seconds=0.2", "eval.enabled=false")


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r["train/loss"] for r in map(json.loads, lines) if "train/loss" in r}


def steps_so_far(folder: Path) -> int:
    """Whole lines of metrics only: the last may still be being written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=-1)


@pytest.fixture(scope="module")
def undisturbed(tiny_config_in, tmp_path_factory) -> dict[int, float]:
    """Losses of the run of ``LONGER`` in one process: the number of workers has no effect."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = folder / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config_in(folder)))
    given = [str(config), "run.name=whole", *LONGER]
    assert run_job("pretrain", given) == 0
    return losses(folder / "whole")


def test_two_ray_workers_compute_what_one_process_computes(runner):
    runner.here("alone")
    runner.finish("workers")
    alone, workers = losses(runner.folder("alone")), losses(runner.folder("workers"))
    assert list(workers) == list(alone) == list(range(1, ALL_STEPS + 1))
    assert list(workers.values()) == pytest.approx(list(alone.values()), rel=1e-4)
    result = json.loads((runner.folder("workers") / "result.json").read_text())
    assert result["status"] == "done"
    assert result["counts"]["workers"] == 2
    assert {"loss_first", "loss_last", "probe_after", "zeroshot_accuracy"} <= result[
        "metrics"
    ].keys()
    assert (runner.folder("workers") / "figures" / "reconstructions.png").stat().st_size > 10_000
    assert_no_secrets(runner.folder("workers"), runner.environment)


def assert_no_secrets(folder: Path, environment: dict[str, str]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "result.json"} <= {path.name for path in files}
    for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        secret = environment[name].encode()
        assert [path for path in files if secret in path.read_bytes()] == []


@pytest.mark.parametrize("mode", ["stream", pytest.param("cached", marks=pytest.mark.long)])
def test_a_stream_that_stops_in_mid_epoch_goes_on_bit_for_bit(runner, mode):
    options = (f"data.mode={mode}", "data.shuffle_buffer=8", "eval.enabled=false")
    runner.here("whole", *options)
    runner.finish("part", *options, "cluster.workers=1", "train.steps=5")
    runner.finish("part", *options, "cluster.workers=1")
    part, whole = (
        CheckpointStore(str(runner.folder(name) / "checkpoints")).load_latest()
        for name in ("part", "whole")
    )
    assert part.step == whole.step == ALL_STEPS
    assert all(torch.equal(part.model[name], value) for name, value in whole.model.items())
    assert losses(runner.folder("part")) == losses(runner.folder("whole"))


@pytest.mark.long
def test_a_killed_driver_continues_where_it_was_committed(runner, undisturbed):
    process = runner.start("killed", *LONGER)
    wait_until(lambda: steps_so_far(runner.folder("killed")) >= 10, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    committed = CheckpointStore(str(runner.folder("killed") / "checkpoints")).load_latest()
    assert 0 < committed.step < 120
    assert "continuing from" in runner.finish("killed", *LONGER)
    assert losses(runner.folder("killed")) == pytest.approx(undisturbed, rel=1e-3)


def test_a_killed_worker_is_replaced_and_the_run_ends_undisturbed(runner, ray_head, undisturbed):
    process = runner.start("hurt", *LONGER)
    wait_until(lambda: steps_so_far(runner.folder("hurt")) >= 10, process)
    os.kill(ray_head.descendants("ray::RayTrainWorker")[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "continuing from" in err
    assert losses(runner.folder("hurt")) == pytest.approx(undisturbed, rel=1e-3)


def test_an_error_of_a_worker_reaches_the_terminal_as_one_sentence(runner):
    err = runner.finish("bad", "optim.lr=1e30", "eval.enabled=false", status=1)
    complaints = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(complaints) == 1
    assert "the loss is not finite" in complaints[0]


@pytest.mark.long
def test_an_error_that_one_worker_meets_ends_the_others_too(runner):
    """Only rank 0 looks for checkpoints; rank 1 waits for what it finds."""
    options = ("train.commit_every_seconds=600", "eval.enabled=false")
    runner.here("spoilt", *options, "train.steps=3")
    store = CheckpointStore(str(runner.folder("spoilt") / "checkpoints"))
    for name in store.names():
        (Path(store.path(name)) / "model.pt").write_bytes(b"not what it was")
    began = time.monotonic()
    err = runner.finish("spoilt", *options, status=1)
    assert time.monotonic() - began < 150  # not the ten minutes of a collective
    complaints = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(complaints) == 1
    assert "damaged" in complaints[0]


def test_more_workers_than_the_cluster_has_are_refused(runner):
    err = runner.finish("many", "cluster.workers=8", status=2)
    assert "cluster.workers=8: they reserve 8 CPUs (1 each), the cluster has 4" in err


def test_a_submitted_job_does_the_same(runner, ray_head):
    command = [
        "ray", "job", "submit", f"--address=http://127.0.0.1:{ray_head.dashboard_port}",
        "--working-dir", str(ROOT), "--", "python", "jobs/pretrain.py", str(runner.config),
        "run.name=submitted", "cluster.address=null",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=ray_head.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert list(losses(runner.folder("submitted"))) == list(range(1, ALL_STEPS + 1))
