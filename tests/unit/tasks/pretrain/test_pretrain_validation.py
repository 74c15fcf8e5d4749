"""Validation while pre-training, on the same set or on a second one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from job_samples import changed, flat_and_tall, prepare_clouds, run_config, run_options

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import MANIFEST
from recon_ray.errors import ConfigError
from recon_ray.points.transforms import CANDIDATE_POINTS
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks.feature_extraction import PointChoice
from recon_ray.tasks.pretrain.job import make_task
from recon_ray.tasks.start_weights import zeroshot_kind


def validations(folder: Path, name: str) -> dict[int, float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {r["epoch"]: r[f"val/{name}"] for r in records if f"val/{name}" in r}


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Another set with classes of its own: flat and tall clouds."""
    clouds = {"train": flat_and_tall(10), "test": flat_and_tall(6)}
    return prepare_clouds(tmp_path_factory.mktemp("second"), clouds, num_points=70)


@pytest.fixture(scope="module")
def carded(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """A set whose card leaves clouds as they are; its three kinds are hard to tell."""
    clouds: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "test": []}
    for split, count in {"train": 135, "test": 60}.items():
        for i in range(count):
            random = np.random.default_rng([len(split), i])
            cloud = random.normal(size=(90, 3)) * random.uniform(0.5, 1 + i % 3, 3)
            clouds[split].append(("abc"[i % 3], cloud + 0.3))
    folder = tmp_path_factory.mktemp("carded")
    prepare_clouds(folder, clouds, num_points=90)
    place = folder / "set" / MANIFEST
    card = {"name": "scanobjectnn_obj_only", "normalization": "none"}
    place.write_text(json.dumps({**json.loads(place.read_text()), "card": card}))
    return PreparedSet.open(folder / "set")


@pytest.mark.parametrize(
    ("kind", "protocol", "how"),
    [
        ("svm", "sound", "random"),
        ("svm", "reference", "fps"),
        ("zeroshot", "sound", "random"),
        ("zeroshot", "reference", "resample"),
    ],
)
def test_clouds_of_the_card(tiny_config, tiny_prepared, carded, kind, protocol, how, monkeypatch):
    monkeypatch.setitem(CANDIDATE_POINTS, 64, 75)  # the published numbers need larger clouds
    options = {"every_epochs": 1, "path": str(carded.path), "kind": kind}
    task = make_task(changed(tiny_config, protocol=protocol, validation=options), tiny_prepared)
    skip, seed = (1e-3, 0 if kind == "svm" else 3) if protocol == "reference" else (-1.0, 3)
    assert task.validation.plan.choice == PointChoice(64, how, "none", skip, seed)


@pytest.mark.parametrize(
    ("kind", "protocol"), [("svm", "sound"), ("svm", "reference"), ("zeroshot", "reference")]
)
def test_the_value_is_the_jobs_on_that_checkpoint(tiny_config, carded, kind, protocol, monkeypatch):
    monkeypatch.setitem(CANDIDATE_POINTS, 64, 75)  # the published numbers need larger clouds
    validation = {"every_epochs": 1, "path": str(carded.path), "kind": kind}
    short = {"eval": {"enabled": False}, "train": {"epochs": 1}}
    config = changed(tiny_config, protocol=protocol, validation=validation, **short)
    result, folder = run_config("pretrain", config)
    same = {name: config.model_dump()[name] for name in ("runtime", "cluster")}
    same |= {"protocol": protocol, "init_from": str(folder)}
    same |= {"run": {**config.run.model_dump(), "name": "job"}}
    same |= {"data": {"path": str(carded.path), "num_points": 64}}
    if kind == "svm":
        probe = {"knn": (1,), "logistic": False, "shots": 0, "untrained": False}
        job, _ = run_options("linear_probe", {**same, "probe": probe})
    else:
        text = {"text": config.teacher.text.model_dump()}
        both = {"splits": ("train", "test")}
        job, _ = run_options("zeroshot", {**same, "teacher": text, "zeroshot": both})
    expected = job["metrics"]["accuracy" if kind == "svm" else "zeroshot_accuracy"]
    assert result["metrics"][f"validation_{kind}_best"] == pytest.approx(expected)


def test_the_best_epoch_on_a_second_set_is_kept(tiny_config, second):
    options = {"every_epochs": 2, "path": str(second.path), "kind": "svm"}
    config = changed(
        tiny_config, validation=options, eval={"enabled": False}, train={"keep_checkpoints": 1}
    )
    result, folder = run_config("pretrain", config)
    seen = validations(folder, "validation_svm")
    assert list(seen) == [1, 3]
    assert all(value > 0.8 for value in seen.values())  # flat and tall: any features tell them
    store = CheckpointStore(str(folder / "checkpoints"))
    best = store.best()
    assert best["value"] == max(seen.values()) == result["metrics"]["validation_svm_best"]
    assert store.load_selected().step == 3 * (best["epoch"] + 1)
    assert f"names epoch {best['epoch']}, the best by svm on 'test'" in result["selection"]


def test_zero_shot_of_the_classes_of_the_second_set(tiny_config, second):
    options = {"every_epochs": 4, "path": str(second.path), "kind": "zeroshot", "limit": 4}
    result, folder = run_config(
        "pretrain", changed(tiny_config, validation=options, eval={"enabled": False})
    )
    seen = validations(folder, "validation_zeroshot")
    assert list(seen) == [3]
    assert seen[3] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert result["metrics"]["validation_zeroshot_last"] == seen[3]


def test_reference_zero_shot_and_svm_read_both_splits(tiny_config, tiny_prepared, monkeypatch):
    monkeypatch.setitem(CANDIDATE_POINTS, 64, 75)

    def splits(protocol: str, kind: str) -> tuple[str, ...]:
        options = {"every_epochs": 1, "kind": kind}
        task = make_task(changed(tiny_config, protocol=protocol, validation=options), tiny_prepared)
        return task.validation.plan.splits

    assert splits("sound", "svm") == ("train", "test")
    assert splits("sound", "zeroshot") == ("test",)
    assert splits("reference", "zeroshot") == ("train", "test")
    with pytest.raises(ConfigError, match="leaves out what does not fill a batch of 128: all 24"):
        splits("reference", "svm")


def test_both_tokens_are_used_where_the_teachers_share_a_space():
    clip = "open_clip:ViT-B-32-quickgelu:openai"
    assert zeroshot_kind(clip, clip) == "full"
    assert zeroshot_kind("descriptor:16", "descriptor:16") == "text"
    assert zeroshot_kind("timm:vit", clip) == "text"
    assert zeroshot_kind(None, clip) == "text"
    assert zeroshot_kind(clip, None) == "image"


def test_own_probes_are_those_of_the_jobs_on_the_run(tiny_config, tiny_prepared, tmp_path):
    result, folder = run_config("pretrain", tiny_config)
    same = {
        "cluster": {"workers": 0},
        "runtime": {"threads": 1},
        "init_from": str(folder),
        "data": {"path": str(tiny_prepared.path)},
    }

    def run(job: str, **options: object) -> dict[str, float]:
        storage = {"run": {"name": job, "storage": str(tmp_path)}}
        return run_options(job, {**same, **storage, **options})[0]["metrics"]

    probes, own = run("linear_probe", probe={"shots": 2, "draws": 2}), result["metrics"]
    assert probes["accuracy"] == pytest.approx(own["probe_full_after"])
    assert probes["few_label_accuracy"] == pytest.approx(own["probe_after"])
    assert run("zeroshot")["zeroshot_accuracy"] == pytest.approx(own["zeroshot_accuracy"])


def test_pre_training_on_both_splits_counts_both(tiny_config):
    short = {"eval": {"enabled": False}, "train": {"epochs": 1}}
    config = changed(tiny_config, data={"train_splits": ("train", "test")}, **short)
    result, _ = run_config("pretrain", config)
    assert result["counts"]["steps"] == (24 + 12) // 8
