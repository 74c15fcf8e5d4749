"""The file of predictions: its rows, several workers, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from job_samples import SIZES, save_model

from recon_ray.cluster.evaluate import Evaluation, WorkerRuntime
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import BatchOptions, IndexedTable
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks import predictions
from recon_ray.tasks.classify.voting import VotingEvaluation
from recon_ray.tasks.feature_extraction import PointChoice
from recon_ray.tasks.partseg.part_table import read_part_table
from recon_ray.tasks.partseg.task import PartEvaluation, Scoring
from recon_ray.tasks.point_pipeline import CloudPipeline
from recon_ray.tasks.predictions import (
    CLASS_COLUMNS,
    PREDICTIONS,
    RankedClasses,
    best_classes,
    prediction_file,
    row_lists,
    with_names,
)
from recon_ray.tasks.zeroshot.config import ZeroshotConfig
from recon_ray.tasks.zeroshot.evaluation import Candidates, ZeroshotEvaluation
from recon_ray.train.inference import Inference

CLASSES = ("chair", "lamp", "mug")


def runtime_of(
    prepared: PreparedSet,
    folder: Path,
    options: BatchOptions = BatchOptions(),  # noqa: B008
    rank: int = 0,
    world_size: int = 1,
) -> WorkerRuntime:
    columns = with_names(options).columns
    tables = {name: IndexedTable([prepared.read(name, columns)]) for name in prepared.splits}
    where, device = RunFolder(str(folder)), torch.device("cpu")
    return WorkerRuntime(rank, world_size, device, where, tables, {}, Inference())


def rows(folder: Path) -> list[dict[str, Any]]:
    assert {path.name for path in folder.iterdir()} == {PREDICTIONS}
    return pq.read_table(folder / PREDICTIONS).to_pylist()


# --- The file -------------------------------------------------------------------------------------
def test_rows_name_shape_classes_and_scores(tiny_prepared, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(predictions, "CHUNK", 5)
    table = tiny_prepared.read("test", ["object_id", "label", "category"])
    ids, count = table["sample_id"].to_numpy(), len(table)
    values = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    best = best_classes(values)
    scores = values.gather(1, best).numpy()
    labels = np.where(np.arange(count) == 4, -1, table["label"].to_numpy())
    runtime = runtime_of(tiny_prepared, tmp_path / "run")
    runtime.tables["test"].label[4] = -1
    with prediction_file(runtime, CLASS_COLUMNS) as file:
        file.add_classes("test", RankedClasses(ids, labels, best.numpy(), scores), CLASSES)
        assert not (tmp_path / "run" / PREDICTIONS).exists()
    found = rows(tmp_path / "run")
    assert [row["sample_id"] for row in found] == ids.tolist()
    assert [row["object_id"] for row in found] == table["object_id"].to_pylist()
    assert [row["category"] for row in found] == table["category"].to_pylist()
    assert [row["label"] for row in found] == [i if i >= 0 else None for i in labels.tolist()]
    assert {row["split"] for row in found} == {"test"}
    for row, own in zip(found, values.tolist(), strict=True):
        ranked = sorted(zip(own, CLASSES, strict=True), reverse=True)
        assert row["top5"] == [name for _, name in ranked]
        assert row["top5_scores"] == [value for value, _ in ranked]
        assert (row["predicted"], row["score"]) == (row["top5"][0], row["top5_scores"][0])


def test_the_lowest_class_comes_first_on_a_tie() -> None:
    values = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 0.0, -1.0], [0.0] * 7])
    assert best_classes(values).tolist() == [[1, 3, 2, 4, 0], [0, 1, 2, 3, 4]]


def test_kept_values_are_lists() -> None:
    values = np.arange(8, dtype=np.int32).reshape(2, 4)
    found = row_lists(values, np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool))
    assert found.to_pylist() == [[0, 2], []]
    assert found.type == pa.list_(pa.int32())


def test_what_fails_leaves_the_file_of_before(tiny_prepared, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / PREDICTIONS).write_text("before")
    runtime = runtime_of(tiny_prepared, folder)
    with pytest.raises(KeyboardInterrupt), prediction_file(runtime, CLASS_COLUMNS):
        raise KeyboardInterrupt
    assert (folder / PREDICTIONS).read_text() == "before"
    assert len([*folder.iterdir()]) == 1


# --- Several workers ------------------------------------------------------------------------------
Measured = tuple[str, str, Evaluation, BatchOptions]


def evaluations(whole: PreparedSet, parts: PreparedSet, folder: Path) -> list[Measured]:
    """Name, set, evaluation and batch of each job that predicts."""
    sizes = {"head": "linear", "num_classes": 3}
    classifier = save_model(folder / "classifier.safetensors", "classifier", **sizes)
    embedder = save_model(folder / "pre.safetensors", decoder_depth=1, text_dim=16, image_dim=None)
    pipeline = CloudPipeline(64, "whole")
    evaluate = VotingEvaluation(
        str(classifier), {}, "test", pipeline, CLASSES, votes=0, repeats=1, batch_size=2, seed=0
    )
    config = ZeroshotConfig(init_from="x", zeroshot={"kind": "text", "splits": ["test", "train"]})
    zeroshot = ZeroshotEvaluation(
        weights=str(embedder), sizes={}, choice=PointChoice(64), batch_size=5,
        candidates=Candidates(CLASSES, CLASSES, (0, 1, 2)), options=config.zeroshot,
        teacher=config.teacher.text.model_copy(update={"name": "descriptor:16"}),
    )  # fmt: skip
    many = {**SIZES, "depth": 3, "propagation_widths": (32, 24), "head_widths": (24, 16)}
    table = read_part_table(parts, ["train", "val", "test"])
    many |= {"num_parts": table.num_parts, "num_categories": len(table.categories)}
    segmenter = save_model(folder / "parts.safetensors", "partseg", **many)
    found: list[Measured] = [
        ("evaluate", str(whole.path), evaluate, BatchOptions()),
        ("zeroshot", str(whole.path), zeroshot, BatchOptions()),
    ]
    for draw in ("own", "replacement"):
        scoring = Scoring(table, num_points=32, batch_size=1, draw=draw)
        measured = PartEvaluation(str(segmenter), {}, "test", scoring)
        found.append((draw, str(parts.path), measured, scoring.options))
    return found


def measure(
    what: list[Measured], folder: str, rank: int = 0, world_size: int = 1
) -> dict[str, Any]:
    torch.set_num_threads(1)
    found = {}
    for name, path, evaluation, options in what:
        place = Path(folder, name)
        runtime = runtime_of(PreparedSet.open(path), place, options, rank, world_size)
        with torch.inference_mode():
            found[name] = evaluation.run(runtime)
    return found


def _rank(rank: int, world_size: int, what: list[Measured], folder: str) -> None:
    meet = f"file://{folder}.rendezvous"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    found = measure(what, folder, rank, world_size)
    if rank == 0:
        torch.save(found, f"{folder}.results")
    dist.destroy_process_group()


def test_workers_write_each_shape_once_as_one_does(tiny_prepared, tiny_parts, tmp_path) -> None:
    what = evaluations(tiny_prepared, tiny_parts, tmp_path)
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = measure(what, str(alone))
    # Three workers: 5 shapes are 2, 2 and 1, so that the last has no batch when others have one.
    mp.start_processes(_rank, (3, what, str(together)), nprocs=3, start_method="spawn")
    found = torch.load(f"{together}.results", weights_only=False)
    for name, path, _, _ in what:
        own, theirs = rows(alone / name), rows(together / name)
        prepared = PreparedSet.open(path)
        splits = ("test", "train") if name == "zeroshot" else ("test",)
        ids = [i for split in splits for i in prepared.read(split, [])["sample_id"].to_pylist()]
        assert [row["sample_id"] for row in own] == ids
        assert len(own) == len(theirs)
        for a, b in zip(own, theirs, strict=True):
            numbers = {key for key, value in a.items() if isinstance(value, float)}
            numbers |= {"top5_scores"} & a.keys()
            for key in a:
                assert b[key] == (pytest.approx(a[key], abs=1e-5) if key in numbers else a[key])
    assert found["evaluate"]["confusion"] == expected["evaluate"]["confusion"]
    assert found["zeroshot"]["predicted"] == expected["zeroshot"]["predicted"]
    for draw in ("own", "replacement"):
        metrics, others = found[draw]["metrics"], expected[draw]["metrics"]
        assert metrics == pytest.approx(others, abs=1e-9)


def test_the_rows_are_what_was_measured(tiny_prepared, tiny_parts, tmp_path) -> None:
    what = evaluations(tiny_prepared, tiny_parts, tmp_path)
    found = measure(what, str(tmp_path))
    matrix = np.zeros((3, 3), int)
    for row in rows(tmp_path / "evaluate"):
        matrix[row["label"], CLASSES.index(row["predicted"])] += 1
        assert sum(row["top5_scores"]) == pytest.approx(1, abs=1e-5)  # all of three classes
        assert CLASSES[row["label"]] == row["category"]
    assert matrix.tolist() == found["evaluate"]["confusion"]
    for split, confusion in found["zeroshot"]["splits"].items():
        matrix = np.zeros((3, 3), int)
        for row in rows(tmp_path / "zeroshot"):
            if row["split"] == split:
                matrix[row["label"], CLASSES.index(row["predicted"])] += 1
                assert -1 <= row["top5_scores"][2] <= row["score"] <= 1
        assert matrix.tolist() == confusion
    stored = tiny_parts.read("test", ["part_labels", "valid_points"])
    ids, valid = stored["sample_id"].to_pylist(), stored["valid_points"].to_pylist()
    labels = stored["part_labels"].combine_chunks().to_numpy_ndarray()
    parts, valid = dict(zip(ids, labels, strict=True)), dict(zip(ids, valid, strict=True))
    for draw in ("own", "replacement"):
        segmented = rows(tmp_path / draw)
        right = total = 0
        for row in segmented:
            own = parts[row["sample_id"]][row["points"]]
            assert row["true_parts"] == own.tolist()
            count = valid[row["sample_id"]]
            assert max(row["points"]) < count
            if draw == "own":
                assert row["points"] == list(range(count))
            else:
                assert len(row["points"]) == 32
            right += int((own == row["parts"]).sum())
            total += len(own)
        metrics = found[draw]["metrics"]
        assert right / total == pytest.approx(metrics["accuracy"])
        mean = np.mean([row["iou"] for row in segmented])
        assert mean == pytest.approx(metrics["instance_miou"])
