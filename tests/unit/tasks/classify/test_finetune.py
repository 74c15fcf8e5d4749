"""Fine-tuning in this process: data, sizes, groups, metrics, selection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from job_samples import SIZES, changed, flat_and_tall, prepare_clouds, run_config, save_model

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.sources.cards import CARDS, as_record
from recon_ray.errors import CheckpointError
from recon_ray.models.classifier import Classifier
from recon_ray.models.twotower import TwoTowerClassifier
from recon_ray.points.random import SampleGenerator
from recon_ray.points.transforms import CANDIDATE_POINTS
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.confusion import (
    class_accuracy,
    confusion_matrix,
    overall_accuracy,
    per_class,
)
from recon_ray.tasks.classify.finetune_job import make_task
from recon_ray.tasks.classify.task import classifier_of
from recon_ray.tasks.classify.voting import VotingEvaluation
from recon_ray.tasks.point_pipeline import CloudPipeline, pipeline_of
from recon_ray.weights.find import find_weights
from recon_ray.weights.weight_files import from_own, save_reference


@pytest.fixture
def config(tiny_prepared: PreparedSet, tmp_path: Path, ops_backend) -> FinetuneConfig:
    """A fine-tuning from scratch that takes a second, in this process."""
    return FinetuneConfig(
        run={"name": "run", "storage": str(tmp_path / "runs"), "seed": 3},
        runtime={"ops_backend": ops_backend, "threads": 1},
        cluster={"workers": 0},
        data={"path": str(tiny_prepared.path), "num_points": 64},
        model={"preset": "nano", **SIZES},
        train={"epochs": 4, "global_batch_size": 8, "log_every_steps": 1},
        optim={"lr": 1e-3, "warmup_epochs": 1},
    )


def pretrained(folder: Path) -> Path:
    """Save random weights of a pre-training model."""
    sizes = {"decoder_depth": 1, "patch_widths": (32, 64, 128)}
    return save_model(folder / "pretrained.safetensors", **sizes)


# --- Metrics -------------------------------------------------------------------------------------
def test_confusion_counts_and_accuracies_of_a_hand_made_case():
    labels = np.array([0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 1, 1, 0, 3])
    matrix = confusion_matrix(labels, predicted, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert overall_accuracy(matrix) == pytest.approx(4 / 6)
    assert class_accuracy(matrix) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # class 2 is absent
    records = per_class(matrix, ["a", "b", "c", "d"])
    assert records["c"] == {"accuracy": None, "count": 0}
    assert records["a"] == {"accuracy": pytest.approx(2 / 3), "count": 3}
    empty = confusion_matrix(np.zeros(0, dtype=int), np.zeros(0, dtype=int), 3)
    assert np.isnan(overall_accuracy(empty))
    assert np.isnan(class_accuracy(empty))


# --- Clouds --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "normalize", "augment", "transform"),
    [
        ("modelnet40", "whole", "scale_translate", "scale"),
        ("modelnet10", "whole", "scale_translate", "scale"),
        ("fewshot", "whole", "rotate", "none"),
        ("scanobjectnn_pb_t50_rs", "none", "rotate", "rotate"),
        ("scanobjectnn_obj_bg", "none", "rotate", "none"),
        ("scanobjectnn_obj_only", "none", "rotate", "none"),
        ("shapenet55", "subset", "rotate", "none"),
        (None, "whole", "rotate", "none"),
    ],
)
def test_the_card_decides_how_clouds_are_brought(name, normalize, augment, transform):
    card = None if name is None else as_record(CARDS[name])
    pipeline = pipeline_of(card, num_points=1024, skips_origin=False)
    assert pipeline == CloudPipeline(1024, normalize, augment, transform, -1.0)
    given = pipeline_of(
        card, num_points=1024, skips_origin=True, normalize="none", augment="none",
        transform="none",
    )  # fmt: skip
    assert given == CloudPipeline(1024, "none", "none", "none", 1e-3)


def test_whole_clouds_are_normalized_before_points_are_drawn_and_subsets_after():
    points = torch.randn(3, 200, 3, generator=torch.Generator().manual_seed(0)) + 5
    source = SampleGenerator(0, torch.arange(3))
    subset = CloudPipeline(64, "subset").train(points, source)
    assert subset.norm(dim=-1).amax(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    whole = CloudPipeline(64, "whole").train(points, SampleGenerator(0, torch.arange(3)))
    assert whole.mean(dim=1).abs().max() > 1e-4  # of the subset; the whole cloud's is zero
    none = CloudPipeline(64, "none").train(points, SampleGenerator(0, torch.arange(3)))
    stored = {tuple(p) for p in points[0].tolist()}
    assert {tuple(p) for p in none[0].tolist()} <= stored


def test_training_thins_from_another_point_every_epoch():
    """The published loaders shuffle a training cloud, whose first point starts the sampling."""
    pipeline, points, ids = CloudPipeline(64, "none"), torch.randn(3, 300, 3), torch.arange(3)
    epochs = [pipeline.train(points, SampleGenerator(0, ids, epoch)) for epoch in range(8)]
    seen = {tuple(point) for epoch in epochs for point in epoch[0].tolist()}
    assert len(seen) > 2 * 75  # never more than the same 75 candidates from one start
    again = pipeline.train(points[1:], SampleGenerator(0, ids[1:], 5))
    assert torch.equal(again, epochs[5][1:])  # a sample's own, whatever the batch
    assert torch.equal(pipeline.test()(points, ids)[:, 0], points[:, 0])  # evaluation shuffles none


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("stored", [300, 70])
def test_the_pipeline_of_training_is_one_graph_for_all_epochs(stored):
    pipeline = CloudPipeline(64, "whole", "rotate", min_sq_norm=1e-3)
    points = torch.rand(2, stored, 3)

    def prepared(epoch: torch.Tensor) -> torch.Tensor:
        return pipeline.train(points, SampleGenerator(0, torch.arange(2), epoch))

    torch._dynamo.reset()
    compiled = torch.compile(prepared, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch in (0, 7):
            expected = pipeline.train(points, SampleGenerator(0, torch.arange(2), epoch))
            torch.testing.assert_close(compiled(torch.tensor(epoch)), expected)


def test_thinning_is_left_out_where_it_would_only_permute():
    pipeline = CloudPipeline(64, "none")
    assert pipeline.candidates(torch.randn(2, 75, 3)).shape[1] == 75
    few = torch.randn(2, 70, 3)
    assert pipeline.candidates(few) is few
    assert pipeline.candidates(torch.randn(2, 300, 3)).shape[1] == 75  # 64 * 75 / 64


def test_no_way_to_the_classifier_reads_points_that_the_reference_skips():
    """All stored points are read: a point at the origin is replaced, but for the first."""
    points = torch.randn(2, 70, 3).sign()
    points[:, [0, 5, 33]] = 0.01
    pipeline = CloudPipeline(70, "none", min_sq_norm=1e-3)
    evaluation = VotingEvaluation(
        "", {}, "test", pipeline, 2, votes=0, repeats=1, batch_size=2, seed=0
    )
    ids = torch.arange(2)
    clouds = [pipeline.test()(points, ids), *evaluation._thin(points)]
    clouds.append(pipeline.train(points, SampleGenerator(0, ids)))  # starts at one of the 67 others
    assert [int((cloud == 0.01).all(dim=-1).sum()) for cloud in clouds] == [2, 2, 2, 0]


# --- The classifier ------------------------------------------------------------------------------
def test_sizes_come_from_the_weights_then_the_preset_then_what_is_given(config, tmp_path):
    weights = find_weights(pretrained(tmp_path))
    plain = FinetuneConfig()
    kind, arguments = classifier_of(plain, weights, 5)
    assert kind == "classifier"
    assert {k: arguments[k] for k in SIZES} == SIZES
    assert arguments["num_classes"] == 5
    kind, arguments = classifier_of(changed(plain, model={"num_groups": 16}), weights, 5)
    assert (arguments["num_groups"], arguments["embed_dim"]) == (16, 24)
    _, arguments = classifier_of(plain, None, 5)
    assert arguments["embed_dim"] == 384
    with pytest.raises(CheckpointError, match="trained with num_heads=2, but num_heads=4"):
        classifier_of(changed(plain, model={"preset": "small"}), weights, 5)


@pytest.mark.parametrize(
    ("tune", "head"), [("full", "mlp"), ("linear", "linear"), ("mlp3", "mlp"), ("probe", "linear")]
)
def test_the_head_follows_what_is_tuned(tune, head):
    _, arguments = classifier_of(changed(FinetuneConfig(), train={"tune": tune}), None, 5)
    assert arguments["head"] == head


def test_the_reference_keeps_its_habits_in_the_model():
    reference = changed(FinetuneConfig(), protocol="reference")
    _, arguments = classifier_of(reference, None, 5)
    assert (arguments["init"], arguments["fps_min_sq_norm"]) == ("reference", 1e-3)
    kind, arguments = classifier_of(changed(reference, model={"kind": "twotower"}), None, 5)
    assert kind == "twotower_classifier"
    assert (arguments["drop_first_patches"], arguments["init"]) == (True, "reference")
    TwoTowerClassifier(**arguments | {"embed_dim": 24, "depth": 1, "num_heads": 2})
    _, arguments = classifier_of(changed(FinetuneConfig(), model={"kind": "twotower"}), None, 5)
    assert "drop_first_patches" not in arguments


@pytest.mark.parametrize(("protocol", "kind", "has_head"), [
    ("sound", "classifier", True), ("reference", "classifier", True),
    ("sound", "twotower", True), ("reference", "twotower", False),
])  # fmt: skip
def test_the_head_learns_ten_times_as_fast(config, tiny_prepared, protocol, kind, has_head):
    config = changed(config, protocol=protocol, model={"kind": kind})
    task, _ = make_task(config, tiny_prepared)
    groups = {g["name"]: g for g in task.parameter_groups(task.build())}
    assert bool(groups["head"]["params"]) is has_head
    assert groups["head"]["lr"] == pytest.approx(10 * groups["decay"]["lr"])


def test_weights_of_own_files_start_the_encoder_if_the_width_fits(config, tiny_prepared, tmp_path):
    path = pretrained(tmp_path)
    config = changed(config, init_from=str(path), model={"preset": None})
    task, report = make_task(config, tiny_prepared)
    model = task.stored_model(task.build())
    state = find_weights(path).state
    assert isinstance(model, Classifier)
    assert torch.equal(model.encoder.norm.weight, state["encoder.norm.weight"])
    assert torch.equal(model.state_dict()["encoder.image_token"], state["encoder.image_token"])
    assert "drawn afresh (head)" in report
    config = changed(config, init_from=str(path), model={"embed_dim": 32})
    with pytest.raises(CheckpointError, match=r"has shape \(24,\).*\(32,\).*model\.embed_dim"):
        make_task(config, tiny_prepared)


def test_an_imported_file_starts_the_same_classifier_as_our_own(config, tiny_prepared, tmp_path):
    own = pretrained(tmp_path)
    imported = tmp_path / "published.pth"
    save_reference(imported, find_weights(own))
    states = []
    for path in (own, imported):
        sizes = {"preset": None, "embed_dim": None, "depth": None, "group_size": None}
        started = changed(config, init_from=str(path), model=sizes)
        task, _ = make_task(started, tiny_prepared)
        torch.manual_seed(0)
        states.append(task.stored_model(task.build()).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- Whole runs ----------------------------------------------------------------------------------
def test_sound_takes_the_last_epoch_and_chooses_nothing_on_the_test_split(config):
    result, folder = run_config("finetune", config)
    assert result["selection"] == "last step; nothing chosen on 'test'"
    assert result["counts"]["steps"] == 4 * 3
    assert result["metrics"]["accuracy"] == result["metrics"]["accuracy_last"]
    assert "accuracy_best" not in result["metrics"]
    matrix = np.array(result["confusion"])
    assert matrix.sum() == 12
    assert overall_accuracy(matrix) == pytest.approx(result["metrics"]["accuracy"])
    assert list(result["per_class"]) == ["chair", "lamp", "mug"]
    assert (folder / "figures" / "confusion.png").stat().st_size > 5_000
    assert CheckpointStore(str(folder / "checkpoints")).best() is None
    found = find_weights(folder)
    classes = ["chair", "lamp", "mug"]
    records = {"num_points": 64, "normalize": "whole", "up_axis": "y"}
    assert found.extra == {"classes": classes, **records}
    assert found.kind == from_own(found.state, found.architecture, source="x").kind == "classifier"


def test_stopping_and_continuing_gives_the_same_weights(config):
    _, whole = run_config("finetune", changed(config, run={"name": "whole"}))
    part = changed(config, run={"name": "part"}, train={"steps": 5})
    run_config("finetune", part)
    _, continued = run_config("finetune", changed(part, train={"steps": None}))
    a, b = (CheckpointStore(str(f / "checkpoints")).load_latest().model for f in (whole, continued))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Flat and tall clouds in a train, a val and a test split."""
    clouds = {split: flat_and_tall(n) for split, n in {"train": 16, "val": 8, "test": 6}.items()}
    folder = tmp_path_factory.mktemp("three")
    return prepare_clouds(folder, clouds, num_points=72, samples_per_shard=5)


def test_a_validation_split_chooses_the_epoch_or_is_trained_on_too(config, three_splits):
    data = {"path": str(three_splits.path), "validation_split": "val"}
    result, folder = run_config("finetune", changed(config, data=data, train={"epochs": 4}))
    metrics = result["metrics"]
    best = CheckpointStore(str(folder / "checkpoints")).best()
    assert result["selection"] == f"best epoch ({best['epoch']}) on 'val', measured on 'test'"
    assert (
        best["value"] == metrics["validation_accuracy_best"] >= metrics["validation_accuracy_last"]
    )
    assert metrics["accuracy"] == metrics["accuracy_best"]
    assert np.array(result["confusion"]).sum() == 6
    assert find_weights(folder).source.endswith(f"({best['name']})")
    data = {"path": str(three_splits.path), "train_splits": ("train", "val")}
    both = changed(config, data=data, train={"epochs": 1}, run={"name": "both"})
    result, _ = run_config("finetune", both)
    assert result["counts"]["steps"] == (16 + 8) // 8


def test_what_a_limit_leaves_is_counted_and_accuracy_is_recorded_as_such(config, caplog):
    sections = {"data": {"limit": 16}, "train": {"epochs": 1}, "optim": {"warmup_epochs": 1.0}}
    result, folder = run_config("finetune", changed(config, **sections))
    assert "optim.warmup_epochs=1 is not less than train.epochs=1" in caplog.text
    assert result["counts"]["training_samples"] == 16
    assert result["counts"]["steps"] == 16 // 8
    line = (folder / "metrics.jsonl").read_text().splitlines()[0]
    assert 0 <= json.loads(line)["train/accuracy"] <= 1
    assert "loss_accuracy" not in line


def test_the_reference_chooses_on_test_and_trains_an_epoch_more(config, three_splits, monkeypatch):
    monkeypatch.setitem(CANDIDATE_POINTS, 64, 70)  # the published numbers need larger clouds
    data = {"path": str(three_splits.path)}
    result, folder = run_config("finetune", changed(config, data=data, protocol="reference"))
    metrics = result["metrics"]
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    seen = {r["epoch"]: r["val/accuracy"] for r in records if "val/accuracy" in r}
    assert list(seen) == [1, 2, 3, 4]  # not after epoch 0
    best = max(seen, key=lambda epoch: (seen[epoch], -epoch))
    assert result["counts"]["epochs"] == 5
    assert metrics["best_epoch"] == best
    assert metrics["accuracy"] == metrics["accuracy_best"] == pytest.approx(seen[best])
    assert metrics["accuracy_last"] == pytest.approx(seen[4])
    assert "on which it is measured too (published habit)" in result["selection"]


@pytest.mark.parametrize("tune", ["linear", "mlp3", "probe"])
def test_a_frozen_encoder_stays_as_it_was(config, tiny_prepared, tmp_path, tune):
    path = pretrained(tmp_path)
    config = changed(config, init_from=str(path), train={"tune": tune, "steps": 3})
    _, folder = run_config("finetune", config)
    after = find_weights(folder).state
    before = find_weights(path).state
    frozen = [name for name in before if name.startswith("encoder.") and name in after]
    moved = {name for name in frozen if not torch.equal(after[name], before[name])}
    statistics = {name for name in moved if "running_" in name or "num_batches" in name}
    tokens = {"encoder.class_token", "encoder.class_pos"}
    assert moved - statistics == (set() if tune == "probe" else tokens)
    assert bool(statistics) is (tune != "probe")  # published: batch norm runs in training mode
