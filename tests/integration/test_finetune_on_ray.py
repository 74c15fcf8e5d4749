"""Fine-tuning and evaluation on a real Ray head: equality with one process, interruption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recon_ray.cli import run_job
from recon_ray.config.help import dump_yaml
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks.classify.config import FinetuneConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


#: The jobs' configurations and what they run.


class Runner:
    """Runs jobs on classifiers: on two workers of the head, or ``here``, in this process."""

    def __init__(self, folder: Path, config: Path, environment: dict[str, str], port: int) -> None:
        self.runs = folder / "runs"
        self.config = config
        self._environment = environment
        self._where = (f"cluster.address=127.0.0.1:{port}", "cluster.workers=2")

    def finetune(self, name: str, *options: str, here: bool = False) -> dict[str, Any]:
        return self._run("finetune", name, str(self.config), *options, here=here)

    def evaluate(
        self, name: str, weights: str, *options: str, here: bool = False
    ) -> dict[str, Any]:
        data = FinetuneConfig.model_validate_json((self.config.with_suffix(".json")).read_text())
        given = (f"init_from={self.runs / weights}", f"data.path={data.data.path}")
        own = (f"run.storage={self.runs}", "runtime.threads=1")
        return self._run("evaluate", name, *own, *given, *options, here=here)

    def _run(self, job: str, name: str, *options: str, here: bool) -> dict[str, Any]:
        given = [f"run.name={name}", *options]
        if here:
            assert run_job(job, [*given, "cluster.workers=0"]) == 0
        else:
            done = subprocess.run(
                [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *given, *self._where],
                env=self._environment, cwd=self.runs.parent, capture_output=True, text=True,
                timeout=300, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        return json.loads((self.runs / name / "result.json").read_text())

    def losses(self, name: str) -> list[float]:
        lines = (self.runs / name / "metrics.jsonl").read_text().splitlines()
        return [r["train/loss"] for r in map(json.loads, lines) if "train/loss" in r]


@pytest.fixture
def runner(ray_head, tiny_prepared, tmp_path) -> Runner:
    config = FinetuneConfig(
        run={"storage": str(tmp_path / "runs"), "seed": 3},
        data={"path": str(tiny_prepared.path), "num_points": 64},
        model={
            "preset": "nano", "embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8,
            "group_size": 8,
        },
        train={"epochs": 3, "global_batch_size": 8, "log_every_steps": 1},
        optim={"lr": 1e-3, "warmup_epochs": 1},
        runtime={"threads": 1},
    )  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(dump_yaml(config))
    (tmp_path / "tiny.json").write_text(config.model_dump_json())
    return Runner(tmp_path, tmp_path / "tiny.yaml", ray_head.environment, ray_head.port)


def test_two_workers_learn_and_measure_what_one_process_does(runner):
    alone = runner.finetune("alone", here=True)
    workers = runner.finetune("workers")
    # sums over workers round differently, and Adam's first steps scale rounding up
    assert runner.losses("workers") == pytest.approx(runner.losses("alone"), rel=1e-3)
    assert sum(map(sum, workers["confusion"])) == sum(map(sum, alone["confusion"])) == 12
    assert workers["counts"]["workers"] == 2
    options = ("eval.votes=3", "eval.repeats=2")
    here = runner.evaluate("here", "workers", *options, here=True)
    there = runner.evaluate("there", "workers", *options)
    assert there["confusion"] == here["confusion"] == workers["confusion"]
    assert there["votes"] == here["votes"]
    assert there["counts"] == {**here["counts"], "workers": 2}
    assert here["counts"]["encoded_clouds"] == 12 * 3 * 2
    assert not (runner.runs / "there" / ".ray-evaluation").exists()


@pytest.mark.long
def test_an_interrupted_run_ends_like_a_whole_one_and_a_stream_takes_all_steps(runner):
    runner.finetune("whole", here=True)
    runner.finetune("part", "train.steps=4")
    runner.finetune("part")
    assert runner.losses("part") == pytest.approx(runner.losses("whole"), rel=1e-3)
    streamed = runner.finetune("streamed", "data.mode=stream", "data.shuffle_buffer=8")
    assert streamed["counts"]["steps"] == 9
    found = CheckpointStore(str(runner.runs / "streamed" / "checkpoints")).load_latest()
    assert found.records["classes"] == ["chair", "lamp", "mug"]
