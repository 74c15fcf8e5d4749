"""Features extracted once, zero-shot classification and probes as jobs, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_samples import run_options, save_model, usual_options

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.models.batch_norm import batch_norms
from recon_ray.points import transforms
from recon_ray.tasks import config_checks
from recon_ray.tasks.config_checks import class_texts
from recon_ray.tasks.feature_extraction import (
    PointChoice,
    load_embedder,
    see_clouds,
    without_last_batch,
)
from recon_ray.tasks.linear_probe import probes
from recon_ray.teachers.prompts import NUM_PROMPTS

WIDTH = 8
CLASSES = ("chair", "lamp", "mug")


def save(path: Path, **dims: int | None) -> Path:
    return save_model(path, **{"decoder_depth": 1, "image_dim": WIDTH, "text_dim": WIDTH, **dims})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "pre.safetensors")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Features of the three classes and one more."""
    names = [*CLASSES, "sofa"]
    bank = np.random.default_rng(0).standard_normal((len(names), NUM_PROMPTS, WIDTH))
    np.savez(tmp_path / "texts.npz", classes=np.array(names), text=bank)
    return tmp_path / "texts.npz"


@pytest.fixture
def zero(tiny_prepared: PreparedSet, weights: Path, texts: Path, tmp_path: Path) -> dict[str, Any]:
    teacher = {"text": {"name": f"table:{texts}"}}
    return {**usual_options(tiny_prepared, tmp_path, weights), "teacher": teacher, "zeroshot": {}}


@pytest.fixture
def probe(tiny_prepared: PreparedSet, weights: Path, tmp_path: Path) -> dict[str, Any]:
    options = {"knn": (1, 3), "shots": 2, "draws": 2}
    return {**usual_options(tiny_prepared, tmp_path, weights), "probe": options}


def run_zeroshot(options: dict[str, Any], **zeroshot_options: Any) -> dict[str, Any]:
    options = {**options, "zeroshot": {**options["zeroshot"], **zeroshot_options}}
    return run_options("zeroshot", options)[0]


def run_probe(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    return run_options("linear_probe", {**options, **more})[0]


# --- Points and features --------------------------------------------------------------------------
def test_a_choice_is_the_same_every_time_and_normalizes_where_it_says():
    points, ids = 5 + torch.rand(4, 50, 3), torch.arange(4)
    for how in ("fps", "random"):
        whole = PointChoice(20, how=how, normalize="whole")
        assert torch.equal(whole(points, ids), whole(points, ids))
        one = whole(points[2:3], ids[2:3])
        assert torch.equal(one, whole(points, ids)[2:3])  # whatever the batch
        subset = PointChoice(20, how=how, normalize="subset")(points, ids)
        torch.testing.assert_close(subset, transforms.normalize(subset), rtol=0, atol=1e-5)
    untouched = PointChoice(50, normalize="none")
    assert not untouched.samples(50)
    assert torch.equal(untouched(points, ids), points)


def test_what_does_not_fill_a_batch_is_left_out_at_random():
    features = {"label": np.arange(10), "x": np.arange(10) * 2}
    kept = without_last_batch(features, 4, seed=0)
    assert len(kept["label"]) == 8
    assert np.array_equal(kept["x"], kept["label"] * 2)
    assert not np.array_equal(kept["label"], without_last_batch(features, 4, seed=5)["label"])


# --- Probes ---------------------------------------------------------------------------------------
def test_neighbors_vote_by_cosine_without_the_feature_itself():
    train = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.05, 1.0]])
    labels = np.array([0, 0, 1, 1])
    queries = np.array([[10.0, 1.0], [0.1, 0.2]])
    assert probes.nearest_neighbors(train, labels, queries, [1])[1].tolist() == [0, 1]
    assert probes.nearest_neighbors(train, labels, queries, [4])[4].tolist() == [
        0,
        1,
    ]  # two votes each
    train = np.array([[1.0, 0.0], [0.0, 1.0], [-0.1, 1.0]])
    labels = np.array([0, 1, 1])
    assert probes.nearest_neighbors(train, labels, np.array([[1.0, 0.0]]), [3])[3].tolist() == [1]
    train = np.array([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0]])
    found = probes.nearest_neighbors(train, np.array([0, 1, 1]), None, [1])[1]
    assert found.tolist() == [1, 0, 1]


def test_the_number_of_neighbors_is_chosen_on_the_training_features():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    train = np.stack([np.where(labels, 1.0, -1.0), np.ones(80)], axis=1)
    train += random.normal(0, 1.0, train.shape)  # overlapping: one neighbour is often wrong
    found = probes.nearest_neighbors(train, labels, None, (1, 15))
    right = {k: (found[k] == labels).mean() for k in found}
    assert right[15] > right[1]
    assert probes.choose_k(train, labels, (1, 15)) == 15


def test_logistic_regression_ignores_the_scale_of_a_feature():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    features = np.stack([1e-3 * (labels + 0.1 * random.normal(size=60)), np.ones(60)], axis=1)
    assert probes.logistic_accuracy(features, labels, features, labels) == 1.0
    held = probes.held_out(labels, seed=0)
    assert held[:30].sum() == held[30:].sum() == 6


def test_probes_of_weights_and_of_an_untrained_network_read_every_cloud_once(probe):
    result = run_probe(probe)
    names = {"accuracy", "knn_accuracy", "logistic_accuracy", "few_label_accuracy"}
    assert result["metrics"].keys() >= names | {f"{name}_untrained" for name in names}
    assert result["metrics"]["chance"] == pytest.approx(1 / 3)
    assert result["counts"]["sampled_clouds"] == 36
    assert result["counts"]["encoded_clouds"] == 2 * 36
    assert run_probe(probe)["metrics"] == result["metrics"]


def test_an_untrained_network_is_drawn_as_published_where_asked(probe, weights, monkeypatch):
    published = load_embedder(str(weights), trained=False, torch_init=True).encoder
    assert published.embed.fc3.bias.any()  # torch's default
    assert published.class_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert not load_embedder(str(weights), trained=False).encoder.embed.fc3.bias.any()

    drawn = []

    def load(*args: Any, **options: Any) -> Any:
        drawn.append((options.get("trained", True), options.get("torch_init", False)))
        return load_embedder(*args, **options)

    def see(model: Any, *args: Any) -> None:
        drawn.append("sees clouds")
        see_clouds(model, *args)
        assert all(int(layer.num_batches_tracked) > 0 for _, layer in batch_norms(model))

    monkeypatch.setattr(probes, "load_embedder", load)
    monkeypatch.setattr(probes, "see_clouds", see)
    monkeypatch.setattr(probes, "REFERENCE_BATCH", 8)
    monkeypatch.setattr(config_checks, "REFERENCE_BATCH", 8)
    run_probe(probe, protocol="reference")
    assert drawn == [(True, False), (False, True)]
    drawn.clear()
    run_probe(probe)
    assert drawn == [(True, False), (False, False), "sees clouds"]


def test_nothing_is_sampled_where_all_points_are_read(probe):
    data = {**probe["data"], "num_points": 96}
    result = run_probe({**probe, "probe": {**probe["probe"], "untrained": False}}, data=data)
    assert result["counts"]["sampled_clouds"] == 0
    assert result["counts"]["encoded_clouds"] == 36
    assert not any(name.endswith("_untrained") for name in result["metrics"])


# --- Zero-shot ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["full", "text", "image"])
def test_every_token_classifies_and_every_shape_counts_once(zero, kind):
    result = run_zeroshot(zero, kind=kind, splits=("train", "test"))
    assert result["counts"]["shapes"] == {"train": 24, "test": 12}
    assert result["counts"]["sampled_clouds"] == result["counts"]["encoded_clouds"] == 36
    metrics = result["metrics"]
    mean = (24 * metrics["zeroshot_accuracy_train"] + 12 * metrics["zeroshot_accuracy_test"]) / 36
    assert metrics["zeroshot_accuracy"] == pytest.approx(mean)
    assert np.sum(result["confusion"]) == 36
    assert result["per_class"]["mug"]["count"] == 12
    assert run_zeroshot(zero, kind=kind, splits=("train", "test"))["metrics"] == metrics


def test_names_add_wrong_answers_texts_change_and_one_projection_is_enough(zero, tmp_path):
    listed = run_zeroshot(zero, classes=("sofa", "mug", "lamp", "chair"))
    assert listed["metrics"]["chance"] == 0.25
    assert list(listed["texts"]) == ["sofa", "mug", "lamp", "chair"]
    assert listed["per_class"]["sofa"] == {"accuracy": None, "count": 0}
    mapped = run_zeroshot(zero, classes={"mug": "sofa"})
    assert mapped["texts"] == {"chair": "chair", "lamp": "lamp", "mug": "sofa"}
    without = save(tmp_path / "text.safetensors", image_dim=None)
    assert run_zeroshot({**zero, "init_from": str(without)}, kind="text")["status"] == "done"


def test_published_prompts_keep_their_misspelt_class(tiny_prepared, zero, tmp_path):
    card = {"name": "scanobjectnn_obj_bg", "classes": ["sofa", "toilet"], "texts": ["a", "toilet"]}
    scan = PreparedSet(tiny_prepared.path, {"classes": card["classes"], "card": card}, "", {})
    published = class_texts(scan, published=True)
    assert published == {"sofa": "a", "toilet": "toile"}
    assert class_texts(scan, published=False) == {"sofa": "a", "toilet": "toilet"}
    assert "toilet" not in class_texts(tiny_prepared, published=True)
