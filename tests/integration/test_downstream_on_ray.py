"""Zero-shot, probes, features, part segmentation on a real Ray head: equality with one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recon_ray.cli import run_job
from recon_ray.config.schema import EmbedConfig
from recon_ray.models.recon import Recon
from recon_ray.programs.embed import embed
from recon_ray.weights.files import save_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(ray_head, tmp_path) -> Run:
    """Runs a job in one process and gives its result."""

    def start(job: str, name: str, *options: object) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), f"run.name={name}"]
        command += [f"run.storage={tmp_path / 'runs'}", "data.num_points=64", *map(str, options)]
        done = subprocess.run(
            command, env=ray_head.environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "runs" / name / "result.json").read_text())

    return start


@pytest.fixture
def workers(ray_head) -> tuple[str, ...]:
    """Options that put a job on two workers of the head."""
    return (f"cluster.address=127.0.0.1:{ray_head.port}", "cluster.workers=2")


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    architecture = {**SIZES, "decoder_depth": 1, "image_dim": 16, "text_dim": 16}
    path = tmp_path / "pre.safetensors"
    save_weights(path, Recon(**architecture).state_dict(), kind="recon", architecture=architecture)
    return path


def test_two_workers_classify_and_probe_as_one_process_does(run, workers, weights, tiny_prepared):
    given = (f"init_from={weights}", f"data.path={tiny_prepared.path}", "data.limit=11")
    text = ("teacher.text.name=descriptor:16", "zeroshot.splits=[train,test]")
    here = run("zeroshot", "here", *given, *text, "cluster.workers=0")
    there = run("zeroshot", "there", *given, *text, *workers)
    assert there["confusion"] == here["confusion"]
    assert there["counts"] == {**here["counts"], "workers": 2}
    assert there["counts"]["encoded_clouds"] == 22
    probes = ("probe.knn=[1,3]", "probe.shots=2")
    alone = run("linear_probe", "alone", *given, *probes, "cluster.workers=0")
    both = run("linear_probe", "both", *given, *probes, *workers)
    assert both["metrics"] == pytest.approx(alone["metrics"], abs=0.1)  # one of 11 shapes
    assert both["counts"]["encoded_clouds"] == 2 * 22


def test_two_workers_write_the_same_features_as_one_process(
    run, workers, weights, tiny_prepared, tmp_path
):
    given = (f"init_from={weights}", f"data.path={tiny_prepared.path}", "runtime.threads=1")
    own = (f"run.storage={tmp_path / 'runs'}", "run.name=here", "data.num_points=64")
    given_here = [*given, *own, "cluster.workers=0"]
    assert run_job("embed", EmbedConfig, embed, arguments=given_here) == 0
    assert run("embed", "there", *given, *workers)["counts"]["shapes"] == {"train": 24, "test": 12}
    here, there = (tmp_path / "runs" / name / "embeddings" for name in ("here", "there"))
    parts = sorted(path.relative_to(here) for path in here.rglob("*.parquet"))
    assert len(parts) == 6
    for part in parts:
        assert (there / part).read_bytes() == (here / part).read_bytes()


@pytest.mark.long
def test_two_workers_retrieve_as_one_process_does(run, workers, weights, tiny_prepared):
    given = (f"init_from={weights}", f"data.path={tiny_prepared.path}", "data.limit=11")
    given += ("teacher.text.name=descriptor:16", "teacher.image.name=descriptor:16")
    given += ("retrieval.splits=[train,test]", "retrieval.texts=caption")
    here = run("retrieve", "here", *given, "cluster.workers=0")
    there = run("retrieve", "there", *given, *workers)
    assert there["metrics"] == pytest.approx(here["metrics"])
    assert len(here["counts"]["directions"]) == 4
    assert there["counts"] == {**here["counts"], "workers": 2}
    query = ("query=[a red chair]", "retrieval.top_k=4")
    alone = run("retrieve", "alone", *given, *query, "cluster.workers=0")
    both = run("retrieve", "both", *given, *query, *workers)
    assert [row["sample_id"] for row in both["found"]] == [r["sample_id"] for r in alone["found"]]


@pytest.mark.long
def test_two_workers_segment_as_one_process_does(run, workers, tiny_parts, tmp_path):
    sizes = [f"model.{name}={value}" for name, value in SIZES.items()]
    sizes += ["model.preset=nano", "model.propagation_widths=[32,24]", "model.head_widths=[24,16]"]
    train = ("train.epochs=2", "train.global_batch_size=4", "train.log_every_steps=1")
    given = (f"data.path={tiny_parts.path}", *sizes, *train, "protocol=reference")
    alone = run("partseg", "alone", *given, "cluster.workers=0")
    both = run("partseg", "both", *given, *workers)
    for name in ("loss_first", "loss_last"):
        # sums over workers round differently, and two steps a batch scale rounding up
        assert both["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-3)
    only = (f"data.path={tiny_parts.path}", "test=only", f"init_from={tmp_path}/runs/both")
    here = run("partseg", "here", *only, "cluster.workers=0")
    there = run("partseg", "there", *only, *workers)
    assert there["metrics"] == pytest.approx(here["metrics"], abs=1e-9)
    assert there["per_category"] == here["per_category"]
    assert here["per_category"]["cone"] == {"shapes": 0, "miou": None}
