"""The two-tower ablation from pre-training to fine-tuning, by the shipped configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recon_ray.cli import run_job
from recon_ray.config.loader import load
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.models.twotower import TwoTower, TwoTowerClassifier
from recon_ray.points.transforms import CANDIDATE_POINTS
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.finetune_job import make_task
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
SMALL = (
    "model.num_groups=8", "model.group_size=8", "data.num_points=64", "cluster.workers=0",
    "runtime.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_prepared: PreparedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training of two nano towers."""
    storage = tmp_path_factory.mktemp("towers")
    options = (
        str(CONFIGS / "pretrain" / "twotower.yaml"), *SMALL, f"run.storage={storage}",
        "run.name=towers", f"data.path={tiny_prepared.path}", "model.preset=nano",
        "model.depth=2", "teacher.image.name=descriptor:32", "teacher.text.name=descriptor:24",
        "teacher.image.augment=none", "train.global_batch_size=12", "train.epochs=4",
        "optim.warmup_epochs=1", "optim.lr=1e-3", "train.log_every_steps=1",
    )  # fmt: skip
    assert run_job("pretrain", options) == 0
    return storage / "towers"


def test_the_losses_of_both_towers_are_minimized(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "train/loss" in record]
    names = ("loss_reconstruction", "loss_image_distill", "loss_text_distill")
    for record in records:
        total = sum(record[f"train/{name}"] for name in names)
        assert record["train/loss"] == pytest.approx(total, rel=1e-4)
    assert all(records[-1][f"train/{name}"] < records[0][f"train/{name}"] for name in names)
    result = json.loads((run / "result.json").read_text())
    assert result["counts"]["steps"] == 5 * 3  # train and test splits, one epoch more: published
    assert not any("probe" in name or "zeroshot" in name for name in result["metrics"])
    assert (run / "figures" / "reconstructions.png").stat().st_size > 5_000
    model, _ = build(find_weights(run))
    assert isinstance(model, TwoTower)
    assert (model.image_proj.out_features, model.text_proj.out_features) == (32, 24)


def test_the_run_starts_both_towers_of_the_classifier(run, tiny_prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(CANDIDATE_POINTS, 64, 75)  # the published numbers need larger clouds
    options = (
        str(CONFIGS / "finetune" / "scan_hardest_twotower.yaml"), *SMALL, f"init_from={run}",
        f"run.storage={tmp_path}", "run.name=tuned", f"data.path={tiny_prepared.path}",
        "train.global_batch_size=8", "train.epochs=1", "optim.warmup_epochs=0",
    )  # fmt: skip
    config = load(FinetuneConfig, options).config
    task = make_task(config, tiny_prepared)[0]
    model, before = task.stored_model(task.build()), find_weights(run)
    assert isinstance(model, TwoTowerClassifier)
    assert model.stream == "ALL"
    own = model.state_dict()
    towers = [name for name in before.state if name.startswith(("encoder.", "contrast_encoder."))]
    assert len(towers) > 60
    assert all(torch.equal(own[name], before.state[name]) for name in towers)
    assert run_job("finetune", options) == 0
    assert find_weights(tmp_path / "tuned").kind == "twotower_classifier"
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert sum(map(sum, result["confusion"])) == 12


def test_the_run_is_drawn(run, tiny_prepared, tmp_path):
    options = (
        f"init_from={run}", f"data.path={tiny_prepared.path}", "shapes=1", "data.num_points=64",
        f"run.storage={tmp_path}", "run.name=drawn",
    )  # fmt: skip
    assert run_job("visualize", options) == 0
    result = json.loads((tmp_path / "drawn" / "result.json").read_text())
    assert result["kinds"] == ["reconstruction", "attention"]
    assert any(name.endswith("attention-image.ply") for name in result["files"])
    assert not any(name.endswith("attention-class.ply") for name in result["files"])
