"""Part segmentation: the points that are drawn, training, scoring, and the job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from job_samples import SIZES as TWO_BLOCKS
from job_samples import changed, run_config, save_model

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import DataError
from recon_ray.models.partseg import PartSegmenter
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.partseg.iou import PartTable
from recon_ray.tasks.partseg.task import (
    Scoring,
    augment,
    draw_distinct,
    draw_with_replacement,
    normalize_valid,
)
from recon_ray.weights.find import find_weights
from recon_ray.weights.weight_files import save_reference

SIZES = {**TWO_BLOCKS, "depth": 3}
PUBLISHED_METRICS = ("train_acc", "test_acc", "class_avg_iou", "inctance_avg_iou")
NARROW = {"propagation_widths": (32, 24), "head_widths": (24, 16)}


@pytest.fixture
def config(tiny_parts: PreparedSet, tmp_path: Path, ops_backend) -> PartsegConfig:
    """A training from scratch that takes seconds, in this process."""
    return PartsegConfig(
        run={"name": "run", "storage": str(tmp_path / "runs"), "seed": 3},
        runtime={"ops_backend": ops_backend, "threads": 1},
        cluster={"workers": 0},
        data={"path": str(tiny_parts.path), "num_points": 64},
        model={"preset": "nano", **SIZES, **NARROW, "dropout": 0.0, "drop_path": 0.0},
        train={"epochs": 4, "global_batch_size": 3, "log_every_steps": 1, "clip_norm": 10},
        optim={"lr": 2e-3, "warmup_epochs": 1},
    )


def run(config: PartsegConfig) -> dict[str, Any]:
    """Return ``result.json`` of a run."""
    return run_config("partseg", config)[0]


def source(count: int, seed: int = 0) -> SampleGenerator:
    return SampleGenerator(seed, torch.arange(count))


# --- Points ---------------------------------------------------------------------------------------
def test_repeated_points_do_not_move_the_center():
    points = torch.rand(2, 10, 3)
    padded = torch.cat([points[:, :7], points[:, :3]], dim=1)  # 7 own points, gone through again
    normalized = normalize_valid(padded, torch.tensor([7, 7]))
    expected = transforms.normalize(points[:, :7])
    torch.testing.assert_close(normalized[:, :7], expected, rtol=0, atol=1e-6)


def test_own_points_are_drawn_with_replacement_or_once_each():
    valid = torch.tensor([1, 5, 50])
    chosen = draw_with_replacement(valid, 400, source(3))
    assert (chosen >= 0).all()
    assert chosen.amax(dim=1).tolist() == [0, 4, 49]
    counts = torch.bincount(chosen[1], minlength=5)
    assert counts.min() > 50  # 80 expected: about equally often
    valid = torch.tensor([4, 9, 20])
    chosen = draw_distinct(valid, 20, 8, source(3))
    assert sorted(chosen[0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(chosen[1].tolist())) == 8
    assert chosen[1].max() < 9
    assert torch.equal(chosen, draw_distinct(valid, 20, 8, source(3)))


def test_clouds_are_scaled_by_one_number_and_shifted():
    points = torch.rand(64, 5, 3)
    moved = augment(points, source(64))
    edges, before = moved[:, 1:] - moved[:, :1], points[:, 1:] - points[:, :1]
    factors = edges / before
    spread = factors.flatten(1)
    torch.testing.assert_close(spread, spread[:, :1].expand_as(spread), rtol=1e-3, atol=1e-3)
    assert factors.min() + 1e-3 >= 0.8
    assert factors.max() <= 1.25 + 1e-3
    shift = moved[:, 0] - points[:, 0] * factors[:, 0]
    assert shift.abs().max() <= 0.1 + 1e-3


# --- Scoring --------------------------------------------------------------------------------------
class Oracle(PartSegmenter):
    """Says the part by the height of a point, in place of a trained model."""

    def forward_head(self, features, points, category, source=None):
        del features, source
        part = 2 * category[:, None] + (points[..., 1] > self.middle)
        return torch.nn.functional.one_hot(part, self.num_parts).float().log_softmax(dim=-1)


@pytest.mark.parametrize("draw", ["own", "replacement"])
def test_a_model_that_knows_the_parts_scores_one(draw):
    table = PartTable(("box", "stick", "cone"), ((0, 1), (2, 3), ()))
    model = Oracle(num_parts=4, num_categories=3, **SIZES, **NARROW).eval()
    points = torch.rand(3, 40, 3) * 2 - 1
    valid = torch.tensor([40, 30, 25])
    normalized = normalize_valid(points, valid)
    model.middle = 0.0
    parts = 2 * torch.tensor([0, 1, 0])[:, None] + (normalized[..., 1] > 0)
    batch = {
        "sample_id": torch.arange(3),
        "points": points,
        "label": torch.tensor([0, 1, 0]),
        "part_labels": parts.to(torch.uint8),
        "valid_points": valid,
    }
    scoring = Scoring(table, num_points=16, batch_size=3, draw=draw)
    predicted, true, counted, _ = scoring.predict(model, batch, table.allowed())
    assert torch.equal(predicted[counted], true[counted])
    assert counted.sum(dim=1).tolist() == ([16] * 3 if draw == "replacement" else [40, 30, 25])


def test_points_drawn_with_replacement_are_others_in_every_epoch():
    table = PartTable(("box", "stick", "cone"), ((0, 1), (2, 3), ()))
    model = PartSegmenter(num_parts=4, num_categories=3, **SIZES, **NARROW).eval()
    parts = torch.arange(200).remainder(2).expand(2, -1).to(torch.uint8)
    label = torch.zeros(2, dtype=torch.int64)
    batch = {"sample_id": torch.arange(2), "points": torch.rand(2, 200, 3), "label": label}
    batch |= {"part_labels": parts}
    for draw, changes in (("replacement", True), ("own", False)):
        true = [
            Scoring(table, 64, 2, draw, epoch=epoch).predict(model, batch, table.allowed())[:2]
            for epoch in (0, 0, 1)
        ]
        assert torch.equal(true[0][1], true[1][1])
        assert torch.equal(true[0][1], true[2][1]) != changes


# --- The job --------------------------------------------------------------------------------------
def test_training_raises_the_miou_and_marks_absent_categories(config):
    result = run(changed(config, train={"epochs": 30}))
    metrics = result["metrics"]
    assert metrics["instance_miou"] > metrics["instance_miou_before"] + 0.2
    assert metrics["loss_last"] < metrics["loss_first"]
    assert result["per_category"]["cone"] == {"shapes": 0, "miou": None}
    assert result["per_category"]["box"]["shapes"] == 3
    present = [row["miou"] for row in result["per_category"].values() if row["miou"] is not None]
    assert metrics["class_miou"] == pytest.approx(sum(present) / 2)
    assert "last epoch" in result["selection"]
    place = Path(config.run.storage) / "run" / result["predictions"]
    assert pq.read_table(place)["iou"].to_numpy().mean() == pytest.approx(metrics["instance_miou"])


def test_reference_chooses_the_best_epoch_on_the_test_split(config):
    result = run(changed(config, protocol="reference"))
    metrics = result["metrics"]
    assert metrics["instance_miou"] == pytest.approx(metrics["instance_miou_best"])
    assert metrics["instance_miou_best"] >= metrics["instance_miou_last"]
    assert result["counts"]["epochs"] == 4  # no extra epoch
    assert "on the test split itself" in result["selection"]


def test_a_validation_split_chooses_the_epoch_under_sound(config):
    data = {"train_splits": ["train"], "validation_split": "val"}
    result = run(changed(config, data=data))
    assert "instance_miou_best" in result["metrics"]
    assert "on split val" in result["selection"]


def test_a_finished_run_and_a_file_of_it_score_the_same(config, tmp_path):
    trained = run(config)
    only = {"test": "only", "train": config.train.model_dump()}
    weights = find_weights(tmp_path / "runs" / "run")
    save_reference(tmp_path / "seg.pth", weights)
    state = torch.load(tmp_path / "seg.pth", weights_only=True)
    metrics = dict.fromkeys(PUBLISHED_METRICS, np.float64(0.5))  # as the published scripts do
    torch.save({"epoch": 3, **metrics, **state}, tmp_path / "seg.pth")
    for number, spec in enumerate((tmp_path / "runs" / "run", tmp_path / "seg.pth")):
        again = changed(
            config,
            **only,
            init_from=str(spec),
            model={"preset": None, "num_heads": 2, "num_groups": 8, "group_size": 8},
            run={"name": f"only{number}"},
        )
        result = run(again)
        for name in ("instance_miou", "class_miou", "accuracy", "class_average_accuracy"):
            assert result["metrics"][name] == pytest.approx(trained["metrics"][name], abs=1e-6)


def test_a_pre_trained_encoder_gives_its_sizes(config, tmp_path):
    sizes = {**SIZES, "embed_dim": 32, "patch_widths": (16, 24, 32)}
    sizes |= {"decoder_depth": 1, "image_dim": None, "text_dim": 8}
    path = save_model(tmp_path / "pre.safetensors", **sizes)
    started = changed(
        config, init_from=str(path), model={**dict.fromkeys(SIZES), "preset": None, "num_groups": 8}
    )
    result = run(changed(started, train={"epochs": 1}))
    assert result["init_from"] == str(path)


# --- Refusals -------------------------------------------------------------------------------------
def test_labels_that_are_not_the_cards_are_refused(config, tiny_parts, tmp_path):
    root = shutil.copytree(tiny_parts.path, tmp_path / "set")
    manifest = json.loads((root / "_manifest.json").read_text())
    manifest["card"] = {"classes": ["box"], "parts": {"box": [0]}}
    (root / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"shape test\d of split 'test': .*part 1, .*box's \(0\)"):
        run(changed(config, data={"path": str(root)}))
    manifest["card"] = None
    manifest["classes"] = ["box"]
    (root / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="has the label 1, but the set has 1 categories"):
        run(changed(config, data={"path": str(root)}))
