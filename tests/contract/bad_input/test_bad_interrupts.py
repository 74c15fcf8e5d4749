"""Interrupts, and jobs as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from job_runs import ROOT, Jobs, Outcome

from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks.pretrain.task import PretrainModule


def _interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = PretrainModule.forward, []

    def forward(self: PretrainModule, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(PretrainModule, "forward", forward)


def test_an_interrupted_run_can_go_on(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("eval.enabled=false", "train.commit_every_seconds=0.001")
    with monkeypatch.context() as patch:
        _interrupted_at(6, patch)
        outcome = jobs.pretrain(*options)
    outcome.refused(130, r"^error: interrupted; the same command with the same run\.name continues")
    assert not (jobs.runs / "run" / "result.json").exists()
    assert "continuing from" in jobs.pretrain(*options).done()
    records = (jobs.runs / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == list(range(1, 13))


def _process(*command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RECON_DEBUG", None)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a background job of a shell ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _end(process: subprocess.Popen[str]) -> Outcome:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


def _wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > end:
            process.kill()
            pytest.fail("it took longer than four minutes")
        time.sleep(0.05)


def test_ctrl_c_in_mid_training_ends_with_one_line_and_the_run_continues(jobs: Jobs) -> None:
    options = (
        "eval.enabled=false", "train.epochs=2000", "train.log_every_steps=1",
        "train.commit_every_seconds=0.2",
    )  # fmt: skip
    process = _process(ROOT / "jobs" / "pretrain.py", jobs.config, *options)
    store = CheckpointStore(str(jobs.runs / "run" / "checkpoints"))
    _wait_until(store.names, process)
    os.killpg(process.pid, signal.SIGINT)
    _end(process).refused(
        130, r"^error: interrupted; the same command with the same run\.name cont"
    )
    assert not [name for name in jobs.left_behind() if ".tmp-" in name or "result.json" in name]
    step = store.load_latest().step
    log = jobs.pretrain(*options, f"train.steps={step + 2}").done()
    assert f"(step {step})" in log
    assert store.load_latest().step == step + 2


def test_ctrl_c_while_several_processes_prepare_ends_with_one_line(jobs: Jobs) -> None:
    target = jobs.folder / "set"
    process = _process(
        ROOT / "jobs" / "prepare.py", f"output={target}", f"run.storage={jobs.runs}",
        "prepare.processes=2", "prepare.samples_per_shard=25", "prepare.views=2",
    )  # fmt: skip
    _wait_until(lambda: list(target.glob("_records/*/*.json")), process)
    os.killpg(process.pid, signal.SIGINT)
    _end(process).refused(130, r"^error: interrupted; run the same command again$")
    assert not (target / "_manifest.json").exists()
    assert not [name for name in jobs.left_behind() if ".tmp-" in name]


@pytest.mark.parametrize(
    ("job", "arguments", "status", "message"),
    [
        ("pretrain", ("train.eporch=3",), 2, r"train\.eporch \(command line\): unknown key"),
        ("pretrain", ("absent.yaml",), 2, r"absent\.yaml: no such file"),
        ("pretrain", ("data.path=mistyped",), 2, "data.path=mistyped: no such folder"),
        ("prepare", ("source=custom", "input=/absent"), 2, r"input=/absent: no such folder"),
    ],
)
def test_jobs_as_processes(job: str, arguments: tuple[str, ...], status: int, message: str) -> None:
    _end(_process(ROOT / "jobs" / f"{job}.py", *arguments)).refused(status, message)
