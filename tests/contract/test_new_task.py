"""A new task: one folder and one line of the registry make it run, swept and listed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recon_ray.cli import run_job
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.tasks.registry import JOBS, JobSpec

TOY = JobSpec("toy.config:ToyConfig", "toy.job:toy", metric="size_error")  # the line

FOLDER = {
    "config.py": '''
from recon_ray.config.sections.common import Count
from recon_ray.config.sections.training import TrainingConfig


class ToyConfig(TrainingConfig):
    """jobs/toy.py: regression of the size of a cloud."""

    width: Count = 8
''',
    "task.py": """
from dataclasses import dataclass

import torch
from torch import nn

from recon_ray.tasks.feature_extraction import PointChoice, extract_features
from recon_ray.train.optim import parameter_groups

from toy.config import ToyConfig


class ToyModule(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, width), nn.GELU())
        self.size = nn.Linear(width, 1)

    def error(self, points):  # (B, N, 3) -> (B,), in units of the cloud
        size = points.norm(dim=-1).mean(dim=1)
        return self.size(self.points(points).amax(dim=1)).squeeze(-1) - size

    def forward(self, batch, source):
        return {"loss": self.error(batch["points"]).square().mean()}


@dataclass
class ToyTask:
    config: ToyConfig
    name = "toy"

    def architecture(self):
        return {"width": self.config.width}

    def build(self):
        return ToyModule(**self.architecture())

    def stored_model(self, module):
        return module

    def parameter_groups(self, module):
        optim = self.config.optim
        return parameter_groups(module, lr=optim.lr, weight_decay=optim.weight_decay)

    def on_device(self, device):
        pass

    def prepare_on_device(self, batch, source):
        return {"points": batch["points"]}

    def evaluate(self, module, runtime, *, when):
        def encode(points):
            return {"error": module.error(points).abs()}

        choice = PointChoice(self.config.data.num_points, normalize="none")
        found = extract_features(encode, runtime, "test", choice, batch_size=64)
        name = "size_error" if when == "after" else "size_error_before"
        return {name: float(found["error"].mean())}

    def validate(self, module, runtime, *, epoch):
        return {}

    def records(self):
        return {}
""",
    "job.py": """
from functools import partial
from pathlib import Path

from recon_ray.cluster.training_job import TrainingJob
from recon_ray.data.loading.batches import BatchOptions
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.driver import Training, run_training, training_counts
from recon_ray.train.settings import FitSettings

from toy.task import ToyTask


def toy(job):
    return run_training(job, Training(open_set, plan, lambda config: "size", finish))


def open_set(config):
    return find_set("data.path", Path(config.data.path))


def plan(run, config, prepared):
    options = BatchOptions(seed=config.run.seed)
    make_task, settings = partial(ToyTask, config), FitSettings(config)
    return TrainingJob(make_task, settings, options, prepared, run.folder, ("test",))


def finish(run, training, metrics):
    counts = training_counts(training, metrics)
    return lambda: run.finish(metrics, table="", selection="last step", counts=counts)
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the package ``toy``, and the line of the registry."""
    (tmp_path / "toy").mkdir()
    for name, text in {"__init__.py": "", **FOLDER}.items():
        (tmp_path / "toy" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(JOBS, "toy", TOY)
    return tmp_path


def _run(job: str, folder: Path, *arguments: str) -> dict[str, object]:
    given = [f"run.storage={folder}", "run.name=new", "cluster.workers=0", *arguments]
    assert run_job(job, given) == 0
    return json.loads((folder / "new" / "result.json").read_text())


def _options(tiny_prepared: PreparedSet, prefix: str = "") -> list[str]:
    options = (
        f"data.path={tiny_prepared.path}", "data.num_points=64", "train.global_batch_size=8",
        "train.epochs=20", "optim.warmup_epochs=1", "optim.lr=0.03", "runtime.threads=1",
    )  # fmt: skip
    return [prefix + option for option in options]


def test_it_runs(folder: Path, tiny_prepared: PreparedSet) -> None:
    result = _run("toy", folder, "width=12", *_options(tiny_prepared))
    assert result["job"] == "toy"
    assert result["counts"]["steps"] == 60
    assert result["metrics"]["size_error"] < 0.5 * result["metrics"]["size_error_before"]
    assert (folder / "new" / "checkpoints" / "step-00000060" / "model.pt").is_file()


def test_it_is_swept(folder: Path, tiny_prepared: PreparedSet) -> None:
    given = ["job=toy", "sweep.seeds=2", "sweep.mode=min", *_options(tiny_prepared, "config.")]
    result = _run("sweep", folder, *given)
    assert result["counts"]["done"] == 2
    assert result["metric"] == "size_error"
    values = [trial["metrics"]["size_error"] for trial in result["trials"]]
    assert len(set(values)) == 2
    assert result["metrics"]["size_error"] == pytest.approx(sum(values) / 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "  toy              regression of the size of a cloud.\n"),
        (["toy", "--help"], "jobs/toy.py: regression of the size of a cloud."),
        (["sweep", "--help", "job"], "zeroshot, partseg, toy."),
    ],
)
def test_help_lists_it(folder: Path, arguments: list[str], expected: str) -> None:
    program = (
        "from recon_ray.cli import main; from recon_ray.tasks.registry import JOBS, JobSpec; "
        f"JOBS['toy'] = {TOY!r}; main({arguments!r})"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert expected in found.stdout
