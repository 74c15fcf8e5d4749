"""Sweeps on Ray: a killed driver, fractions of a GPU, trials that fail or are stopped."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from killed_driver import finished, kill_in_mid_run, run_again
from ray import cloudpickle
from ray.util import placement_group_table

from recon_ray.cluster.session import ray_session
from recon_ray.config.help import dump_yaml
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.sweeps import trial_progress
from recon_ray.sweeps.config import SweepConfig, SweepSection, TrialSection
from recon_ray.sweeps.job import sweep
from recon_ray.sweeps.ray_tune import run_on_ray
from recon_ray.sweeps.tables import read_rows
from recon_ray.sweeps.trial import run_trials
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial, TrialJob, plan_trials
from recon_ray.sweeps.trial_progress import TrialProgress
from recon_ray.tasks.registry import Job

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray
# The trials' processes cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def finetuning(prepared: PreparedSet) -> dict[str, Any]:
    """A fine-tuning that takes a second."""
    return {
        "data": {"path": str(prepared.path), "num_points": 64},
        "model": {
            "preset": "nano", "embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8,
            "group_size": 8,
        },
        "train": {"epochs": 2, "global_batch_size": 8, "log_every_steps": 1},
        "optim": {"lr": 1e-3, "warmup_epochs": 1},
    }  # fmt: skip


class Tracked:
    """A trial that notes when it ran and tells its epochs; trial 2 fails if it may."""

    epochs, seconds = 3, 0.3

    def __init__(self, folder: str, *, fails: bool) -> None:
        self.folder = folder
        self.fails = fails
        self.at_once = 1

    def __call__(self, trial: Trial, shared: Any, threads: int, report: Any) -> dict[str, float]:
        began, x = time.time(), trial.values["x"]
        self._wait_for_others(trial.name)
        if self.fails and x == 2:
            raise ValueError("no trial like that\nsecond line")
        for epoch in range(self.epochs):
            time.sleep(self.seconds)
            report({"epoch": epoch + 1, "val/accuracy": x / 10})
        record = {
            "status": "done",
            "metrics": {"accuracy": x / 10 + shared["offset"]},
            "when": [began, time.time()],
            "epochs": self.epochs,
            "threads": threads,
        }
        TrialFolders(self.folder).folder(trial.name).write("result.json", json.dumps(record))
        return record["metrics"]

    def _wait_for_others(self, name: str) -> None:
        """Wait until trials have begun: a busy machine starts them one after the other."""
        begun = Path(self.folder, "begun")
        begun.mkdir(parents=True, exist_ok=True)
        (begun / name).touch()
        deadline = time.monotonic() + 120
        while len(list(begun.iterdir())) < self.at_once:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.at_once} trials did not run at once")
            time.sleep(0.05)


def tracked_job(
    folder: Path, options: TrialSection, *, fails: bool = False, **more: Any
) -> TrialJob:
    trial, folders = Tracked(str(folder), fails=fails), TrialFolders(str(folder))
    given = {"section": "sweep", "metric": "accuracy", "shared": {"offset": 0.5}}
    return TrialJob(run=trial, folders=folders, options=options, **given, **more)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterSection]:
    """A local cluster that claims one GPU."""
    ray.init(
        address="local", num_cpus=4, num_gpus=1, object_store_memory=100_000_000,
        include_dashboard=False, log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield ClusterSection(address="auto")
    ray.shutdown()


def run(job: TrialJob, cluster: ClusterSection, trials: list[Trial]) -> TrialProgress:
    progress = TrialProgress(len(trials), job.metric)
    run_on_ray(job, plan_trials(job, cluster, len(trials)), progress, trials=trials)
    return progress


def most_at_once(folders: TrialFolders, trials: list[Trial]) -> int:
    times = [folders.result(trial.name)["when"] for trial in trials]
    return max(sum(begin <= at < end for begin, end in times) for at, _ in times)


def test_a_quarter_of_a_gpu_lets_four_trials_run(cluster: ClusterSection, tmp_path: Path) -> None:
    options = TrialSection(cpus_per_trial=0.25, gpus_per_trial=0.25)
    job = tracked_job(tmp_path, options)
    job.run.at_once = 4
    trials = [Trial(f"t{x}", {"x": x}) for x in range(8)]
    assert plan_trials(job, cluster, 8).at_once == 4
    run(job, cluster, trials)
    assert most_at_once(job.folders, trials) == 4


def test_a_trial_that_raises_leaves_others_alone(cluster: ClusterSection, tmp_path: Path) -> None:
    job = tracked_job(tmp_path, TrialSection(gpus_per_trial=0), fails=True)
    trials = [Trial(f"t{x}", {"x": x}) for x in range(4)]
    progress = run(job, cluster, trials)
    assert [job.folders.status(t.name) for t in trials] == ["done", "done", "failed", "done"]
    assert job.folders.failure("t2") == "ValueError: no trial like that"
    assert "Traceback" in (tmp_path / "trials" / "t2" / "failure.txt").read_text()
    assert progress.failed == ["t2"]
    assert progress.best == (0.8, "t3")
    assert not (tmp_path / ".ray-tune").exists()


def test_trials_that_are_left_have_the_threads_of_the_others(
    cluster: ClusterSection, tmp_path: Path
) -> None:
    """Three of four had one thread each; the last one is alone on four CPUs now."""
    job = tracked_job(tmp_path, TrialSection(gpus_per_trial=0))
    trials = [Trial(f"t{x}", {"x": x}) for x in (1, 2, 3, 4)]
    for trial in trials[:3]:
        folder = job.folders.folder(trial.name)
        folder.write("config.yaml", "runtime: {threads: 1}\n")
        if trial.name != "t2":  # killed in the middle
            folder.write("result.json", json.dumps({"status": "done", "metrics": {}}))
    assert plan_trials(job, cluster, 2).threads == 2
    run_trials(job, cluster, trials, run=SimpleNamespace(resume="auto", begin=lambda: None))
    assert [job.folders.result(name)["threads"] for name in ("t2", "t4")] == [1, 1]


def one_by_one(scheduler: str) -> SweepSection:
    options = {"reduction_factor": 2, "gpus_per_trial": 0, "max_concurrent": 1}
    return SweepSection(space={"x": {"grid": [1, 2]}}, scheduler=scheduler, **options)


def test_asha_stops_the_trials_that_lag_behind(cluster: ClusterSection, tmp_path: Path) -> None:
    job = tracked_job(tmp_path, one_by_one("asha"), epochs=3)
    trials = [Trial(f"t{x}", {"x": x}) for x in (5, 4, 3, 9)]
    run(job, cluster, trials)
    statuses = {t.name: job.folders.status(t.name) for t in trials}
    assert statuses == {"t5": "done", "t4": "stopped", "t3": "stopped", "t9": "done"}
    assert job.folders.stopped("t4") == {
        "epoch": 1, "val/accuracy": 0.4,
        "reason": "val/accuracy 0.4 is below 0.5, where the best 1/2 of 1 others begins",
    }  # fmt: skip


def test_median_stopping_stops_those_below(cluster: ClusterSection, tmp_path: Path) -> None:
    """Nothing is compared before three trials have reported a number."""
    job = tracked_job(tmp_path, one_by_one("median"), epochs=3)
    trials = [Trial(f"t{x}", {"x": x}) for x in (5, 4, 6, 1, 9)]
    run(job, cluster, trials)
    statuses = {t.name: job.folders.status(t.name) for t in trials}
    expected = {"t5": "done", "t4": "done", "t6": "done", "t1": "stopped", "t9": "done"}
    assert statuses == expected
    stopped = job.folders.stopped("t1") or {}
    assert (stopped["epoch"], stopped["val/accuracy"]) == (1, 0.1)
    assert stopped["reason"].startswith("best val/accuracy 0.1 is below 0.5, the median of 3")
    row = next(row for row in read_rows(job.folders, trials) if row.status == "stopped")
    assert row.note.startswith("stopped after epoch 1: best val/accuracy 0.1 is below 0.5")


def test_a_terminal_shows_a_bar_that_is_drawn_over_itself(
    cluster: ClusterSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver writes to a real pseudo-terminal, of whose text the screen is made again."""
    monkeypatch.setattr(trial_progress, "BAR_SECONDS", 0.0)
    job = tracked_job(tmp_path, TrialSection(gpus_per_trial=0, max_concurrent=1), fails=True)
    trials = [Trial(f"t{x}", {"x": x}) for x in (1, 2, 3)]
    master, slave = pty.openpty()
    text: list[bytes] = []
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    reader = threading.Thread(target=_read_all, args=(master, text))
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        run(job, cluster, trials)
        monkeypatch.undo()
    reader.join()
    os.close(master)
    written = b"".join(text).decode()
    assert "t1 epoch 2 val/accuracy 0.1" in written  # while it ran
    lines = _screen(written)
    assert lines[:3] == [
        "  t1  accuracy 0.6",
        "  t2  failed: ValueError: no trial like that",
        "  t3  accuracy 0.8",
    ]
    (bar,) = lines[3:]
    assert "3/3 trials ended, 0 running, 1 failed, best accuracy 0.8 (t3) [" in bar
    assert len(bar) <= 90


def _read_all(master: int, text: list[bytes]) -> None:
    try:
        while chunk := os.read(master, 4096):
            text.append(chunk)
    except OSError:  # the other end is closed
        return


def _screen(written: str) -> list[str]:
    """What a terminal shows in the end: a carriage return writes over the line."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "sweep.py"), str(config), *arguments]


@pytest.mark.slow
def test_a_killed_sweep_continues_with_the_rest(tiny_prepared: PreparedSet, tmp_path: Path) -> None:
    config = SweepConfig(
        run={"name": "s", "storage": str(tmp_path)},
        config=finetuning(tiny_prepared),
        sweep={"space": {"optim.lr": {"grid": [1e-4, 1e-3]}}, "seeds": 3},
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(dump_yaml(config))
    trials = tmp_path / "s" / "trials"
    done = kill_in_mid_run(command(file), trials, 2)
    assert len(done) < 6
    assert f"6 trials, {len(done)} of them are done" in run_again(command(file))
    after = finished(trials)
    assert {path: after[path] for path in done} == done
    assert len(after) == 6
    table = pq.read_table(tmp_path / "s" / "trials.parquet")
    assert table["status"].to_pylist() == ["done"] * 6
    assert json.loads((tmp_path / "s" / "result.json").read_text())["counts"]["done"] == 6


@pytest.mark.long
def test_stopped_inner_runs_reserve_nothing(tiny_prepared: PreparedSet, tmp_path: Path) -> None:
    """Each trial has two workers; the second one is stopped after its first epoch."""
    ray.shutdown()  # the other tests' cluster, which has no dashboard
    inner = finetuning(tiny_prepared) | {"cluster": {"workers": 2, "cpus_per_worker": 0.5}}
    inner["train"] = {**inner["train"], "epochs": 30}
    config = SweepConfig(
        run={"name": "nested", "storage": str(tmp_path)},
        config=inner,
        sweep={
            "space": {"optim.lr": {"grid": [1e-2, 1e-7]}}, "scheduler": "asha",
            "watch": "train/loss", "watch_mode": "min", "reduction_factor": 2, "max_concurrent": 1,
        },
    )  # fmt: skip
    local = ClusterSection(workers=1, cpus_per_worker=1.1)
    with ray_session(local, dashboard=True, show_workers=False):
        whole = ray.cluster_resources()["CPU"]
        result = sweep(Job("sweep", config, {}, ()))
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) < whole and time.monotonic() < deadline:
            time.sleep(0.5)
        assert ray.available_resources().get("CPU") == whole
        assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert result.failure is None
    folders = TrialFolders(str(tmp_path / "nested"))
    first, second = folders.names()
    assert (folders.status(first), folders.status(second)) == ("done", "stopped")
    assert (folders.stopped(second) or {})["epoch"] < 30
