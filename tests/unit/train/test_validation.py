"""Validation while training: when it happens, which checkpoint is the best, what a resume keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from settings_samples import make_settings
from torch import nn

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import BatchOptions, IndexedTable
from recon_ray.errors import CheckpointError
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.train import loop
from recon_ray.train.feed.indexed import IndexedFeed
from recon_ray.train.loop import fit
from recon_ray.train.runtime import LocalRuntime

#: Steps of an epoch: 24 samples in batches of 8.
STEPS = 3


class Plane(nn.Module):
    """One linear layer that learns a number from the mean point."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch, source):
        return {"loss": (self.layer(batch["points"].mean(dim=1)) - 1.0).square().mean()}


class ScriptedTask:
    """Validates to the next number of a script."""

    name = "scripted"

    def __init__(self, script: Sequence[float], done: int = 0) -> None:
        self.script, self.done = list(script), done

    def build(self):
        return Plane()

    def stored_model(self, module):
        return module

    def architecture(self) -> dict[str, Any]:
        return {}

    def records(self) -> dict[str, Any]:
        return {"classes": ["one"]}

    def parameter_groups(self, module):
        return [{"params": list(module.parameters()), "lr": 1e-2, "base_lr": 1e-2}]

    def on_device(self, device):
        pass

    def prepare_on_device(self, batch, source):
        return batch

    def evaluate(self, module, runtime, *, when):
        return {}

    def validate(self, module, runtime, *, epoch) -> dict[str, float]:
        assert not module.training
        assert not torch.is_grad_enabled()
        self.done += 1
        return {"accuracy": self.script[self.done - 1]}


def run(task: ScriptedTask, prepared: PreparedSet, folder: Path, **settings) -> dict[str, float]:
    table = IndexedTable([prepared.read("train", columns=["points", "label"])])
    given = {"tables": {}, "train_feed": IndexedFeed(table, BatchOptions(), seed=0)}
    cpu = torch.device("cpu")
    runtime = LocalRuntime(RunFolder(str(folder)), **given, device=cpu, keep_checkpoints=1)
    folder.mkdir(exist_ok=True)
    options = {"validate_every_epochs": 1, "select": "accuracy", "epochs": 5} | settings
    return fit(task, runtime, make_settings(global_batch_size=8, log_every_steps=1, **options))


def test_what_a_task_measures_is_waited_for_without_timeout(tiny_prepared, tmp_path, monkeypatch):
    said: list[str] = []

    @contextmanager
    def waiting():
        said.append("wait")
        yield
        said.append("go on")

    class Telling(ScriptedTask):
        def evaluate(self, module, runtime, *, when):
            said.append(when)
            return {}

        def validate(self, module, runtime, *, epoch):
            said.append("validate")
            return super().validate(module, runtime, epoch=epoch)

    monkeypatch.setattr(loop, "rank_zero_barrier", waiting)
    run(Telling([0.5]), tiny_prepared, tmp_path / "run", epochs=1)
    assert " ".join(said) == "wait before go on wait validate go on wait after go on"


def store(folder: Path) -> CheckpointStore:
    return CheckpointStore(str(folder / "checkpoints"), keep=1)


def validations(folder: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(r["epoch"], r["val/accuracy"]) for r in records if "val/accuracy" in r]


def test_the_first_of_equal_bests_is_marked_and_outlives_newer_checkpoints(tiny_prepared, tmp_path):
    metrics = run(ScriptedTask([0.1, 0.7, 0.7, 0.3, 0.2]), tiny_prepared, tmp_path / "run")
    assert validations(tmp_path / "run") == [(0, 0.1), (1, 0.7), (2, 0.7), (3, 0.3), (4, 0.2)]
    assert metrics["accuracy_best"] == 0.7
    assert metrics["accuracy_last"] == 0.2
    assert metrics["best_epoch"] == 1
    best = store(tmp_path / "run").best()
    assert best == {"name": "step-00000006", "metric": "accuracy", "value": 0.7, "epoch": 1}
    assert store(tmp_path / "run").names() == ["step-00000006", "step-00000015"]
    assert store(tmp_path / "run").load_selected().step == 2 * STEPS
    assert store(tmp_path / "run").load_selected().records == {"classes": ["one"]}
    (tmp_path / "run" / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json cannot be read"):
        store(tmp_path / "run").load_selected()


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 7, 14])
def test_an_interrupted_run_keeps_the_best_and_ends_like_a_whole(tiny_prepared, tmp_path, steps):
    script = [0.1, 0.7, 0.5, 0.3, 0.2]
    whole = run(ScriptedTask(script), tiny_prepared, tmp_path / "whole")
    first = ScriptedTask(script)
    run(first, tiny_prepared, tmp_path / "run", steps=steps)
    assert first.done == steps // STEPS
    metrics = run(ScriptedTask(script, first.done), tiny_prepared, tmp_path / "run")
    kept = {"accuracy_best", "accuracy_last", "best_epoch", "steps", "epochs", "loss_last"}
    assert {k: metrics[k] for k in kept} == {k: whole[k] for k in kept}
    assert validations(tmp_path / "run") == validations(tmp_path / "whole")
    ours, theirs = store(tmp_path / "run"), store(tmp_path / "whole")
    assert ours.names() == theirs.names()
    assert torch.equal(
        ours.load_selected().model["layer.weight"], theirs.load_selected().model["layer.weight"]
    )


def test_nothing_without_select_and_no_nan_is_ever_the_best(tiny_prepared, tmp_path):
    metrics = run(ScriptedTask([0.5] * 5), tiny_prepared, tmp_path / "run", select=None)
    assert "accuracy_best" not in metrics
    assert metrics["accuracy_last"] == 0.5
    assert store(tmp_path / "run").best() is None
    assert store(tmp_path / "run").load_selected().step == 5 * STEPS
    script = [float("nan"), 0.2, float("nan"), 0.1, 0.1]
    assert run(ScriptedTask(script), tiny_prepared, tmp_path / "nan")["accuracy_best"] == 0.2


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"every": 1}, [0, 1, 2, 3, 4]),
        ({"every": 2}, [1, 3, 4]),
        ({"every": 10}, [4]),
        ({"every": None}, []),
        ({"every": 1, "protocol": "reference"}, [0, 1, 2, 3, 4, 5]),
        ({"every": 2, "protocol": "reference"}, [0, 2, 4, 5]),
        ({"every": 1, "protocol": "reference", "start": 1}, [1, 2, 3, 4, 5]),
        ({"every": 1, "protocol": "reference", "extra_epoch": False}, [0, 1, 2, 3, 4]),
    ],
)
def test_the_epochs_that_are_validated(settings, epochs):
    options = make_settings(
        epochs=5,
        global_batch_size=8,
        validate_every_epochs=settings.get("every"),
        validate_from_epoch=settings.get("start", 0),
        protocol=settings.get("protocol", "sound"),
        extra_epoch=settings.get("extra_epoch", True),
    )
    assert [e for e in range(options.total_epochs) if options.validates(e)] == epochs


def test_double_step_moves_twice_with_one_gradient(tiny_prepared, tmp_path):
    """AdamW's first two steps with equal gradients move by the rate each, whatever the clipping."""
    start = {}

    class Watching(ScriptedTask):
        def build(self):
            module = Plane()
            start["weight"] = module.layer.weight.detach().clone()
            return module

        def parameter_groups(self, module):
            group = {"params": list(module.parameters()), "lr": 1e-2, "base_lr": 1e-2}
            return [{**group, "weight_decay": 0.0}]

    moved = {}
    for double in (False, True):
        folder = tmp_path / str(double)
        settings = {"validate_every_epochs": None, "steps": 1, "warmup_epochs": 0}
        run(Watching([]), tiny_prepared, folder, double_step=double, **settings)
        weight = store(folder).load_latest().model["layer.weight"]
        moved[double] = (weight - start["weight"]).abs().max().item()
    assert moved[False] == pytest.approx(1e-2, rel=1e-3)
    assert moved[True] == pytest.approx(2e-2, rel=1e-3)
