"""The driver of the visualize job, and the figures of the other jobs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import trimesh
from job_samples import save_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recon_ray.cli import run_job
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.run_figures import draw_classification
from recon_ray.tasks.visualize.config import ShownDataSection
from recon_ray.tasks.visualize.shape_selection import shapes_of_set


def weights(folder: Path, kind: str, **more: object) -> Path:
    sizes = {"depth": 3, "patch_widths": (8, 8, 8), **more}
    return save_model(folder / f"{kind}.safetensors", kind, **sizes)


@pytest.fixture
def recon(tmp_path: Path) -> Path:
    return weights(tmp_path, "recon", decoder_depth=1, image_dim=4, text_dim=4)


def run(folder: Path, *arguments: object) -> int:
    given = [f"run.storage={folder / 'runs'}", "run.name=v", "data.num_points=96"]
    given += map(str, arguments)
    return run_job("visualize", given)


def result(folder: Path) -> dict:
    return json.loads((folder / "runs" / "v" / "result.json").read_text())


def test_sets_and_files_are_drawn(tiny_prepared: PreparedSet, recon: Path, tmp_path: Path) -> None:
    box = tmp_path / "my box!.ply"
    trimesh.creation.box().export(box)
    assert run(
        tmp_path, f"init_from={recon}", f"data.path={tiny_prepared.path}", "shapes=3",
        "data.num_points=64", f"files=['{box}']",
    ) == 0  # fmt: skip
    found = result(tmp_path)
    assert found["kinds"] == ["reconstruction", "attention"]
    assert found["counts"] == {"shapes": 4, "files": 1 + 4 * (1 + 8)}
    assert found["metrics"]["reconstruction_loss"] > 0
    folder = tmp_path / "runs" / "v"
    for name in found["files"]:
        assert (folder / name).stat().st_size > 500, name
    assert found["files"][0] == "figures/sheet.png"
    assert "figures/clouds/04-my-box-attention-text.ply" in found["files"]
    cloud = trimesh.load(folder / "figures" / "clouds" / "04-my-box-input.ply")
    assert len(cloud.vertices) == 64
    assert np.linalg.norm(cloud.vertices, axis=1).max() == pytest.approx(1, abs=1e-5)


def test_meshes_for_tensorboard(tiny_prepared: PreparedSet, recon: Path, tmp_path: Path) -> None:
    given = f"init_from={recon}", f"data.path={tiny_prepared.path}", "shapes=1"
    assert run(tmp_path, *given) == 0
    events = EventAccumulator(str(tmp_path / "runs" / "v" / "tensorboard")).Reload()
    tags = {tag.rsplit("_", 1)[0].split("/")[0] for tag in events.Tags()["tensors"]}
    kinds = {"input", "visible", "masked", "prediction", "completed"}
    assert tags == kinds | {f"attention-{token}" for token in ("class", "image", "text")}


def test_a_seed_fixes_the_pictures(tiny_prepared: PreparedSet, recon: Path, tmp_path: Path) -> None:
    given = f"init_from={recon}", f"data.path={tiny_prepared.path}", "shapes=2"
    clouds = []
    for seed in (0, 0, 1):
        assert run(tmp_path, *given, f"run.seed={seed}") == 0
        folder = tmp_path / "runs" / "v" / "figures" / "clouds"
        clouds.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert clouds[0] == clouds[1]
    assert clouds[0].keys() == clouds[2].keys()
    assert clouds[0] != clouds[2]


def test_a_model_without_decoder_shows_attention_and_says_so(
    tiny_prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = weights(tmp_path, "classifier", num_classes=3)
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, f"init_from={model}", f"data.path={tiny_prepared.path}") == 0
    assert "classifier.safetensors has no decoder: only attention is drawn" in caplog.text
    found = result(tmp_path)
    assert found["kinds"] == ["attention"]
    assert found["metrics"] == {}
    assert not [name for name in found["files"] if "prediction" in name]


def test_many_shapes_fill_sheets(tiny_prepared: PreparedSet, recon: Path, tmp_path: Path) -> None:
    path = tiny_prepared.path
    given = f"init_from={recon}", f"data.path={path}", "data.split=train", "shapes=14"
    assert run(tmp_path, *given, "visualize.kinds=[attention]", "visualize.blocks=[1]") == 0
    assert result(tmp_path)["files"][:2] == ["figures/sheet.png", "figures/sheet-2.png"]


def test_a_dry_run_keeps_nothing(
    tiny_prepared: PreparedSet, recon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"init_from={recon}", f"data.path={tiny_prepared.path}", "--dry-run"
    assert run(tmp_path, *given) == 0
    assert capsys.readouterr().out.rstrip().endswith("dry run: 6 shapes, nothing is kept")
    assert not (tmp_path / "runs").exists()


def test_chosen_shapes_are_of_every_class_and_read_from_files(tiny_prepared: PreparedSet) -> None:
    table = tiny_prepared.read("train")
    data = ShownDataSection(split="train", num_points=96, normalize=False)
    some = shapes_of_set(tiny_prepared, data, 3, seed=0)
    assert sorted(shape.category for shape in some) == ["chair", "lamp", "mug"]
    every = shapes_of_set(tiny_prepared, data, 99, seed=0)
    assert len(every) == 24
    ids = table["object_id"].to_pylist()
    points = table.combine_chunks()["points"].chunk(0).to_numpy_ndarray()
    for shape in every:
        np.testing.assert_array_equal(shape.points, points[ids.index(shape.object_id)])
    named = shapes_of_set(tiny_prepared, data, [ids[9], ids[2]], seed=0)
    assert [shape.object_id for shape in named] == [ids[9], ids[2]]


def test_a_classification_leaves_two_figures_or_one_sentence(tmp_path: Path) -> None:
    draw_classification(RunFolder(f"{tmp_path}/run"), np.array([[3, 1], [0, 0]]), ["cup", "lamp"])
    names = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert names == ["confusion.png", "per_class.png"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "figures").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"figures: a figure could not be written"):
        draw_classification(RunFolder(f"{tmp_path}/other"), np.eye(2), ["cup", "lamp"])
