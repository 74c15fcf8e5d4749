"""Voting: what is computed once, what a round is, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from job_samples import save_model

from recon_ray.cluster.evaluate import WorkerRuntime
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.errors import CheckpointError
from recon_ray.models.classifier import Classifier
from recon_ray.points import ops
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.classify.voting import ROUNDS, VotingEvaluation, vote_summary
from recon_ray.tasks.point_pipeline import CloudPipeline
from recon_ray.tasks.predictions import PREDICTIONS, with_names
from recon_ray.train.inference import Inference
from recon_ray.weights.find import find_weights

SIZES = {
    "num_classes": 3, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_groups": 8,
    "group_size": 8, "patch_widths": (8, 16, 32), "head": "linear",
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "classifier.safetensors", "classifier", seed=1, **SIZES))


def evaluation(weights: str, **options) -> VotingEvaluation:
    values = {
        "weights": weights, "sizes": {}, "split": "test", "classes": ("a", "b", "c"), "votes": 4,
        "repeats": 3, "batch_size": 8, "seed": 0,
        "pipeline": CloudPipeline(64, "whole", transform="rotate"),
    }  # fmt: skip
    return VotingEvaluation(**{**values, **options})


def runtime_of(prepared: PreparedSet, folder: Path) -> WorkerRuntime:
    table = IndexedTable([prepared.read("test", columns=with_names().columns)])
    folder.mkdir(exist_ok=True)
    where = RunFolder(str(folder))
    return WorkerRuntime(0, 1, torch.device("cpu"), where, {"test": table}, {}, Inference())


def run(evaluation: VotingEvaluation, prepared: PreparedSet, folder: Path):
    with torch.inference_mode():
        return evaluation.run(runtime_of(prepared, folder))


@pytest.fixture
def sampled(monkeypatch) -> list[tuple[int, int]]:
    """Calls of the sampling: clouds and points that were asked for, grouping apart."""
    calls, original = [], ops.furthest_point_sample

    def counting(points, n, **options):
        if n >= 64:
            calls.append((len(points), n))
        return original(points, n, **options)

    monkeypatch.setattr(ops, "furthest_point_sample", counting)
    return calls


def test_each_cloud_is_thinned_once_for_all_rounds(weights, tiny_prepared, tmp_path, sampled):
    found = run(evaluation(weights), tiny_prepared, tmp_path / "run")
    assert sampled == [(8, 75), (4, 75)]  # 12 clouds in batches of 8; 75 candidates for 64 points
    assert found["counts"] == {
        "clouds": 12, "unlabeled": 0, "sampled_clouds": 12, "encoded_clouds": 12 * 4 * 3,
    }  # fmt: skip
    assert len(found["rounds"]) == 4


def test_clouds_without_a_class_are_predicted_and_vote_on_nothing(weights, tiny_prepared, tmp_path):
    whole = run(evaluation(weights), tiny_prepared, tmp_path / "whole")
    runtime = runtime_of(tiny_prepared, tmp_path / "part")
    runtime.table("test").label[[2, 5]] = -1
    with torch.inference_mode():
        found = evaluation(weights, batch_size=3).run(runtime)
    counted = {"clouds": 10, "unlabeled": 2, "encoded_clouds": 10 * 4 * 3}
    assert found["counts"] == {**whole["counts"], **counted}
    assert np.sum(found["confusion"]) == 10
    assert all(round(value * 10) == pytest.approx(value * 10) for value in found["rounds"])
    own, all_labeled = (
        pq.read_table(tmp_path / name / PREDICTIONS).to_pylist() for name in ("part", "whole")
    )
    assert [row["label"] is None for row in own] == [i in (2, 5) for i in range(12)]
    assert [row["predicted"] for row in own] == [row["predicted"] for row in all_labeled]


def test_sampling_that_would_only_permute_is_left_out(weights, tiny_prepared, tmp_path, sampled):
    pipeline = CloudPipeline(96, "whole")  # as many as are stored
    found = run(evaluation(weights, pipeline=pipeline), tiny_prepared, tmp_path / "run")
    assert sampled == []
    assert found["counts"]["sampled_clouds"] == 0


def test_plain_accuracy_reads_the_farthest_points(weights, tiny_prepared, tmp_path):
    found = run(evaluation(weights, votes=0), tiny_prepared, tmp_path / "run")
    table = runtime_of(tiny_prepared, tmp_path / "run").table("test")
    rows = table.take(np.arange(12))
    model = Classifier(**SIZES).eval()
    model.load_state_dict(find_weights(weights).state)
    points = CloudPipeline(64, "whole").test()(
        torch.from_numpy(rows["points"].astype(np.float32)), torch.from_numpy(rows["sample_id"])
    )
    with torch.inference_mode():
        predicted = model(points).argmax(dim=-1).numpy()
    expected = np.zeros((3, 3), dtype=int)
    for label, guess in zip(rows["label"], predicted, strict=True):
        expected[label, guess] += 1
    assert found["confusion"] == expected.tolist()
    assert found["rounds"] == []


def test_rounds_do_not_depend_on_the_batch(weights, tiny_prepared, tmp_path):
    one = run(evaluation(weights, batch_size=100), tiny_prepared, tmp_path / "a")
    other = run(evaluation(weights, batch_size=3), tiny_prepared, tmp_path / "b")
    assert one["rounds"] == other["rounds"]
    assert one["confusion"] == other["confusion"]


def test_recorded_rounds_are_not_computed_again_and_damage_is_named(
    weights, tiny_prepared, tmp_path
):
    whole = run(evaluation(weights, votes=4), tiny_prepared, tmp_path / "whole")
    folder = tmp_path / "part"
    run(evaluation(weights, votes=2), tiny_prepared, folder)
    assert json.loads((folder / ROUNDS).read_text())["rounds"] == whole["rounds"][:2]
    record = {"weights": weights, "inputs": {}, "rounds": [0.25, *whole["rounds"][1:2]]}
    (folder / ROUNDS).write_text(json.dumps(record))
    continued = run(evaluation(weights, votes=4), tiny_prepared, folder)
    assert continued["rounds"] == [0.25, *whole["rounds"][1:]]
    (folder / ROUNDS).write_text(json.dumps({**record, "weights": "others"}))
    assert run(evaluation(weights, votes=4), tiny_prepared, folder)["rounds"] == whole["rounds"]
    (folder / ROUNDS).write_text(json.dumps(record))
    other = evaluation(weights, votes=4, inputs={"data.path": "0" * 64})  # prepared again
    assert run(other, tiny_prepared, folder)["rounds"] == whole["rounds"]
    (folder / ROUNDS).write_text("{")
    with pytest.raises(CheckpointError, match=r"votes\.json: it is damaged"):
        run(evaluation(weights, votes=2), tiny_prepared, folder)


def test_the_mean_of_the_logits_decides(weights, tiny_prepared, tmp_path, monkeypatch):
    """Two repeats say class 1 weakly, one says class 0 strongly: the mean says class 0."""
    strong = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0]]

    def forward(self, points, source=None):
        if len(points) % 3:
            return torch.zeros(len(points), 3)
        return torch.tensor(strong).repeat_interleave(len(points) // 3, dim=0)

    monkeypatch.setattr(Classifier, "forward", forward)
    options = {"votes": 1, "batch_size": 36}
    found = run(evaluation(weights, **options), tiny_prepared, tmp_path / "run")
    labels = tiny_prepared.read("test", columns=["label"])["label"].to_numpy()
    assert found["rounds"] == [pytest.approx(float((labels == 0).mean()))]


def test_the_summary_of_rounds():
    assert vote_summary([0.5, 0.7, 0.6]) == {
        "accuracy_vote_mean": pytest.approx(0.6),
        "accuracy_vote_max": 0.7,
        "accuracy_vote_std": pytest.approx(0.0816, abs=1e-4),
    }
    assert vote_summary([]) == {}
