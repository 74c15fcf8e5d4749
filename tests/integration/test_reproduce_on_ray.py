"""The published table on Ray: a killed driver loses nothing that was finished."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from killed_driver import finished, kill_in_mid_run, run_again

from recon_ray.config.help import dump_yaml
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.reproduce.config import ReproduceConfig

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


def table(prepared: PreparedSet, storage: Path) -> ReproduceConfig:
    """A pre-training, two fine-tunings with voting, and zero-shot: six runs."""
    data = {"path": str(prepared.path), "num_points": 64}
    short = {
        "train": {"epochs": 2, "global_batch_size": 8},
        "optim": {"lr": 1e-3, "warmup_epochs": 1},
    }
    model = {
        "preset": "nano", "embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_depth": 1,
        "num_groups": 8, "group_size": 8,
    }  # fmt: skip
    teacher = {
        "image": {"name": "descriptor:32", "augment": "none"},
        "text": {"name": "descriptor:32"},
    }
    rows = {
        "obj_bg": {**short, "data.num_points": 64},
        "voting": {"eval.votes": 2, "eval.repeats": 2},
        "zeroshot_modelnet10": {"data.num_points": 64, "teacher.text.name": "descriptor:32"},
    }
    sets = ("scanobjectnn_obj_bg", "modelnet10")
    return ReproduceConfig(
        run={"name": "t", "storage": str(storage)},
        pretrain={**short, "data": data, "model": model, "teacher": teacher, "eval.draws": 2},
        rows=rows,
        sets={name: {"path": data["path"]} for name in sets},
        reproduce={"seeds": 2},
    )


@pytest.mark.long
def test_a_killed_table_continues_with_the_rest(tiny_prepared: PreparedSet, tmp_path: Path) -> None:
    file = tmp_path / "table.yaml"
    file.write_text(dump_yaml(table(tiny_prepared, tmp_path)))
    command = [sys.executable, str(ROOT / "jobs" / "reproduce.py"), str(file)]
    trials = tmp_path / "t" / "trials"
    done = kill_in_mid_run(command, trials, 2)  # the pre-training, and a run
    assert len(done) < 6
    logged = run_again(command)
    after = finished(trials)
    assert {path: after[path] for path in done} == done
    assert len(after) == 6
    assert "pre-training first" not in logged
    result = json.loads((tmp_path / "t" / "result.json").read_text())
    assert result["counts"]["done"] == 5
    assert [line["count"] for line in result["lines"]] == [2, 2, 1, 1]
