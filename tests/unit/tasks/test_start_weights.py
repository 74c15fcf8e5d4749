"""What jobs take over from the training of the weights that they read."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from job_samples import SIZES, changed, flat_and_tall, prepare_clouds, run_config, run_options
from job_samples import save_model as save_tiny_model

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError, NoWeightsError
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build


@pytest.fixture(scope="module")
def pretrained(
    tiny_config_in: Callable[[Path], PretrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The result and the folder of a pre-training with 64 points."""
    return run_config("pretrain", tiny_config_in(tmp_path_factory.mktemp("runs")))


def natural(run: Path, prepared: PreparedSet, tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Nothing but init_from and data.path, besides where and how it is run."""
    data = {"path": str(prepared.path), **more.pop("data", {})}
    return {
        "run": {"name": "next", "storage": str(tmp_path)},
        "runtime": {"threads": 1},
        "cluster": {"workers": 0},
        "init_from": str(run),
        "data": data,
        **more,
    }


def test_zeroshot_of_a_run_is_the_number_of_the_run(
    pretrained: tuple[dict[str, Any], Path], tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    result, run = pretrained
    options = natural(run, tiny_prepared, tmp_path)
    options["run"]["seed"] = result["seed"]
    found, _ = run_options("zeroshot", options)
    metrics = found["metrics"]
    assert metrics["zeroshot_accuracy"] == pytest.approx(result["metrics"]["zeroshot_accuracy"])
    assert found["zeroshot"]["kind"] == "text"
    weights = found["weights"]
    assert weights["training"] == {
        "num_points": 64,
        "normalize": "subset",
        "text": "category",
        "up_axis": "y",
        "image_teacher": "descriptor:32",
        "text_teacher": "descriptor:32",
    }
    assert weights["sizes"]["num_groups"] == 8
    assert set(weights["origins"].values()) == {"file"}


@pytest.mark.parametrize("job", ["zeroshot", "linear_probe", "embed", "retrieve", "visualize"])
def test_jobs_read_as_many_points_as_the_training(
    job: str,
    pretrained: tuple[dict[str, Any], Path],
    tiny_prepared: PreparedSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    _, folder = run_options(job, natural(pretrained[1], tiny_prepared, tmp_path))
    assert "num_points: 64\n" in (folder / "config.yaml").read_text()
    assert "data.num_points=64, as in the training of the weights" in caplog.text


def test_finetuning_starts_with_the_points_of_the_training_and_its_own_evaluation_follows(
    pretrained: tuple[dict[str, Any], Path], tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    train = {"epochs": 1, "global_batch_size": 4}
    tuned, folder = run_options(
        "finetune", natural(pretrained[1], tiny_prepared, tmp_path, train=train)
    )
    assert "num_points: 64\n" in (folder / "config.yaml").read_text()
    assert tuned["weights"]["training"]["num_points"] == 64
    options = natural(folder, tiny_prepared, tmp_path / "evaluated")
    evaluated, _ = run_options("evaluate", options)
    assert evaluated["metrics"]["accuracy"] == tuned["metrics"]["accuracy_last"]


def test_another_number_of_points_is_used_and_said(
    pretrained: tuple[dict[str, Any], Path],
    tiny_prepared: PreparedSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = natural(pretrained[1], tiny_prepared, tmp_path, data={"num_points": 32})
    _, folder = run_options("linear_probe", options)
    assert "data.num_points=32 is used, the weights were trained with 64" in caplog.text
    assert "num_points: 32\n" in (folder / "config.yaml").read_text()


def test_a_run_without_records_is_known_by_its_configuration(
    pretrained: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Checkpoints of earlier versions record nothing of the clouds."""
    _, run = pretrained
    whole = find_weights(run)
    text = (run / "config.yaml").read_text()

    copy = shutil.copytree(run, tmp_path / "old")
    for manifest in copy.glob("checkpoints/*/MANIFEST.json"):
        manifest.write_text(manifest.read_text().replace('"num_points": 64', '"unused": 64'))
    assert "num_points: 64" in text
    assert find_weights(copy).extra["num_points"] == 64
    assert find_weights(copy).extra["text_teacher"] == whole.extra["text_teacher"]


def test_a_trained_normalization_is_kept(
    tiny_config: PretrainConfig, tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    config = changed(tiny_config, data={"normalize": False}, train={"steps": 1})
    _, run = run_config("pretrain", config)
    assert find_weights(run).extra["normalize"] == "none"


@pytest.mark.parametrize("job", ["zeroshot", "linear_probe", "embed", "retrieve", "visualize"])
def test_foreign_weights_that_tell_nothing_are_refused(
    job: str, tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    run = save_tiny_model(tmp_path / "w.safetensors", decoder_depth=1, image_dim=256, text_dim=256)
    with pytest.raises(ConfigError, match=r"data\.num_points: .*w\.safetensors does not record"):
        run_options(job, natural(run, tiny_prepared, tmp_path))
    bare = tmp_path / "w.pth"
    torch.save(find_weights(run).state, bare)
    with pytest.raises(CheckpointError, match=r"does not record num_heads and num_groups"):
        run_options(job, natural(bare, tiny_prepared, tmp_path, data={"num_points": 64}))
    told = {name: SIZES[name] for name in ("num_heads", "num_groups")}
    options = natural(bare, tiny_prepared, tmp_path, data={"num_points": 64}, model=told)
    assert run_options(job, options)[0]["status"] == "done"


def test_a_classifier_that_tells_its_sizes_elsewhere_measures_the_same(tmp_path: Path) -> None:
    clouds = flat_and_tall(12)
    prepared = prepare_clouds(tmp_path, {"train": clouds[:2], "test": clouds}, num_points=64)
    own = save_tiny_model(tmp_path / "own.safetensors", "classifier", num_classes=2)
    bare = tmp_path / "bare.pth"
    torch.save({"state_dict": find_weights(own).state}, bare)
    points = {"num_points": 64}
    expected, _ = run_options("evaluate", natural(own, prepared, tmp_path / "a", data=points))
    with pytest.raises(
        CheckpointError, match="does not record num_heads and num_groups and group_s"
    ):
        run_options("evaluate", natural(bare, prepared, tmp_path / "b", data=points))
    told = {name: SIZES[name] for name in ("num_heads", "num_groups", "group_size")}
    options = natural(bare, prepared, tmp_path / "c", data=points, model=told)
    found, _ = run_options("evaluate", options)
    assert found["confusion"] == expected["confusion"]
    assert found["weights"]["sizes"] == told
    assert set(found["weights"]["origins"].values()) == {"options"}


def test_finetuning_refuses_a_start_that_does_not_tell_its_heads(
    tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    own = save_tiny_model(tmp_path / "own.safetensors", "embedder")
    torch.save(find_weights(own).state, tmp_path / "bare.pth")
    options = natural(tmp_path / "bare.pth", tiny_prepared, tmp_path, data={"num_points": 64})
    for job in ("finetune",):
        with pytest.raises(CheckpointError, match="does not record num_heads and num_groups"):
            run_options(job, options)
    wrong = {"num_heads": 3, "num_groups": 8, "group_size": 8}
    options = natural(own, tiny_prepared, tmp_path, data={"num_points": 64}, model=wrong)
    with pytest.raises(CheckpointError, match="trained with num_heads=2, but num_heads=3"):
        run_options("finetune", options)


def test_a_file_of_a_checkpoint_is_read_with_its_manifest(
    pretrained: tuple[dict[str, Any], Path],
) -> None:
    last = sorted(pretrained[1].glob("checkpoints/step-*"))[-1]
    weights = find_weights(last / "model.pt")
    assert weights.extra["num_points"] == 64
    assert build(weights)[0].num_groups == 8


@pytest.mark.parametrize(
    "job", ["zeroshot", "linear_probe", "embed", "retrieve", "visualize", "evaluate", "finetune"]
)
def test_absent_weights_are_refused_before_any_data_is_read(job: str, tmp_path: Path) -> None:
    options = {"init_from": str(tmp_path / "absent.pth"), "data": {"path": "/absent/set"}}
    with pytest.raises(NoWeightsError, match=r"absent\.pth: there is no such file") as refusal:
        run_options(job, {**options, "cluster": {"workers": 0}})
    assert refusal.value.exit_code == 2
