"""Features of all shapes as Parquet, in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trimesh
from job_samples import run_options, save_model, usual_options

import recon_ray
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.errors import CheckpointError, ConfigError, DataError
from recon_ray.points.transforms import normalize
from recon_ray.tasks.embed import encode as embedding
from recon_ray.tasks.embed import job as program

RECON = {"decoder_depth": 1, "image_dim": 16, "text_dim": 8}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_model(tmp_path / "pre.safetensors", **RECON)


@pytest.fixture
def options(tiny_prepared: PreparedSet, weights: Path, tmp_path: Path) -> dict[str, Any]:
    data = {"path": str(tiny_prepared.path), "num_points": 96}
    usual = usual_options(tiny_prepared, tmp_path, weights)
    return {**usual, "data": data, "embed": {"batch_size": 4}}


def run(options: dict[str, Any], **more: Any) -> tuple[dict[str, Any], Path]:
    result, folder = run_options("embed", {**options, **more})
    return result, folder / "embeddings"


def numbers(table: Any, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float32)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_every_shape_has_the_features_of_the_python_interface(options, tiny_prepared, weights):
    result, folder = run(options)
    assert result["counts"]["shapes"] == {"train": 24, "test": 12}
    assert result["columns"] == {"features": 48, "image_embedding": 16, "text_embedding": 8}
    assert [path.name for path in sorted((folder / "train").iterdir())] == [
        path.name for path in tiny_prepared.splits["train"].geometry
    ]
    model = recon_ray.load_model(weights)
    for split in ("train", "test"):
        stored = tiny_prepared.read(split)
        points = torch.tensor(points_to_numpy(stored["points"]))
        found = pq.read_table(folder / split)
        for name in ("sample_id", "object_id", "label", "category"):
            assert found[name].to_pylist() == stored[name].to_pylist()
        assert {*found["split"].to_pylist()} == {split}
        with torch.no_grad():
            expected = {
                "features": recon_ray.embed(model, points),
                "image_embedding": model.encode_image(normalize(points)),
                "text_embedding": model.encode_text(normalize(points)),
            }
        for name, values in expected.items():
            np.testing.assert_allclose(numbers(found, name), values, rtol=1e-4, atol=1e-4)


def test_only_missing_and_damaged_parts_are_computed_again(options):
    _, folder = run(options)
    before = stamps(folder)
    parts = sorted((folder / "train").iterdir())
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-9])
    (folder / "train" / ".tmp-999999999-x.partial").write_bytes(b"of a killed process")
    result, _ = run(options)
    assert result["counts"]["parts_written"] == 2
    assert result["metrics"]["shapes"] == 36
    changed = {name for name, stamp in stamps(folder).items() if stamp != before[name]}
    assert changed == {parts[0].name, parts[1].name}
    assert not list(folder.rglob(".tmp-*"))
    assert pq.read_table(folder / "train").num_rows == 24


def test_an_interrupted_job_goes_on_and_other_weights_are_refused(options, weights, monkeypatch):
    written, original = [], embedding._write

    def write(task: Any, table: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.file)
        original(task, table)

    monkeypatch.setattr(embedding, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        run(options)
    monkeypatch.undo()
    result, folder = run(options)
    assert result["counts"]["parts_written"] == result["counts"]["parts"] - 2
    old = numbers(pq.read_table(folder / "train"), "features")
    save_model(weights, seed=1, **RECON)
    with pytest.raises(ConfigError, match="the weights are no longer what"):
        run(options)
    result, folder = run(options, resume="never")
    assert result["counts"]["parts_written"] == result["counts"]["parts"]
    assert not np.allclose(numbers(pq.read_table(folder / "train"), "features"), old)


def test_weights_that_change_while_the_job_runs_end_it(options, weights, monkeypatch):
    original = program.encode_shards

    def encode(*arguments: Any, **options: Any) -> Any:
        save_model(weights, seed=1, **RECON)
        return original(*arguments, **options)

    monkeypatch.setattr(program, "encode_shards", encode)
    with pytest.raises(CheckpointError, match="the weights have changed since the job began"):
        run(options)


def test_a_limit_counts_the_shapes_of_a_split(options, tiny_prepared):
    data = {**options["data"], "limit": 10, "num_points": 64}
    result, folder = run(options, data=data, embed={"splits": ["train"], "batch_size": 3})
    assert result["counts"]["shapes"] == {"train": 10}
    found = pq.read_table(folder / "train")
    assert found["sample_id"].equals(tiny_prepared.read("train")["sample_id"].slice(0, 10))


def test_files_of_any_size_are_shapes_too(options, weights, tmp_path):
    trimesh.creation.box().export(tmp_path / "box.ply")
    cloud = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", cloud)
    files = [tmp_path / "box.ply", tmp_path / "cloud.npy"]
    result, folder = run(options, files=files, data={"num_points": 96}, up_axis="y")
    assert result["counts"]["shapes"] == {"files": 2}
    found = pq.read_table(folder / "files")
    assert found["object_id"].to_pylist() == [str(path) for path in files]
    assert found["label"].to_pylist() == [-1, -1]
    expected = recon_ray.embed(recon_ray.load_model(weights), torch.from_numpy(cloud)[None])
    np.testing.assert_allclose(numbers(found, "features")[1:], expected, rtol=1e-4, atol=1e-4)
    np.save(tmp_path / "cloud.npy", 2 * cloud[::2])
    os.utime(tmp_path / "cloud.npy", ns=(0, 0))
    assert run(options, files=files, data={"num_points": 96})[0]["counts"]["parts_written"] == 1
    np.save(tmp_path / "cloud.npy", cloud[:5])
    with pytest.raises(DataError, match=r"cloud\.npy: 5 points are too few for the model's 8 patc"):
        run(options, files=files, data={"num_points": 96})


def test_classifiers_have_features_and_no_embeddings(options, tiny_prepared, tmp_path):
    points = torch.tensor(points_to_numpy(tiny_prepared.read("test")["points"]))
    path = save_model(tmp_path / "tuned.safetensors", "classifier", num_classes=3)
    result, folder = run(options, init_from=str(path))
    assert result["columns"] == {"features": 48}
    found = pq.read_table(folder / "test")
    assert "text_embedding" not in found.column_names
    expected = recon_ray.embed(recon_ray.load_model(path), points)
    np.testing.assert_allclose(numbers(found, "features"), expected, rtol=1e-4, atol=1e-4)
    path = save_model(tmp_path / "towers.safetensors", "twotower_classifier", num_classes=3)
    result, folder = run({**options, "run": {**options["run"], "name": "two"}}, init_from=str(path))
    assert result["columns"] == {"features": 96}
    found = numbers(pq.read_table(folder / "test"), "features")
    with torch.no_grad():
        expected = recon_ray.load_model(path).forward_features(normalize(points))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
