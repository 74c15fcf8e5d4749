"""Zero-shot, probes, features, part segmentation on a real Ray head: equality with one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recon_ray.cli import run_job
from recon_ray.models.recon import Recon
from recon_ray.weights.weight_files import save_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def on_two_workers(ray_head, tmp_path) -> Run:
    """Runs a job on two workers of the head, and gives its result."""

    def run(job: str, name: str, *options: object) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *_given(tmp_path, name)]
        command += [f"cluster.address=127.0.0.1:{ray_head.port}", "cluster.workers=2"]
        done = subprocess.run(
            [*command, *map(str, options)], env=ray_head.environment, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return _result(tmp_path, name)

    return run


@pytest.fixture
def here(tmp_path) -> Run:
    """Runs a job in this process, and gives its result."""

    def run(job: str, name: str, *options: object) -> dict[str, Any]:
        given = [*_given(tmp_path, name), "cluster.workers=0", *map(str, options)]
        assert run_job(job, given) == 0
        return _result(tmp_path, name)

    return run


def _given(folder: Path, name: str) -> list[str]:
    own = (f"run.storage={folder / 'runs'}", f"run.name={name}")
    return [*own, "data.num_points=64", "runtime.threads=1"]


def _result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "result.json").read_text())


def _predictions(folder: Path, name: str) -> pa.Table:
    return pq.read_table(folder / "runs" / name / "predictions.parquet")


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    architecture = {**SIZES, "decoder_depth": 1, "image_dim": 16, "text_dim": 16}
    path = tmp_path / "pre.safetensors"
    save_weights(path, Recon(**architecture).state_dict(), kind="recon", architecture=architecture)
    return path


@pytest.mark.long
def test_two_workers_classify_and_probe_like_one(
    here, on_two_workers, weights, tiny_prepared, tmp_path
):
    given = (f"init_from={weights}", f"data.path={tiny_prepared.path}", "data.limit=11")
    text = ("teacher.text.name=descriptor:16", "zeroshot.splits=[train,test]")
    one = here("zeroshot", "one", *given, *text)
    two = on_two_workers("zeroshot", "two", *given, *text)
    assert two["confusion"] == one["confusion"]
    assert two["counts"] == {**one["counts"], "workers": 2}
    assert two["counts"]["encoded_clouds"] == 22
    own, theirs = (_predictions(tmp_path, name) for name in ("one", "two"))
    for name in ("sample_id", "object_id", "split", "label", "category", "predicted"):
        assert theirs[name].equals(own[name])
    assert len(own) == 22
    probes = ("probe.knn=[1,3]", "probe.shots=2")
    alone = here("linear_probe", "alone", *given, *probes)
    both = on_two_workers("linear_probe", "both", *given, *probes)
    assert both["metrics"] == pytest.approx(alone["metrics"], abs=0.1)  # one of 11 shapes
    assert both["counts"]["encoded_clouds"] == 2 * 22


def test_two_workers_embed_like_one(here, on_two_workers, weights, tiny_prepared, tmp_path):
    given = (f"init_from={weights}", f"data.path={tiny_prepared.path}")
    here("embed", "one", *given)
    assert on_two_workers("embed", "two", *given)["counts"]["shapes"] == {"train": 24, "test": 12}
    one, two = (tmp_path / "runs" / name / "embeddings" for name in ("one", "two"))
    parts = sorted(path.relative_to(one) for path in one.rglob("*.parquet"))
    assert len(parts) == 6
    for part in parts:
        assert (two / part).read_bytes() == (one / part).read_bytes()


@pytest.mark.long
def test_two_workers_retrieve_as_one_process_does(here, on_two_workers, weights, tiny_prepared):
    given = (f"init_from={weights}", f"data.path={tiny_prepared.path}", "data.limit=11")
    given += ("teacher.text.name=descriptor:16", "teacher.image.name=descriptor:16")
    given += ("retrieval.splits=[train,test]", "retrieval.texts=caption")
    one = here("retrieve", "one", *given)
    two = on_two_workers("retrieve", "two", *given)
    assert two["metrics"] == pytest.approx(one["metrics"])
    assert len(one["counts"]["directions"]) == 4
    assert two["counts"] == {**one["counts"], "workers": 2}
    query = ("query=[a red chair]", "retrieval.top_k=4")
    alone = here("retrieve", "alone", *given, *query)
    both = on_two_workers("retrieve", "both", *given, *query)
    assert [row["sample_id"] for row in both["found"]] == [r["sample_id"] for r in alone["found"]]


@pytest.mark.long
def test_two_workers_segment_as_one_process_does(here, on_two_workers, tiny_parts, tmp_path):
    sizes = [f"model.{name}={value}" for name, value in SIZES.items()]
    sizes += ["model.preset=nano", "model.propagation_widths=[32,24]", "model.head_widths=[24,16]"]
    train = ("train.epochs=2", "train.global_batch_size=4", "train.log_every_steps=1")
    given = (f"data.path={tiny_parts.path}", *sizes, *train, "protocol=reference")
    alone = here("partseg", "alone", *given)
    both = on_two_workers("partseg", "both", *given)
    for name in ("loss_first", "loss_last"):
        # sums over workers round differently, and two steps a batch scale rounding up
        assert both["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-3)
    only = (f"data.path={tiny_parts.path}", "test=only", f"init_from={tmp_path}/runs/both")
    one = here("partseg", "one", *only)
    two = on_two_workers("partseg", "two", *only)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)
    assert two["per_category"] == one["per_category"]
    own, theirs = (_predictions(tmp_path, name) for name in ("one", "two"))
    for name in ("sample_id", "object_id", "points", "parts", "true_parts"):
        assert theirs[name].equals(own[name])
    assert one["per_category"]["cone"] == {"shapes": 0, "miou": None}
